"""The smoke test: a model must give the same scores when another process loads it.

The other process gets nothing but the folder of the bundle, as a server would. If the model was
exported, a third process scores with its serving bundle.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from common.artifact import Artifact
from common.files import DataError
from common.layout import PARQUET, RAW, SERVING
from common.parquet import read_parquet
from common.subprocess_tree import CommandFailed, run_streaming
from features.collect.discovery import partition_folders
from features.ingest.readers.read_log import read_log, write_head
from features.ingest.stage import used_shards
from features.schema.schema import Partitions
from serving.serving_bundle import SERVING_MANIFEST, read_serving_manifest
from training.export.formats import with_formats
from training.export.parity import MAX_DIFFERENCE
from training.inference.bundle import Bundle
from training.inference.score import score

NUM_ROWS = 2000
# Arguments: the bundle, the log and the file of scores.
PREDICT = """
import sys
from pathlib import Path
from common.startup import search_garbage_less_often
search_garbage_less_often()
from training.inference.predict import predict
predict(*map(Path, sys.argv[1:]))
"""


def smoke_test(bundle: Bundle, model_dir: Path, root: Path) -> str | None:
    """Score the first rows of the newest raw log, in this process and in fresh ones.

    Args:
        bundle: The bundle as this process has loaded it.
        model_dir: The folder that the fresh process loads.
        root: The project folder, for the raw log, and for the serving bundle if it is that of this
            model.

    Returns:
        What is wrong, in one line, or None if all scores of the bundle are the same bit for bit,
        and those of the serving bundle but for what an export may change.
    """
    try:
        with _head_of_newest_log(bundle, root) as head:
            return _smoke_test_of_bundle(bundle, model_dir, head) or _smoke_test_of_export(
                bundle, root, head
            )
    except _FreshProcessError as error:
        return str(error)


def _smoke_test_of_bundle(bundle: Bundle, model_dir: Path, head: "_Head") -> str | None:
    return head.compare(head.expected(bundle), head.fresh(model_dir), 0, "a fresh process")


def _smoke_test_of_export(bundle: Bundle, root: Path, head: "_Head") -> str | None:
    """Compare artifacts/serving with PyTorch, if it was exported from this model."""
    if not (root / SERVING / SERVING_MANIFEST).is_file():
        return None
    try:
        manifest = read_serving_manifest(root / SERVING)
    except DataError as error:
        return str(error)
    if manifest.model_version != bundle.version:
        return None
    model = with_formats(bundle.model, manifest.tables, manifest.mlps)
    expected_N = head.expected(replace(bundle, model=model))
    where = f"a fresh process with {SERVING}"
    return head.compare(expected_N, head.fresh(root / SERVING), MAX_DIFFERENCE, where)


class _FreshProcessError(Exception):
    """A fresh process could not score."""


class _Head:
    """The first rows of a log.

    Args:
        path: The file with these rows.
        name: The name of the log.
        bundle: The model whose schema reads it.
        partitions: The values of columns that the folders of the log give.
    """

    def __init__(self, path: Path, name: str, bundle: Bundle, partitions: Partitions) -> None:
        self.path, self.name, self.partitions = path, name, partitions
        self.schema = bundle.state.schema
        self.short_rows: str = bundle.manifest.params["ingest"]["short_rows"]

    def expected(self, bundle: Bundle) -> NDArray[np.float32]:
        """Score the rows in this process."""
        scores = [
            score(bundle, bundle.state.encode(parsed.rows))
            for parsed in read_log(
                self.path,
                self.schema,
                labelled=True,
                short_rows=self.short_rows,
                partitions=self.partitions,
            )
        ]
        return np.concatenate(scores)

    def fresh(self, model_dir: Path) -> NDArray[np.float32]:
        """Score the rows in a fresh process.

        Raises:
            _FreshProcessError: It failed.
        """
        output = self.path.with_name(f"{self.path.name}.scores.parquet")
        paths = [str(path.resolve()) for path in (model_dir, self.path, output)]
        try:
            run_streaming(
                [sys.executable, "-c", PREDICT, *paths], lambda line: None, cwd=Path.cwd(), env={}
            )
        except CommandFailed as failed:
            reason = failed.tail[-1] if failed.tail else f"exit code {failed.code}"
            raise _FreshProcessError(
                f"a fresh process could not score {self.name}: {reason}"
            ) from None
        scores_N: NDArray[np.float32] = read_parquet(output)["score"].to_numpy()
        return scores_N

    def compare(
        self,
        expected_N: NDArray[np.float32],
        found_N: NDArray[np.float32],
        tolerance: float,
        where: str,
    ) -> str | None:
        """Return which scores differ by more than a tolerance, None if none does."""
        if len(found_N) != len(expected_N):
            return f"{where} scored {len(found_N):,} of {len(expected_N):,} rows of {self.name}"
        difference_N = np.abs(found_N.astype(np.float64) - expected_N)
        different = np.flatnonzero(~(difference_N <= tolerance))
        if not len(different):
            return None
        k = int(different[0])
        return (
            f"{self.name}: {len(different):,} of {len(expected_N):,} rows have another score in"
            f" {where}; row {k} has {found_N[k]:.9g} instead of {expected_N[k]:.9g}"
        )


@contextmanager
def _head_of_newest_log(bundle: Bundle, root: Path) -> Iterator[_Head]:
    """Write the first rows of the newest raw log to a temporary file."""
    shards = used_shards(Artifact.open(root / PARQUET))
    newest = next(shard for shard in reversed(shards) if shard.num_rows)
    with TemporaryDirectory() as scratch:
        # Columns that the folders of the log give are in the path of the head as well.
        folder = Path(scratch, *partition_folders(newest.partitions))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PurePosixPath(newest.name).name
        in_file = bundle.state.schema.without(newest.partitions)
        write_head(Artifact.open(root / RAW).path(newest.name), in_file, NUM_ROWS, path)
        yield _Head(path, newest.name, bundle, newest.partitions)
