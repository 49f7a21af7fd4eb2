"""The command `clickmill sample`: a generated log in a file or a pipe that the user named."""

import shutil
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from common.config.params import Params
from common.files import DataError
from common.progress import Progress
from common.user_files import user_output
from features.collect.discovery import SUFFIXES_BESIDE_SAMPLE
from features.sample.generate import write_sample
from features.schema.schema import load_schema


def write_named_sample(
    params: Params, root: Path, output: Path, num_rows: int, num_days: int | None, seed: int | None
) -> None:
    """Write a sample log and the files about it; into a pipe or a device the log alone.

    Args:
        params: The parameters.
        root: The repository, for the timing.
        output: The log to write; `-` is standard output.
        num_rows: The number of rows.
        num_days: The number of days; None is that of params.yaml.
        seed: The seed of the rows; None is that of params.yaml.

    Raises:
        DataError: The output, or a file beside it, must not be written.
    """
    checked = user_output(output, "--output", makes_folder=True)
    num_days = params.data.days if num_days is None else num_days
    seed = params.sample.seed if seed is None else seed
    schema = load_schema(params.data.schema_name)
    if checked.target:
        for suffix in SUFFIXES_BESIDE_SAMPLE:
            beside = checked.target.with_name(f"{checked.target.name}{suffix}")
            if user_output(beside, "--output", makes_folder=True).target != beside:
                raise DataError(f"--output {output}: {beside} is a link or a device; remove it")
        with Progress("sample", num_rows, root) as progress:
            write_sample(checked.target, num_rows, num_days, seed, schema, progress)
        return
    lines_to = redirect_stdout(sys.stderr) if checked.is_stdout else nullcontext()
    with lines_to, TemporaryDirectory() as folder:
        log = Path(folder) / "sample"
        with Progress("sample", num_rows, root) as progress:
            write_sample(log, num_rows, num_days, seed, schema, progress)
        with log.open("rb") as lines, checked.open() as stream:
            shutil.copyfileobj(lines, stream)
