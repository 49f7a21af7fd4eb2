"""The options of `clickmill serve`, the token file, and the address."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.config.loading import ConfigError
from flows.cli.main import app
from serving.options import (
    Canary,
    check_challengers,
    parse_canaries,
    parse_models,
    prepare_log_folder,
)
from serving.server import TOKEN_VARIABLE, find_token, is_loopback, listen, read_token
from tests.factories.asgi import serve_options

TOKEN = "0123456789abcdef" * 2


def test_models_are_named() -> None:
    texts = ["production=artifacts/production", "a.b-1=/x=y"]
    assert parse_models(texts, "--model") == {
        "production": Path("artifacts/production"),
        "a.b-1": Path("/x=y"),
    }


@pytest.mark.parametrize(
    "text", ["", "production", "=x", "a=", "a/b=x", "a b=x", "ü=x", "-a=x", "x" * 65 + "=x"]
)
def test_a_model_without_name_or_path_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=PATH expected"):
        parse_models([text], "--model")


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="another --model of this name"):
        parse_models(["a=x", "a=y"], "--model")
    with pytest.raises(ConfigError, match="another --canary of this name"):
        parse_canaries(["a=x:0.5", "a=y:0.5"])


def test_a_canary_has_a_fraction() -> None:
    assert parse_canaries(["a=x:y:0.05"]) == {"a": Canary(path=Path("x:y"), fraction=0.05)}


@pytest.mark.parametrize("text", ["a=x", "a=x:", "a=x:0", "a=x:1", "a=x:nan", "a=x:5%", "x:0.5"])
def test_a_canary_without_a_fraction_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--canary"):
        parse_canaries([text])


def test_a_challenger_needs_a_champion() -> None:
    options = serve_options({"a": Path("x")}, shadows={"b": Path("y")})
    with pytest.raises(ConfigError, match="known: a"):
        check_challengers(options)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_loopback_addresses(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def write_token(path: Path, text: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text)
    path.chmod(mode)
    return path


def test_a_token_is_read(tmp_path: Path) -> None:
    assert read_token(write_token(tmp_path / "t", f"{TOKEN}\n".encode())) == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_token_that_others_may_know_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="other users have access"):
        read_token(write_token(tmp_path / "t", TOKEN.encode(), mode))


@pytest.mark.parametrize("text", [b"", b"short", b"\xff" * 20, f"{TOKEN} {TOKEN}".encode()])
def test_a_file_without_a_token_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        read_token(write_token(tmp_path / "t", text))


def test_a_token_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigError, match="--token-file"):
            read_token(path)


def test_the_token_of_a_container_is_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    other = "f" * 32
    assert find_token(write_token(tmp_path / "t", other.encode())) == other
    assert find_token(None) == TOKEN
    assert find_token(None) is None  # it was removed, so that no worker inherits it


@pytest.mark.parametrize("text", ["", "short", "é" * 20, f"{TOKEN} {TOKEN}"])
def test_a_variable_without_a_token_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, text)
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        find_token(None)


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}"):
            listen("127.0.0.1", port)


def test_a_token_is_not_shown(tmp_path: Path) -> None:
    assert TOKEN not in repr(serve_options({"a": Path("x")}, token=TOKEN))


def test_another_address_than_loopback_needs_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert result.exit_code != 0
    text = result.output + result.stderr + capsys.readouterr().err
    assert "--token-file" in text
    assert "--allow-anonymous" in text


def test_a_log_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    options = ["serve", "--model", f"a={tmp_path}", "--port", "0", "--log-requests"]
    result = CliRunner().invoke(app, [*options, str(tmp_path / "file" / "log")])
    assert result.exit_code != 0
    text = result.output + result.stderr + capsys.readouterr().err
    assert "Not a directory; name a folder" in text


def test_a_log_folder_is_made(tmp_path: Path) -> None:
    prepare_log_folder(tmp_path / "a" / "log")
    assert list((tmp_path / "a" / "log").iterdir()) == []
