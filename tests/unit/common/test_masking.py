"""Passwords in URLs are masked, in every place where text leaves a program."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.loading import ConfigError
from common.files import DataError
from common.logs import StageFormatter
from common.masking import mask_passwords
from common.subprocess_tree import CommandFailed, run_streaming
from flows.git_commands import Git, GitError

URL = "postgresql+asyncpg://bob:s3cret@db.example:5432/prefect"
MASKED = "postgresql+asyncpg://***@db.example:5432/prefect"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"no server at {URL}.", f"no server at {MASKED}."),
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api"),
        ("http://[::1]:4200/api, mail to a@b", "http://[::1]:4200/api, mail to a@b"),
        ("https://ghp_token@github.com/x.git", "https://***@github.com/x.git"),
        ("s3://KEY:SE/CR+ET==@bucket/a/b", "s3://***@bucket/a/b"),
        ("x://u:p@ss/w#o?r'd@host/path", "x://***@host/path"),
        ("http://u:12345@host/", "http://***@host/"),
        ("http://host/@team", "http://host/@team"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("('http://a:b@c','http://d:e@f')", "('http://***@c','http://***@f')"),
        (
            "https://h/x?X-Amz-Signature=abc&y=1&token=zz",
            "https://h/x?X-Amz-Signature=***&y=1&token=***",
        ),
        ("az://c?sig='x'", "az://c?sig=***'x'"),
        (
            "https://hooks.slack.com/services/T0/B0/XXX now",
            "https://hooks.slack.com/services/*** now",
        ),
        ("'https://chat.example/hooks/abc'", "'https://chat.example/hooks/***'"),
        (
            "mailtos://U:P@mail:587?mode=starttls&from=a@b",
            "mailtos://***@mail:587?mode=starttls&from=a@b",
        ),
    ],
)
def test_only_secrets_are_masked(text: str, expected: str) -> None:
    assert mask_passwords(text) == expected
    assert mask_passwords(expected) == expected


@given(
    st.text(
        st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Z", "C"]),
        min_size=1,
    ),
    st.sampled_from(["{}", "error at {}, try again", "a=1 {}\n", "x {} {}"]),
)
def test_a_password_of_any_characters_is_masked(password: str, template: str) -> None:
    """A URL of a server stays readable, whatever the password consists of."""
    secret = f"<<{password}>>"
    masked = mask_passwords(template.replace("{}", f"http://bob:{secret}@host.example:80/api"))
    assert secret not in masked
    assert "bob" not in masked
    assert "@host.example:80/api" in masked


def test_a_long_line_takes_no_time() -> None:
    begin_s = time.monotonic()
    for text in ("://" + "a:b" * 100_000, "://a:" * 100_000, "x://h?" + "&key" * 100_000):
        mask_passwords(text)
    assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize("kind", [ConfigError, DataError, GitError])
def test_the_message_of_an_error_contains_no_password(kind: type[Exception]) -> None:
    assert str(kind(f"nothing at {URL}")) == f"nothing at {MASKED}"


def test_a_log_line_contains_no_password() -> None:
    record = logging.LogRecord("clickmill.x", logging.INFO, "", 0, "to %s", (URL,), None)
    assert StageFormatter().format(record) == f"x         to {MASKED}"


def test_what_a_child_process_prints_contains_no_password(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(CommandFailed) as raised:
        run_streaming(
            [sys.executable, "-c", f"print('{URL}'); raise SystemExit(3)"],
            lines.append,
            cwd=tmp_path,
            env={},
        )
    assert lines == raised.value.tail == [MASKED]
    assert "s3cret" not in str(raised.value)


def test_an_error_of_git_contains_no_password(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    with pytest.raises(GitError, match=r"://\*\*\*@127\.0\.0\.1:9/x\.git") as raised:
        Git(tmp_path).run("ls-remote", "http://bob:s3cret@127.0.0.1:9/x.git")
    assert "s3cret" not in str(raised.value)
