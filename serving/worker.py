"""A worker: one process with one event loop, which answers requests on a socket that it was given.

`serving/server.py` starts it as `python -m serving.worker`, and gives it its options as one line of
JSON on standard input.
"""

import resource
import signal
import socket
import sys
from types import FrameType

import uvicorn
from uvicorn.server import Server

from common.logs import get_logger
from common.startup import search_garbage_less_often
from common.subprocess_tree import die_with_parent
from serving.access_log import AccessLog, log_as_json
from serving.app import App
from serving.metrics import Metrics, reserve_space
from serving.options import BACKLOG, DRAIN_S, KEEP_ALIVE_S, MAX_CONNECTIONS, WorkerOptions
from serving.protocol import LimitedProtocol

FILES_OF_MODELS = 256  # open files that are no connections
# How long a thread that loads a model may keep the interpreter from the event loop. Python's
# default is 5 ms, which is several answers.
SWITCH_INTERVAL_S = 0.0005

log = get_logger("serve")


class WorkerServer(Server):
    """The server of uvicorn, which a second signal does not keep from finishing.

    Ctrl-C in a terminal reaches the workers too, besides the SIGTERM of their server.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests, and finish those that were accepted."""
        self.should_exit = True


def main() -> None:
    """Serve until SIGTERM, then finish what was accepted."""
    options = WorkerOptions.model_validate_json(sys.stdin.readline())
    die_with_parent(options.parent)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    search_garbage_less_often()
    LimitedProtocol.max_connections = allow_many_connections()
    log_as_json()
    try:
        reserve_space()
    except OSError as error:
        log.error("no space to count requests in (%s); free some, or set TMPDIR", error)
        sys.exit(1)
    metrics = Metrics()
    access_log = (
        AccessLog(sys.stdout.fileno(), metrics.log_lines_dropped.inc)
        if options.serve.access_log
        else None
    )
    app = App(options.serve, metrics, access_log)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_IGN)  # uvicorn sends itself the signal that ended it again
    WorkerServer(make_config(app)).run(sockets=[socket.socket(fileno=options.socket)])


def make_config(app: App) -> uvicorn.Config:
    """Return the settings of uvicorn."""
    return uvicorn.Config(
        app,
        http=LimitedProtocol,
        loop="uvloop",
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


def allow_many_connections() -> int:
    """Let this process have as many open files as it may, and return the number of connections.

    Some files are kept for the models: a swap must succeed also while clients hold all connections.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(MAX_CONNECTIONS, max(hard - FILES_OF_MODELS, 1))


if __name__ == "__main__":
    main()
