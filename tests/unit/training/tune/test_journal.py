"""The journal survives half a line, and names any other damage."""

from pathlib import Path

import pytest

from common.files import DataError
from tests.factories.studies import outcome
from training.tune.journal import Journal, Trial
from training.tune.outcome import Outcome

TRIALS = [
    Trial(
        number=0,
        values={"model.top_mlp": [64, 32], "train.dense_optimizer.lr": 0.00123},
        outcome=outcome([0.5, 0.45]),
        notes={"NSGAIISampler:generation": 0},
    ),
    Trial(number=1, values={}, outcome=Outcome(result=None, error="Diverged: x"), notes={}),
]


@pytest.fixture
def journal(tmp_path: Path) -> Journal[Trial]:
    """A journal of two trials."""
    journal = Journal(tmp_path / "study" / "trials.jsonl", Trial)
    for trial in TRIALS:
        journal.append(trial)
    return journal


def test_what_is_written_is_read(journal: Journal[Trial]) -> None:
    assert journal.read() == TRIALS
    assert Journal(journal.path.with_name("none"), Trial).read() == []


def test_every_cut_of_the_last_line_loses_that_line_alone(journal: Journal[Trial]) -> None:
    whole = journal.path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        journal.path.write_bytes(whole[:end])
        assert journal.read() == TRIALS[:1]
        assert journal.path.read_bytes() == whole[:end], "another process may be writing it"
        journal.remove_half_line()
        assert journal.path.read_bytes() == whole[:first]
        journal.append(TRIALS[1])
        assert journal.path.read_bytes() == whole


def test_every_flipped_byte_is_noticed(journal: Journal[Trial]) -> None:
    whole = journal.path.read_bytes()
    for place in range(len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        journal.path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"line \d+ is damaged; remove it"):
            journal.read()


def test_rewrite_replaces_the_file(journal: Journal[Trial]) -> None:
    journal.rewrite(TRIALS[1:])
    assert journal.read() == TRIALS[1:]


def test_a_line_of_another_version_is_one_line_of_error(journal: Journal[Trial]) -> None:
    class Old(Trial):
        extra: int

    Journal(journal.path, Old).append(Old(**TRIALS[0].model_dump(), extra=1))
    with pytest.raises(DataError, match="line 3: extra: no such key"):
        journal.read()
