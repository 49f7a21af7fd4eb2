"""Distillation: the scores that teachers give to the training rows (Hinton et al. 2015).

The teachers score the training rows once, before the training. Their scores are kept in
runs/teacher_scores/KEY: for each file of the training rows a Parquet file of the same name with the
column `score`, in row groups of the same sizes, and a manifest (common/artifact.py). KEY is a hash
of all that decides the scores, so another run with the same teachers and features reads them again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePath

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from common.artifact import Artifact, write_manifest
from common.bundle_layout import MODEL, STATE, manifest_in
from common.code_hash import code_hashes
from common.config.loading import ConfigError
from common.config.params import Params, Train
from common.files import DataError, remove, replaced, sha256_file
from common.layout import FEATURES
from common.logs import get_logger
from common.progress import Progress
from features.encode.earlier_ids import earlier_ids, state_fault
from features.encode.feature_state import FeatureState
from training.inference.bundle import Bundle, load_bundle
from training.inference.score import score
from training.kernels.compiler import kernels_name
from training.loop.batches import TEACHER_SCORE
from training.models.bags import Bag
from training.models.ensemble import Ensemble

log = get_logger("train")

TEACHER_SCORES = Path("runs/teacher_scores")
SCHEMA = pa.schema([pa.field(TEACHER_SCORE, pa.float32(), nullable=False)])
PACKAGES = ("torch", "numpy", "polars")


def teacher_scores(params: Params, root: Path) -> list[Path]:
    """Return the files with the teachers' scores of the training rows, which are made if need be.

    The feature files are not checked again (`training.stage.prepare`). Of several ranks, none makes
    the files: the train stage does so before it starts them. Scores by other teachers or of other
    features are removed.

    Args:
        params: The parameters of params.yaml.
        root: The project folder.

    Returns:
        A file for each file of the training rows that is read (`train.last_days`); empty if
        `train.distill` is null.

    Raises:
        DataError: A teacher is damaged, or has other features.
    """
    if params.train.distill is None:
        return []
    folder = root / TEACHER_SCORES
    features = Artifact.open(root / FEATURES, is_checked=True)
    names = features.names("train")[-(params.train.last_days or 0) :]
    directory = folder / _key(params.train.teacher_dirs(root), features, names)
    if not _is_whole(directory, names):
        with features.unchanged():
            _score_rows(params, root, features, names, directory)
    for other in folder.glob("*"):
        if other != directory:
            remove(other)
    scores = Artifact.open(directory, is_checked=True)
    return scores.paths(PurePath(name).name for name in names)


def check_teachers(params: Train, root: Path) -> None:
    """Check that the run is not taught by the bundle that it replaces.

    A second run would have another result.

    Raises:
        ConfigError: It is.
    """
    names = params.distill.teachers if params.distill else []
    for name, directory in zip(names, params.teacher_dirs(root), strict=True):
        if directory.resolve() == (root / MODEL).resolve():
            raise ConfigError(
                f"params.yaml: train.distill.teachers has {name}, which this stage replaces; copy"
                " it, to runs/models/VERSION"
            )


def load_teacher(directory: Path, state: FeatureState) -> Bundle:
    """Load a teacher, whose model takes the ids of today's feature state.

    Raises:
        DataError: The bundle is damaged, or its features or vocabularies do not fit today's.
    """
    teacher = load_bundle(directory)
    fault = state_fault(teacher.state, state)
    fitted = teacher.state.fitted
    if not fault and any(not fitted[name].equals(table) for name, table in state.fitted.items()):
        fault = "its transforms were fitted to other rows"
    if fault:
        raise DataError(
            f"{directory}: {fault}; name a teacher in params.yaml that was trained on these"
            " features, or set train.distill to null"
        )
    tables = {
        table: torch.from_numpy(ids)
        for table in state.schema.tables
        if (ids := earlier_ids(teacher.state, state, table)) is not None
    }
    model = EarlierIds(teacher.model, state, tables) if tables else teacher.model
    return replace(teacher, model=Ensemble([model]), state=state)


class EarlierIds(nn.Module):
    """A model of an earlier feature state, for rows that today's state has encoded.

    Args:
        model: The model, or an ensemble.
        state: Today's feature state.
        ids_of_tables: For each embedding table that has grown since, the earlier id of each of
            today's ids, int32.
    """

    def __init__(
        self, model: nn.Module, state: FeatureState, ids_of_tables: dict[str, Tensor]
    ) -> None:
        super().__init__()
        schema = state.schema
        self.model = model
        self.ids_of_columns = [
            ids_of_tables.get(schema.table_of[name]) for name in schema.single_valued_features
        ]
        self.ids_of_bags = [
            ids_of_tables.get(schema.table_of[one.name]) for one in schema.list_features
        ]

    def forward(self, dense_BN: Tensor, ids_BF: Tensor, bags: Sequence[Bag] = ()) -> Tensor:
        """Return the logits of a batch, (B,) float32; the arguments are those of `DLRM`."""
        ids_BF = ids_BF.clone()
        for column, ids in enumerate(self.ids_of_columns):
            if ids is not None:
                ids_BF[:, column] = ids[ids_BF[:, column]]
        bags = [
            bag if ids is None else bag._replace(values=ids[bag.values])
            for bag, ids in zip(bags, self.ids_of_bags, strict=True)
        ]
        logits_B: Tensor = self.model(dense_BN, ids_BF, bags)
        return logits_B


def _score_rows(
    params: Params, root: Path, features: Artifact, names: Sequence[str], directory: Path
) -> None:
    """Score the rows of feature files, and write the scores to a new directory."""
    state = FeatureState.load(features.folder / STATE)
    teachers = [load_teacher(path, state) for path in params.train.teacher_dirs(root)]
    versions = ", ".join(teacher.version for teacher in teachers)
    log.info(f"teachers {versions} score the training rows")
    together = replace(
        teachers[0], model=Ensemble(teacher.model for teacher in teachers), version=versions
    )
    paths = features.paths(names)
    num_rows = sum(pq.read_metadata(path).num_rows for path in paths)
    with replaced(directory) as scratch, Progress("teachers", num_rows, None) as progress:
        scratch.mkdir()
        for path in paths:
            _score_file(together, path, scratch / path.name, progress)
        write_manifest(scratch, {})


def _score_file(teachers: Bundle, path: Path, target: Path, progress: Progress) -> None:
    def name_row(k: int) -> str:
        return f"{path}: row {num_rows + k}"

    num_rows = 0
    # The scores are numbers that hardly ever repeat.
    options = {"compression": "none", "use_dictionary": False}
    with pq.ParquetFile(path) as file, pq.ParquetWriter(target, SCHEMA, **options) as writer:
        for group in range(file.num_row_groups):
            rows = pl.DataFrame(file.read_row_group(group, use_threads=False))
            scores_N = score(teachers, rows, name_row)
            writer.write_table(pa.table([scores_N], schema=SCHEMA), max(len(scores_N), 1))
            num_rows += len(scores_N)
            progress.update(len(scores_N))


def _is_whole(directory: Path, names: Sequence[str]) -> bool:
    """Return whether the scores of these feature files are there. Every byte is checked."""
    if not directory.exists():
        return False
    try:
        Artifact.open(directory).paths(PurePath(name).name for name in names)
    except DataError:
        log.warning(f"{directory} is damaged; the teachers score the training rows again")
        return False
    return True


def _key(teacher_dirs: Sequence[Path], features: Artifact, names: Sequence[str]) -> str:
    """Return the hash of all that decides the scores, 16 hexadecimal digits."""
    decides = {
        "teachers": [sha256_file(manifest_in(path)) for path in teacher_dirs],
        "features": {name: features.files[name].sha256 for name in names},
        "state": features.files[f"{STATE}/state.json"].sha256,
        "code": code_hashes("training.distillation"),
        "kernels": kernels_name(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
