"""What ranks and nodes leave in the shared folder when they fail, so that the first node can say why."""

import socket
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from common.config.loading import ConfigError
from common.files import DataError, read_json, write_json

LAST_LINES = 3
ARRIVE_WITHIN_S = 3.0  # another node's, over a network's file system

Kind = Literal["set-up", "data", "killed", "failed"]
# a cause goes before what it entails: ranks that lost a peer fail
KINDS: dict[Kind, int] = {"set-up": 0, "data": 0, "killed": 1, "failed": 2}
REFUSALS: dict[Kind, type[ConfigError | DataError]] = {"set-up": ConfigError, "data": DataError}


class Note(NamedTuple):
    """set-up, data: a ConfigError, a DataError, text being its message. killed: by a signal. failed: text being a traceback."""

    kind: Kind
    who: str
    host: str
    text: str


def leave_note(directory: Path, kind: Kind, who: str, text: str) -> None:
    """One for each `who`, such as "rank 3"; the first counts, since it is the cause of what follows."""
    path = directory / f"{who.replace(' ', '_')}.json"
    if not path.exists():
        write_json(path, Note(kind, who, socket.gethostname(), text)._asdict())


def leave_error(directory: Path, who: str, error: Exception) -> None:
    kind = next((kind for kind, refusal in REFUSALS.items() if isinstance(error, refusal)), None)
    leave_note(
        directory,
        kind or "failed",
        who,
        str(error) if kind else "".join(traceback.format_exception(error)),
    )


def read_notes(directory: Path, *, of_other_nodes: bool) -> list[Note]:
    """The most telling first: by kind, then by age, which the file system of all nodes tells by one clock."""
    if of_other_nodes:
        time.sleep(ARRIVE_WITHIN_S)
    paths = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return sorted((Note(**read_json(path)) for path in paths), key=lambda note: KINDS[note.kind])


def explain(notes: Sequence[Note], num_ranks: int) -> str:
    """Who failed first, with its last lines, and who said nothing: it may hang, or be on a node that is gone."""
    silent = sorted(
        {f"rank {rank}" for rank in range(num_ranks)} - {note.who for note in notes},
        key=lambda who: int(who.split()[1]),
    )
    if not notes:
        return f"training on {num_ranks} ranks failed, and none of them said why"
    first = notes[0]
    lines = first.text.strip().splitlines()[-LAST_LINES:]
    what = f" {lines[0]}" if len(lines) == 1 else "\n" + "\n".join(lines)
    nothing = (
        f"\nnothing was heard of {', '.join(silent)}: hung, or gone with its node"
        if silent and first.kind == "failed"
        else ""
    )
    return f"training on {num_ranks} ranks failed: {first.who} on {first.host}:{what}{nothing}"
