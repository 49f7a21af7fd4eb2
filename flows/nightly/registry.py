"""Versions of the model, by GTO's conventions: dlrm@v7.0.0 is the model of night 7, dlrm#production#3 the third to serve.

Tags in git are all there is to it; artifacts/production, a link to a copy of the bundle, follows them.
"""

import getpass
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import gto.api
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.index import DataIndexDirError

from common.bundle_layout import MANIFEST, MODEL, version_of
from common.files import DataError, replaced
from flows.nightly.git import author, git, tags, unlock_tags
from flows.nightly.record import NIGHT, PRODUCTION, Night, nights

NAME, STAGE = "dlrm", "production"
MODEL_OUTPUT = MODEL.as_posix()  # the name of the stage output in dvc.lock
MODELS = Path("artifacts/models")  # copies of the bundles that serve or served, by version


@dataclass(frozen=True)
class Assignment:
    """A model that was put into production: the number of the event, the night that made the model, when and why."""

    number: int
    night: int
    at: datetime
    why: str


def assignments(root: Path) -> list[Assignment]:
    """In the order in which they were made; the last is in production."""
    models = dict(
        line.split("\0")
        for line in _refs(root, f"{NAME}@*", "%(*objectname)%00%(refname:lstrip=2)")
    )
    found = []
    for line in _refs(
        root,
        f"{NAME}#{STAGE}#*",
        "%(refname)%00%(*objectname)%00%(taggerdate:iso-strict)%00%(subject)",
    ):
        tag, commit, at, why = line.split("\0")
        found.append(
            Assignment(
                int(tag.rpartition("#")[2]),
                night_of(models[commit].removeprefix(f"{NAME}@")),
                datetime.fromisoformat(at),
                why,
            )
        )
    return sorted(found, key=lambda one: one.number)


def _refs(root: Path, pattern: str, fields: str) -> list[str]:
    """A line for each tag that matches."""
    return git(root, "for-each-ref", f"refs/tags/{pattern}", f"--format={fields}").splitlines()


def night_of(model: str) -> int:
    """v7.0.0 -> 7."""
    return int(model.removeprefix("v").partition(".")[0])


def find(root: Path, wanted: str) -> Night:
    """The night that made a model: v7.0.0, v7, 7, night/0007, or the beginning of the bundle's version; DataError: there is none."""
    done = nights(root)
    made = [night for night in done if night.version]
    found = [
        night
        for night in done
        if wanted in (f"v{night.number}.0.0", f"v{night.number}", str(night.number), night.tag)
    ]
    found = found or [
        night for night in made if str(night.version).startswith(wanted) and len(wanted) >= 4
    ]
    if found and not found[-1].version:
        raise DataError(f"there is no model of that night. {found[-1].headline}")
    if not found:
        known = ", ".join(f"{night.model} ({night.version})" for night in made[-5:]) or "none yet"
        raise DataError(f"no model {wanted!r} is registered; the newest are {known}")
    return found[-1]


def register(root: Path, done: list[Night]) -> None:
    """The tags of their models, where they are not there."""
    known, (name, address) = tags(root, f"{NAME}@*"), author(root)
    for night in done:
        if night.model and f"{NAME}@{night.model}" not in known:
            gto.api.register(
                str(root),
                NAME,
                night.tag,
                version=night.model,
                message=night.headline,
                author=name,
                author_email=address,
            )


def assign(root: Path, night: Night, why: str) -> None:
    """Put its model into production: the tag, then the link. Raises DataError where its bundle is nowhere, before anything is changed."""
    restore(root, night)
    name, address = author(root)
    gto.api.assign(
        str(root),
        NAME,
        STAGE,
        version=night.model,
        message=why,
        force=True,
        author=name,
        author_email=address,
    )
    link(root)


def settle(root: Path) -> None:
    """Finish what a killed night left undone, which is known from its record alone: the tag night/NNNN comes first."""
    unlock_tags(root, NIGHT, f"{NAME}@", f"{NAME}#{STAGE}#")
    done = nights(root)
    register(root, done)
    if (
        done
        and done[-1].outcome == "promoted"
        and done[-1].number not in {one.night for one in assignments(root)}
    ):
        assign(root, done[-1], done[-1].headline)
    link(root)


def link(root: Path) -> None:
    """Have artifacts/production be the bundle that the tags say, by one rename: a reader finds the old one or the new one."""
    assigned = assignments(root)
    if not assigned:
        return
    night = Night.at(root, f"{NIGHT}{assigned[-1].night:04d}")
    assert night.version
    target = Path(MODELS.name) / night.version
    restore(root, night)
    if not (root / PRODUCTION).is_symlink() or (root / PRODUCTION).readlink() != target:
        scratch = root / PRODUCTION.with_name(f".{PRODUCTION.name}.tmp")
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(target)
        scratch.replace(root / PRODUCTION)


def get(root: Path, path: str, night: Night, target: Path) -> None:
    """An output of a night, as it was then, from DVC's cache or its remote. Raises DataError where it is in neither."""
    try:
        Repo.get(str(root), path, out=str(target), rev=night.tag)
    except (DvcException, DataIndexDirError, FileNotFoundError) as error:
        raise DataError(
            f"{path} of {night.tag} is neither in DVC's cache nor at its remote ({error}); was it pruned?"
        ) from None


def restore(root: Path, night: Night) -> Path:
    """Its bundle in artifacts/models, from DVC's cache or its remote where it is not there."""
    assert night.version
    directory = root / MODELS / night.version
    if not _is(directory, night.version):
        with replaced(directory) as scratch:
            get(root, MODEL_OUTPUT, night, scratch)
            if not _is(scratch, night.version):
                raise DataError(
                    f"{night.tag}: {MODEL} is not model {night.version}; was the tag moved?"
                )
    return directory


def serving(root: Path) -> str | None:
    """The version of the model in production."""
    return (root / PRODUCTION).resolve().name if assignments(root) else None


def rollback(root: Path, wanted: str | None, why: str | None, *, anyway: bool = False) -> Night:
    """Put an earlier model into production, that before the present one if none is named.

    Raises DataError where there is none, and for one that its night kept out, unless anyway.
    """
    assigned = assignments(root)
    if not assigned:
        raise DataError("no model is in production yet; a night puts the first there")
    now = assigned[-1].night
    if wanted is None:
        before = [one.night for one in assigned if one.night != now]
        if not before:
            raise DataError(
                f"no other model than v{now}.0.0 has been in production; name one of `clickmill models`"
            )
        wanted = str(before[-1])
    night = find(root, wanted)
    if night.number == now:
        raise DataError(f"{night.model} is in production already")
    if night.outcome != "promoted" and not anyway:
        raise DataError(
            f"{night.model} was kept out of production: {'; '.join(night.reasons)}; to have it serve all the same, say --anyway"
        )
    assign(
        root,
        night,
        f"rollback from v{now}.0.0 by {getpass.getuser()}" + (f": {why}" if why else ""),
    )
    return night


def _is(directory: Path, version: str) -> bool:
    return (directory / MANIFEST).is_file() and version_of(directory) == version
