"""The errors about a log whose columns have other names than the schema says."""

import json
from collections.abc import Sequence

MAX_LISTED_CHARS = 500  # of column names, in an error message


def quoted(names: Sequence[str]) -> str:
    """Return names in quotes, so that spaces and an empty name can be seen; the start of many."""
    return ", ".join(map(repr, names))[:MAX_LISTED_CHARS] or "none"


def remedy_for(missing: Sequence[str], unknown: Sequence[str]) -> str:
    """Return what to change in the schema.

    Args:
        missing: The names of the schema that the log does not have.
        unknown: The names of the log that the schema does not have.
    """
    remedies = []
    if unknown:
        names = json.dumps(unknown, ensure_ascii=False)
        names = names if len(names) <= MAX_LISTED_CHARS else "[...]"
        remedies.append(f"declare what is unknown, such as - {{kind: ignored, names: {names}}}")
    if missing:
        remedies.append("rename or remove what is missing")
    return f"In the columns of the schema, {' and '.join(remedies)}"
