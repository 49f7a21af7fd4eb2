"""The models whose bundles are at hand: their feature states make features of rows again."""

from collections.abc import Iterable
from pathlib import Path

from common.bundle_layout import MANIFEST, STATE, version_of
from common.files import DataError
from features.encode.feature_state import FeatureState
from serving.serving_bundle import SERVING_MANIFEST, read_serving_manifest


class KnownModels:
    """Finds the feature state of a served version.

    Args:
        paths: Bundles, serving bundles, and folders of them. Those that do not exist are ignored.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._directories: dict[str, Path] = {}
        for path in paths:
            for directory in [path, *(sorted(path.iterdir()) if path.is_dir() else [])]:
                if not directory.name.startswith("."):  # being written
                    self._add(directory)

    def _add(self, directory: Path) -> None:
        try:
            if (directory / MANIFEST).is_file():
                self._directories.setdefault(version_of(directory), directory)
            elif (directory / SERVING_MANIFEST).is_file():
                version = read_serving_manifest(directory).model_version
                self._directories.setdefault(version, directory)
        except DataError:  # a damaged bundle is as good as none
            return

    def state_of(self, version: str) -> FeatureState:
        """Return the feature state of a served version.

        The formats of the numbers, as in `1f2e3d4c5b6a-int8`, do not change the features.

        Raises:
            DataError: No bundle of this version is at hand, or its state is damaged.
        """
        directory = self._directories.get(version.partition("-")[0])
        if directory is None:
            raise DataError(
                "its bundle is not at hand, so neither drift nor skew is known (--model names it)"
            )
        return FeatureState.load(directory / STATE, "restore the bundle from where it was made")
