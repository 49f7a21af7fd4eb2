"""The login of the Prefect server on this machine: where it is kept, and who knows it.

Without a login, Prefect's server takes orders from every web page that is open on the machine. The
first `prefect server start` generates one and keeps it in a file in PREFECT_HOME that only its
owner can read. The commands of this repository read it there.

They must not send it to whatever listens on the port. A Prefect server cannot prove that it knows a
login, so the kernel is asked: Linux lets us read the environment of processes of our own user only,
and a server is ours if its environment contains the login. A process of another user can therefore
not pass for our server. One limit remains: a command checks this once, when it starts. If the
server ends later and another user takes its port, a command that still runs sends the login there.
"""

import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prefect.settings import get_current_settings
from pydantic import SecretStr

from common.config.loading import ConfigError

FILE_NAME = "clickmill-login"
SERVER_LOGIN = "PREFECT_SERVER_API_AUTH_STRING"  # what a Prefect server asks for
CLIENT_LOGIN = "PREFECT_API_AUTH_STRING"  # what Prefect's client sends
LOGIN = re.compile(r"[^:\s]+:\S+")
LISTENING = "0A"  # the state of a socket in /proc/net/tcp


def make_login() -> str:
    """Return a new login, USER:PASSWORD."""
    return f"clickmill:{secrets.token_urlsafe(32)}"


def login_file() -> Path:
    """Return the file that keeps the login of the server on this machine."""
    return get_current_settings().home / FILE_NAME


def stored_login() -> str | None:
    """Return the login in its file, None if there is no such file.

    Raises:
        ConfigError: The file cannot be read, other users can read it, or it contains no login.
    """
    path = login_file()
    remedy = f"remove it (rm {path}) and start the server again, which makes a new one"
    try:
        # A FIFO must not block, and a link may lead to a file of somebody else.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(number, encoding="utf-8") as file:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: this is no regular file; {remedy}")
            if status.st_uid != os.geteuid() != 0:
                raise ConfigError(f"{path}: this file belongs to another user; {remedy}")
            if mode := stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigError(
                    f"{path}: other users have access (mode {mode:03o}), so they may know the "
                    f"server's login; {remedy}"
                )
            login = file.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{path}: cannot be read: {reason}; {remedy}") from None
    if not LOGIN.fullmatch(login):
        raise ConfigError(f"{path}: this is no login of the form USER:PASSWORD; {remedy}")
    return login


def create_login() -> str:
    """Return the login in its file, after creating the file where it is missing.

    Raises:
        ConfigError: The file cannot be written, or `stored_login` raises it.
    """
    path = login_file()
    unfinished = path.with_name(f"{FILE_NAME}.{os.getpid()}")
    while (login := stored_login()) is None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished.unlink(missing_ok=True)
            number = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(f"{make_login()}\n")
            with suppress(FileExistsError):  # another server was faster: its login counts
                os.link(unfinished, path)
            unfinished.unlink()
        except OSError as error:
            raise ConfigError(
                f"{path}: the server's login cannot be written: {error.strerror}; set PREFECT_HOME "
                f"to a folder that can be written, or {SERVER_LOGIN} to USER:PASSWORD"
            ) from None
    return login


def start_with_login() -> str:
    """Make sure that this process, which becomes a Prefect server, asks for a login.

    If its environment lacks the login, the process starts its program again with it, because only
    the environment that a process starts with can be read by others (`is_our_server`).

    Returns:
        Where the login can be read, for a message.

    Raises:
        ConfigError: There is no login, and none can be made.
    """
    setting = get_current_settings().server.api.auth_string
    configured = value_of(setting)
    if not configured or os.environ.get(SERVER_LOGIN) != configured:
        os.environ[SERVER_LOGIN] = configured or create_login()
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    with suppress(ConfigError):
        if stored_login() == configured:
            return str(login_file())
    return SERVER_LOGIN


def login_of_server(port: int) -> str | None:
    """Return the login of our server on a port of this machine, None if it is not our server.

    It is ours if it knows the login that is set for this process, or the one in the file.

    Raises:
        ConfigError: The file is damaged.
    """
    login = value_of(get_current_settings().api.auth_string)
    if login and is_our_server(port, login):
        return login
    login = stored_login()
    return login if login and is_our_server(port, login) else None


def credentials(login: str) -> tuple[str, str]:
    """Return user and password of a login."""
    user, _, password = login.partition(":")
    return user, password


def value_of(setting: SecretStr | None) -> str | None:
    """Return the text of a secret setting of Prefect; an empty one counts as not set."""
    return (setting.get_secret_value() if setting else None) or None


def is_our_server(port: int, login: str) -> bool:
    """Return whether processes listen on a port of this machine, and all of them know the login."""
    sockets = listening_sockets(port)
    return bool(sockets) and sockets <= set(_sockets_of_servers(login))


def listening_sockets(port: int) -> set[str]:
    """Return the sockets that listen on a port of this machine, as /proc/PID/fd names them."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    return sockets


def _sockets_of_servers(login: str) -> Iterator[str]:
    """Yield the open sockets of the processes that were started as servers with this login."""
    entry = f"{SERVER_LOGIN}={login}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        # The process may end, or belong to somebody else.
        with suppress(OSError):
            if entry in (process / "environ").read_bytes().split(b"\0"):
                for descriptor in (process / "fd").iterdir():
                    with suppress(OSError):
                        yield str(descriptor.readlink())
