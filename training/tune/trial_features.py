"""The features of a study's trials.

The present features are linked into the study's folder, because a stage may replace them while the
study runs. A trial with other `features` parameters gets features of its own, which all trials with
the same parameters share.
"""

import hashlib
import json
import os
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from common.artifact import MANIFEST, Artifact
from common.config.params import Params
from common.files import DataError, replaced, sha256_file
from common.layout import FEATURES, PARQUET
from common.logs import get_logger
from features.dataset.stage import build_features

log = get_logger("tune")

LINKED = "present"


class TrialFeatures:
    """Finds or makes the features that a trial reads.

    Args:
        params: The parameters of params.yaml.
        root: The project folder.
        folder: The folder of the study's features.
    """

    def __init__(self, params: Params, root: Path, folder: Path) -> None:
        self.params, self.root, self.folder = params, root, folder
        self.parquet = sha256_file(Artifact.open(root / PARQUET).manifest_path)

    def root_for(self, params: Params) -> Path:
        """Return a folder with artifacts/features for these parameters.

        Raises:
            DataError: A file that they are made of is damaged or has changed since the study
                began, or the parameters leave a split without rows.
        """
        if params.features == self.params.features:
            return self._linked()
        values = params.features.model_dump(mode="json")
        name = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        root = self.folder / name
        if not root.exists():
            self._build(params, root)
        return root

    def _linked(self) -> Path:
        root = self.folder / LINKED
        if root.exists():
            return root
        features = Artifact.open(self.root / FEATURES)
        features.paths(features.files)  # checks every byte
        with replaced(root) as scratch:
            shutil.copytree(features.folder, scratch / FEATURES, copy_function=_link)
        return root

    def _build(self, params: Params, root: Path) -> None:
        manifest = self.root / PARQUET / MANIFEST
        if sha256_file(manifest) != self.parquet:
            raise DataError(
                f"{manifest} has changed since the study began; run clickmill tune again"
            )
        log.info(f"makes features with {_difference(self.params, params)}")
        with replaced(root) as scratch:
            parquet = scratch / PARQUET
            parquet.parent.mkdir(parents=True)
            parquet.symlink_to((self.root / PARQUET).resolve())
            with redirect_stdout(StringIO()):  # a progress bar inside that of the study
                build_features(params, scratch)
            parquet.unlink()


def _difference(base: Params, params: Params) -> str:
    """Return the parameters in which the `features` sections differ."""
    old, new = (one.features.model_dump(mode="json") for one in (base, params))
    return ", ".join(f"features.{key} {value}" for key, value in new.items() if value != old[key])


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
