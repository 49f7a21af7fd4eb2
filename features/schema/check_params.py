"""What of params.yaml the schema's columns, or the files that it names, show to be impossible: found before any stage runs."""

from collections.abc import Sequence
from pathlib import Path

from common.config.loading import ConfigError
from common.config.model import Interaction
from common.config.params import Params, load_params
from common.files import DataError
from features.schema.schema import load_schema


def load_declared(root: Path = Path()) -> Params:
    """root/params.yaml. Raises ConfigError for what cannot be trained or judged; DataError where train.warm_start_from is not there, as for
    any bundle to start from that is no good: a night then trains from nothing."""
    params = load_params(root / "params.yaml")
    check_declared(params)
    start = params.train.warm_start_from
    if start is not None and not (root / start).is_dir():
        raise DataError(
            f"params.yaml: train.warm_start_from: no directory {start!r}; name that of a bundle, or null to train from nothing"
        )
    return params


def check_declared(params: Params) -> None:
    """Raises ConfigError for a model, or a frequency_bucket_column, that the schema's columns are not made for."""
    schema = load_schema(params.data.schema_name).with_dense(params.features.dense)
    check_interaction(
        params.model.interaction,
        len(schema.categorical_features),
        params.model.embedding_dim,
        bool(schema.dense_features),
    )
    check_column(params.evaluate.frequency_bucket_column, schema.categorical_features)


def check_interaction(params: Interaction, F: int, D: int, has_dense: bool) -> None:
    """Raises ConfigError where F categorical features of D, and the dense ones' vector, are too few for it."""
    num_vectors = F + has_dense
    if params.name == "cross" and params.rank is not None and params.rank >= num_vectors * D:
        raise ConfigError(
            f"params.yaml: model.interaction.rank is {params.rank}, but the matrices are {num_vectors * D} wide ({num_vectors}"
            f" vectors of embedding_dim {D}): two factors save nothing; take less than half of that, or null for full matrices"
        )
    if params.name == "dot" and num_vectors < 2:
        raise ConfigError(
            f"params.yaml: model.interaction is dot, but there are no pairs: {F} categorical features"
            f" and {'some' if has_dense else 'no'} dense ones; take cat or cross"
        )


def check_column(column: str | None, names: Sequence[str]) -> None:
    """Raises ConfigError for a frequency_bucket_column that is none of the categorical features."""
    if column is not None and column not in names:
        known = ", ".join(names) or "none"
        raise ConfigError(
            f"params.yaml: evaluate.frequency_bucket_column: {column!r} is no categorical feature; there are: {known}"
        )
