"""Beginning with a model that there is: its weights, its tables grown to the vocabularies of today.

Vocabularies are append-only (features/encode/vocabulary_growth.py): a value that the model knows keeps its row, and those that it does not know come behind,
with the first values that they would have in a run from nothing.
"""

from pathlib import Path

from safetensors import safe_open

from common.config.model import Model
from common.files import DataError
from features.encode.feature_state import FeatureState
from training.inference.bundle import WEIGHTS, read_manifest, version_of
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.models.factory import groups_of

TABLES = "embeddings.tables."


class Start:
    """The bundle at params.yaml's train.warm_start_from. Its weights are read when they are wanted, a table at a time.

    Raises DataError for a bundle that is not whole, or whose model or vocabularies are no beginning of these.
    """

    def __init__(self, directory: Path, params: Model, state: FeatureState) -> None:
        _, before, known = read_manifest(directory)
        self.directory, self.version = directory, version_of(directory)
        was, now = (model.model_dump(exclude={"loss"}) for model in (before, params))
        if changed := [name for name in now if now[name] != was[name]]:
            raise self._refused(
                f"model.{changed[0]} is {now[changed[0]]!r} now, and was {was[changed[0]]!r}"
            )
        if known.layout != state.layout or known.schema.features != state.schema.features:
            raise self._refused("it has other features")
        for name, values in known.vocabularies.items():
            if not values.equals(state.vocabularies[name][: len(values)]):
                raise self._refused(
                    f"ids of {name} have changed since: vocabularies were fitted anew, or compacted"
                )
        self.groups = groups_of(before, known.cardinalities)
        groups = groups_of(params, state.cardinalities)
        if [(dim, len(sizes)) for sizes, dim in self.groups] != [
            (dim, len(sizes)) for sizes, dim in groups
        ]:
            raise self._refused("with these vocabularies model.tables gives columns other tables")

    def into(self, model: DLRM) -> None:
        """All weights; a row that is new stays as it is."""
        with safe_open(self.directory / WEIGHTS, framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith(TABLES)]  # noqa: SIM118
            model.load_state_dict({name: file.get_tensor(name) for name in names}, strict=False)
        self.rows_into(model)

    def rows_into(self, model: DLRM) -> None:
        """The tables' weights alone."""
        with safe_open(self.directory / WEIGHTS, framework="pt") as file:
            for g, (tables, (sizes, _)) in enumerate(
                zip(model.embeddings.tables, self.groups, strict=True)
            ):
                assert isinstance(tables, Tables)
                rows, first = file.get_slice(f"{TABLES}{g}.weight"), 0
                for k, (part, size) in enumerate(zip(tables.parts().values(), sizes, strict=True)):
                    tables.load_rows(k, part, rows[first : first + size])
                    first += size

    def _refused(self, reason: str) -> DataError:
        return DataError(
            f"{self.directory}: {reason}; train from nothing: set train.warm_start_from in params.yaml to null"
        )
