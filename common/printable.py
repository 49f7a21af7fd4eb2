"""Text from outside as text that can be printed: a value cannot end a line or steer a terminal."""

import re

LINE_SEPARATOR = "\n"
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$])")  # characters that can mean something


def printable(text: str) -> str:
    r"""Return a text as one line in which each character shows itself.

    Line breaks, control characters, terminal escapes, bidirectional controls and other characters
    without a shape are written as in Python: `\n`, `\x1b`, `\u202e`. A text that is printable
    already is not changed.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines, each of them as of `printable`. Tabs are kept."""
    if text.isprintable():
        return text
    return LINE_SEPARATOR.join(
        "\t".join(map(printable, line.split("\t"))) for line in text.split(LINE_SEPARATOR)
    )


def join_lines(text: str) -> str:
    """Return the lines of another program's message as one line, with semicolons between them."""
    return "; ".join(filter(None, map(str.strip, text.splitlines())))


def first_line(error: BaseException, words: str = "") -> str:
    """Return the first line of an error's message that has these words, else the error's type."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and words in line.lower()), type(error).__name__)


def markdown_text(text: str) -> str:
    """Return a text as one line of Markdown that shows it: no link, image, HTML or table."""
    return MARKDOWN.sub(r"\\\1", printable(text))
