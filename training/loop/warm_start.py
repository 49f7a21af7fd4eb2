"""Warm starts: training that begins with an earlier bundle, grown to today's vocabularies.

Vocabularies only grow (features/encode/vocabulary_growth.py): a value that the earlier model knows
keeps its row, and the rows of new values follow, with the initial values that they would have in a
run from scratch.
"""

from pathlib import Path

from common.bundle_layout import version_of, weights_name
from common.config.model import Model
from common.files import DataError
from features.encode.earlier_ids import state_fault
from features.encode.feature_state import FeatureState
from training.inference.bundle import read_manifest
from training.inference.weights_file import check_finite, check_shapes, read_shapes
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.models.factory import groups_in_order, inputs_of
from training.tensor_files import map_tensors

TABLES = "embeddings.tables."


class WarmStart:
    """The bundle that a run starts from; its weights are read when they are loaded.

    Args:
        directory: The path of the bundle.
        params: The section `model` of params.yaml.
        state: The feature state of today.
        ensemble_size: `train.ensemble_size`. A bundle of another number of models is refused.
        member: The member, from 0, of the bundle that a member of today's ensemble starts from.

    Raises:
        DataError: The bundle is damaged, or its model, features or vocabularies do not fit today's.
    """

    def __init__(
        self,
        directory: Path,
        params: Model,
        state: FeatureState,
        ensemble_size: int = 1,
        member: int = 0,
    ) -> None:
        manifest, old_params, old_state = read_manifest(directory)
        self.directory, self.version = directory, version_of(directory)
        self.path = directory / weights_name(member)
        if manifest.compression is not None:
            raise DataError(
                f"{directory}: it is compressed, and training cannot go on from rounded weights;"
                " name the bundle that it was made from, model"
                f" {manifest.compression.source_version}, in train.warm_start_from"
            )
        if manifest.num_members != ensemble_size:
            raise self._refused(
                f"train.ensemble_size is {ensemble_size} now, and the bundle has"
                f" {manifest.num_members} models; take a bundle of {ensemble_size}, or"
                f" {manifest.num_members} as train.ensemble_size"
            )
        was, now = (model.model_dump(exclude={"loss"}) for model in (old_params, params))
        if changed := [name for name in now if now[name] != was[name]]:
            raise self._refused(
                f"model.{changed[0]} is {now[changed[0]]!r} now, and was {was[changed[0]]!r}"
            )
        if fault := state_fault(old_state, state):
            raise self._refused(fault)
        inputs = inputs_of(state.schema)  # those of the old features are the same
        self.groups = groups_in_order(old_params, old_state.cardinalities, inputs)
        groups = groups_in_order(params, state.cardinalities, inputs)
        if [(dim, len(sizes)) for sizes, dim in self.groups] != [
            (dim, len(sizes)) for sizes, dim in groups
        ]:
            raise self._refused("with these vocabularies model.tables gives columns other tables")

    def load_weights(self, model: DLRM) -> None:
        """Load all weights into a model; rows that the bundle does not have stay as they are.

        Raises:
            DataError: The bundle has other tensors than its parameters say, or a value that is NaN
                or infinite.
        """
        path = self.path
        expected = {
            name: tuple(tensor.shape)
            for name, tensor in model.state_dict().items()
            if not name.startswith(TABLES)
        }
        of_tables = {
            f"{TABLES}{g}.weight": (sum(sizes), dim) for g, (sizes, dim) in enumerate(self.groups)
        }
        check_shapes(path, read_shapes(path), expected | of_tables)
        stored = map_tensors(path)
        weights = {name: stored[name] for name in expected}
        for name, tensor in weights.items():
            check_finite(path, name, tensor)
        model.load_state_dict(weights, strict=False)
        self.load_tables(model)

    def load_tables(self, model: DLRM) -> None:
        """Load the embedding tables alone.

        Raises:
            DataError: A value is NaN or infinite.
        """
        stored = map_tensors(self.path)
        for g, (tables, (sizes, _)) in enumerate(
            zip(model.embeddings.tables, self.groups, strict=True)
        ):
            assert isinstance(tables, Tables)
            name, first = f"{TABLES}{g}.weight", 0
            for k, (part, size) in enumerate(zip(tables.parts().values(), sizes, strict=True)):
                rows = stored[name][first : first + size]
                check_finite(self.path, f"{name}, rows from {first} on", rows)
                tables.load_rows(k, part, rows)
                first += size

    def _refused(self, reason: str) -> DataError:
        return DataError(
            f"{self.directory}: {reason}; to train from scratch, set train.warm_start_from in"
            " params.yaml to null"
        )
