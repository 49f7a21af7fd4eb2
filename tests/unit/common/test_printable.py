"""Values and file names cannot write lines, terminal escapes, Markdown or HTML of their own."""

import logging
import pickle

import pytest

from common.config.loading import ConfigError
from common.files import DataError
from common.html.page import page_environment
from common.logs import StageFormatter
from common.printable import first_line, join_lines, markdown_text, printable, printable_lines

# Line breaks, a terminal's colour and title, a change of the writing direction, NUL, a surrogate.
HOSTILE = "a\nb\rc\x85d\u2028e\u2029f\x0bg\x1b[31mh\x1b]0;i\x07j\x9bk\u202el\u2066m\0n\ud800o\tp"
ESCAPED = r"a\nb\rc\x85d\u2028e\u2029f\x0bg\x1b[31mh\x1b]0;i\x07j\x9bk\u202el\u2066m\x00n\ud800o\tp"


def test_what_does_not_show_itself_is_escaped() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable(ESCAPED) == ESCAPED
    assert printable("naïve – 日本 \\n") == "naïve – 日本 \\n"
    assert printable_lines("a\n\tb\x1b\r\n") == "a\n\tb\\x1b\\r\n"


def test_a_message_of_several_lines_in_one_line() -> None:
    assert join_lines("fatal: a\n\n  hint: b\r\n") == "fatal: a; hint: b"
    assert first_line(ValueError("\n  a\nb")) == "a"
    assert first_line(ValueError("a\n The B"), "the b") == "The B"
    assert first_line(ValueError("")) == "ValueError"


def test_markdown_shows_the_text() -> None:
    assert markdown_text("[a](http://b) <i>\n# |`") == r"\[a\]\(http://b\) \<i\>\\n\# \|\`"


def test_a_log_line_is_one_line() -> None:
    record = logging.LogRecord("clickmill.ingest", logging.INFO, "", 0, "bad: %s", (HOSTILE,), None)
    assert StageFormatter().format(record) == f"ingest    bad: {ESCAPED}"


def test_a_traceback_stays_readable() -> None:
    try:
        raise ValueError("x\x1b[31m")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("clickmill.train", logging.ERROR, "", 0, "a\nb", (), info)
    lines = StageFormatter().format(record).split("\n")
    assert lines[0] == "train     error: a\\nb"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == r"ValueError: x\x1b[31m"


def test_the_message_of_an_error_has_only_its_own_lines() -> None:
    error = DataError(f"one {HOSTILE}", "two")
    assert str(error) == f"one {ESCAPED}\ntwo"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(ConfigError("a\nb\x1b\x85")) == "a\nb\\x1b\\x85"


@pytest.mark.parametrize("value", ["<script>", "\x1b[31m\u202e"])
def test_html_shows_the_text(value: str) -> None:
    page = page_environment().from_string("<p>{{ value }}</p>").render(value=value)
    assert page == f"<p>{printable(value).replace('<', '&lt;').replace('>', '&gt;')}</p>"
