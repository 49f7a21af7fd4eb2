"""The features of a study's trials.

The present features and shards are linked into the study's folder, because a stage may replace them
while the study runs. A trial with other `features` parameters gets features of its own, which all
trials with the same parameters share.
"""

import hashlib
import json
import os
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from common.artifact import Artifact
from common.config.params import Params
from common.files import replaced
from common.layout import FEATURES, PARQUET
from common.logs import get_logger
from features.dataset.stage import build_features
from training.distillation import teacher_scores

log = get_logger("tune")

PRESENT = "present"


class TrialFeatures:
    """Finds or makes the features that a trial reads.

    Args:
        params: The parameters of params.yaml.
        root: The project folder.
        folder: The folder of the study's features.
    """

    def __init__(self, params: Params, root: Path, folder: Path) -> None:
        self.params, self.root, self.folder = params, root, folder

    def link(self, *, with_shards: bool) -> None:
        """Link the present features into the folder, unless an earlier process has done so.

        Args:
            with_shards: Link the shards too, of which other features are made.

        Raises:
            DataError: A file is damaged.
        """
        self._link(FEATURES)
        if with_shards:
            self._link(PARQUET)

    def root_for(self, params: Params) -> Path:
        """Return a folder with artifacts/features for these parameters.

        Raises:
            DataError: A shard is damaged, the parameters do not fit the log, or a teacher does not
                fit the features.
        """
        root = self.folder / PRESENT
        if params.features != self.params.features:
            root = self.folder / _hash(params.features.model_dump(mode="json"))
            if not root.exists():
                self._build(params, root)
        return root if params.train.distill is None else self._with_teachers(params, root)

    def _with_teachers(self, params: Params, root: Path) -> Path:
        """Return a folder with the same features and the teachers' scores of the training rows.

        The scores are made here, because workers would make them at the same time.
        """
        assert params.train.distill is not None
        teachers = _hash(params.train.distill.model_dump(mode="json"))
        other = root.with_name(f"{root.name}_taught_{teachers}")
        if not other.exists():
            with replaced(other) as scratch:
                features = scratch / FEATURES
                features.parent.mkdir(parents=True)
                features.symlink_to((root / FEATURES).resolve())
        teacher_scores(params, other)
        return other

    def _link(self, path: Path) -> None:
        target = self.folder / PRESENT / path
        if target.exists():
            return
        artifact = Artifact.open(self.root / path)
        artifact.paths(artifact.files)  # checks every byte
        with replaced(target) as scratch:
            shutil.copytree(artifact.folder, scratch, copy_function=_link_or_copy)

    def _build(self, params: Params, root: Path) -> None:
        log.info(f"makes features with {_difference(self.params, params)}")
        with replaced(root) as scratch:
            shards = scratch / PARQUET
            shards.parent.mkdir(parents=True)
            shards.symlink_to((self.folder / PRESENT / PARQUET).resolve())
            with redirect_stdout(StringIO()):  # a progress bar inside that of the study
                build_features(params, scratch)
            shards.unlink()


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _difference(base: Params, params: Params) -> str:
    """Return the parameters in which the `features` sections differ."""
    old, new = (one.features.model_dump(mode="json") for one in (base, params))
    return ", ".join(f"features.{key} {value}" for key, value in new.items() if value != old[key])


def _link_or_copy(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
