"""The smoke test: a bundle must give the same scores when another process loads it.

The other process gets nothing but the folder of the bundle, as a server would.
"""

import sys
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from common.artifact import Artifact
from common.layout import PARQUET, RAW
from common.parquet import read_parquet
from common.subprocess_tree import CommandFailed, run_streaming
from features.collect.discovery import partition_folders
from features.ingest.readers.read_log import read_log, write_head
from features.ingest.stage import used_shards
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
    """Score the first rows of the newest raw log, in this process and in a fresh one.

    Args:
        bundle: The bundle as this process has loaded it.
        model_dir: The folder that the fresh process loads.
        root: The project folder, for the raw log.

    Returns:
        What is wrong, in one line, or None if all scores are the same bit for bit.
    """
    shards = used_shards(Artifact.open(root / PARQUET))
    newest = next(shard for shard in reversed(shards) if shard.num_rows)
    log_name = newest.name
    schema, short_rows = bundle.state.schema, bundle.manifest.params["ingest"]["short_rows"]
    with TemporaryDirectory() as scratch:
        # Columns that the folders of the log give are in the path of the head as well.
        folder = Path(scratch, *partition_folders(newest.partitions))
        folder.mkdir(parents=True, exist_ok=True)
        head = folder / PurePosixPath(log_name).name
        output = head.with_name(f"{head.name}.scores.parquet")
        in_file = schema.without(newest.partitions)
        write_head(Artifact.open(root / RAW).path(log_name), in_file, NUM_ROWS, head)
        scores = [
            score(bundle, bundle.state.encode(parsed.rows))
            for parsed in read_log(
                head, schema, labelled=True, short_rows=short_rows, partitions=newest.partitions
            )
        ]
        paths = [str(path.resolve()) for path in (model_dir, head, output)]
        try:
            run_streaming(
                [sys.executable, "-c", PREDICT, *paths], lambda line: None, cwd=Path.cwd(), env={}
            )
        except CommandFailed as failed:
            reason = failed.tail[-1] if failed.tail else f"exit code {failed.code}"
            return f"a fresh process could not score {log_name}: {reason}"
        fresh_N = read_parquet(output)["score"].to_numpy()
    expected_N = np.concatenate(scores)
    if len(expected_N) != len(fresh_N):
        return f"a fresh process scored {len(fresh_N):,} of {len(expected_N):,} rows of {log_name}"
    different = np.flatnonzero(expected_N.view(np.uint32) != fresh_N.view(np.uint32))
    if not len(different):
        return None
    k = int(different[0])
    return (
        f"{log_name}: {len(different):,} of {len(expected_N):,} rows have another score in a fresh "
        f"process; row {k} has {fresh_N[k]:.9g} instead of {expected_N[k]:.9g}"
    )
