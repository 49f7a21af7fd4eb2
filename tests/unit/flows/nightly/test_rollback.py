"""What a rollback takes and refuses, on nights as tests/passed_nights.py has them."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.files import DataError
from flows.nightly.clone import make_clone
from flows.nightly.flow import kept_if_overtaken
from flows.nightly.record import nights
from flows.nightly.record_commit import save
from flows.nightly.registry import find, rollback, serving
from tests.factories.nights import NOW, make_repository, pass_night


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


def test_what_a_night_kept_out_is_refused(root: Path) -> None:
    good = pass_night(root, 1, "promoted", NOW)
    bad = pass_night(root, 2, "kept", NOW, ["auc: -0.1 to the champion"])
    with pytest.raises(
        DataError,
        match=r"v2.0.0 was kept out of production: auc: -0.1 to the champion; .* --anyway",
    ):
        rollback(root, "v2", None)
    assert serving(root) == good
    rollback(root, "v2", None, anyway=True)
    assert serving(root) == bad
    assert rollback(root, None, None).version == good
    assert serving(root) == good


def test_of_a_night_without_a_model_it_is_said_what_it_was(root: Path) -> None:
    pass_night(root, 1, "promoted", NOW)
    save(
        root,
        make_clone(root, "HEAD", None, {"number": 2}),
        replace(nights(root)[0], number=2, outcome="kept", version=None, reasons=["bad day"]),
    )
    assert find(root, "night/0001").number == 1
    for asked in ("v2", "2", "night/0002", "v2.0.0"):
        with pytest.raises(
            DataError,
            match=r"there is no model of that night. Night 2, day_1: promoted none: bad day",
        ):
            find(root, asked)


def test_a_night_that_a_rollback_overtook_promotes_nothing(root: Path) -> None:
    champion, other = pass_night(root, 1, "promoted", NOW), "0123456789ab"
    night = replace(nights(root)[0], number=2, champion=champion)
    assert kept_if_overtaken(night, champion) is night
    overtaken = kept_if_overtaken(night, other)
    assert overtaken.outcome == "kept"
    assert overtaken.reasons == [
        f"production: {other} serves by now, and this model was held against {champion}"
    ]
