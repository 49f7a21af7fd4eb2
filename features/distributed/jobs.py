"""The base class of jobs, which checks the machine that runs one; and compressed splits of rows.

A job is a value that can be pickled. It does its work on any machine that has the same code.
"""

import hashlib
import json
import platform
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from common.code_hash import code_hashes
from common.config.loading import ConfigError
from features.distributed.exchange import Exchange
from features.encode.split import SplitCodes

# Computed when the module is loaded: a worker may run for months while its files are replaced.
RECIPE = hashlib.sha256(
    json.dumps(
        [code_hashes("features.distributed.cluster"), pl.__version__, pa.__version__]
    ).encode()
).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """A part of the work of the features stage.

    Attributes:
        title: What the job does, for people.
        exchange: The place of its input and output files.
        recipe: A hash of the code and the libraries of the machine that made the job.
    """

    title: str
    exchange: Exchange
    recipe: str = field(default=RECIPE, repr=False)

    def run(self) -> Any:
        """Do the work. The job may run twice, also on two machines at the same time.

        Raises:
            ConfigError: This machine has other code or libraries than the one that made the job.
        """
        if self.recipe != RECIPE:
            raise ConfigError(
                f"the worker on {platform.node()} runs another clickmill, polars or pyarrow; "
                "install the same versions there and restart it"
            )
        return self.work()

    @abstractmethod
    def work(self) -> Any:
        """Do the work of `run`, on a machine that has the same code."""


RunJobs = Callable[[Iterable[Job]], Iterator[Any]]
"""Runs jobs on any machines, and yields the result of each, in the order of the jobs."""


@dataclass(frozen=True)
class PackedCodes:
    """The split of each row of a day, compressed: most days have few stretches of equal splits."""

    compressed: bytes

    @classmethod
    def of(cls, codes: SplitCodes) -> "PackedCodes":
        """Compress the split of each row."""
        return cls(zlib.compress(codes.tobytes(), 1))

    def unpack(self) -> SplitCodes:
        """Return the split of each row."""
        return np.frombuffer(zlib.decompress(self.compressed), np.uint8)
