"""Whether a bundle is what it will be when it serves: loaded by a process that knows nothing, it must score rows to the same bits."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from common.subprocess_tree import CommandFailed, run_streaming
from features.collect.stage import RAW, Manifest
from features.ingest.readers.read_log import read_log, write_head
from training.inference.bundle import Bundle
from training.inference.score import score

NUM_ROWS = 2000
SCORE = "import sys; from pathlib import Path; from training.predict import predict; predict(*map(Path, sys.argv[1:]))"


def probe(bundle: Bundle, model: Path, root: Path) -> str | None:
    """Score the first NUM_ROWS rows of the newest raw log here, and with the directory `model` alone in a fresh process; what is wrong."""
    newest = Manifest.read(root / RAW).files[-1].name
    schema, short_rows = bundle.state.schema, bundle.manifest.params["ingest"]["short_rows"]
    with TemporaryDirectory() as scratch:
        head, output = Path(scratch) / newest, Path(scratch) / f"{newest}.scores.parquet"
        write_head(root / RAW / newest, schema, NUM_ROWS, head)
        rows = [
            parsed.rows for parsed in read_log(head, schema, labelled=True, short_rows=short_rows)
        ]
        here_N = np.concatenate([score(bundle, bundle.state.transform(some)) for some in rows])
        try:
            command = [
                sys.executable,
                "-c",
                SCORE,
                *(str(path.resolve()) for path in (model, head, output)),
            ]
            run_streaming(command, lambda line: None, cwd=Path.cwd(), env={})
            there_N = pl.read_parquet(output)["score"].to_numpy()
        except CommandFailed as failed:
            return f"a fresh process could not score {newest}: {failed.tail[-1] if failed.tail else f'exit code {failed.code}'}"
    if len(here_N) != len(there_N):
        return f"a fresh process scored {len(there_N):,} of {len(here_N):,} rows of {newest}"
    apart = np.flatnonzero(here_N.view(np.uint32) != there_N.view(np.uint32))
    if not len(apart):
        return None
    k = int(apart[0])
    return f"{newest}: {len(apart):,} of {len(here_N):,} rows score otherwise in a fresh process, row {k} {there_N[k]:.9g} for {here_N[k]:.9g}"
