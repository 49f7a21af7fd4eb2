"""The check of params.yaml against the schema's columns, and against files that it names.

It finds what cannot work before any stage runs.
"""

from collections.abc import Sequence
from pathlib import Path

from common.config.loading import ConfigError, shorten
from common.config.model import Interaction, Model, PerColumn
from common.config.params import Params, load_params
from common.files import DataError
from common.user_files import variable_hint
from features.schema.schema import Schema, load_schema


def load_checked_params(root: Path = Path()) -> Params:
    """Read params.yaml and check it against the schema and against the files that it names.

    Args:
        root: The repository.

    Raises:
        ConfigError: A parameter is wrong, or does not fit the columns of the schema.
        DataError: The bundle `train.warm_start_from`, or one of `train.distill.teachers`, does not
            exist. This is a fault of the data, like any other fault of that bundle, so a nightly
            run then trains from scratch, without teachers.
    """
    params = load_params(root / "params.yaml")
    check_against_schema(params)
    bundle = params.train.warm_start_dir(root)
    if bundle is not None and not bundle.is_dir():
        raise DataError(
            "params.yaml: train.warm_start_from: no directory "
            f"{params.train.warm_start_from!r}{variable_hint(bundle)}; "
            "name that of a bundle, or null to train from scratch"
        )
    names = params.train.distill.teachers if params.train.distill else []
    for name, teacher in zip(names, params.train.teacher_dirs(root), strict=True):
        if not teacher.is_dir():
            raise DataError(
                f"params.yaml: train.distill.teachers: no directory {name!r}"
                f"{variable_hint(teacher)}; name those of bundles, or set train.distill to null"
            )
    return params


def check_against_schema(params: Params) -> None:
    """Check the parameters that depend on the columns of the schema.

    Raises:
        ConfigError: The model's tables or interaction, or `evaluate.frequency_bucket_column`, do
            not fit the columns of the schema.
    """
    schema = load_schema(params.data.schema_name).with_dense_transform(params.features.dense)
    check_layout(schema, params.features.ids)
    check_columns(params, schema)
    check_interaction(
        params.model.interaction,
        sum(dim > 0 for dim in params.model.column_dims(schema.categorical_features)),
        params.model.embedding_dim,
        bool(schema.dense_features),
    )


def check_columns(params: Params, schema: Schema) -> None:
    """Check the names of columns in params.yaml against the schema.

    Raises:
        ConfigError: `model.tables.dims` or `evaluate.frequency_bucket_column` names another column,
            or the dims do not fit together.
    """
    check_column_dims(params.model, schema)
    check_frequency_bucket_column(
        params.evaluate.frequency_bucket_column, schema.single_valued_features
    )


def check_layout(schema: Schema, layout: str) -> None:
    """Check that a layout of ids has what the schema declares.

    Raises:
        ConfigError: `features.ids` is `appearance`, and there are lists or shared tables.
    """
    shared = [name for names in schema.tables.values() if len(names) > 1 for name in names]
    affected = [*shared, *(one.name for one in schema.list_features if one.name not in shared)]
    if layout == "appearance" and affected:
        raise ConfigError(
            f"params.yaml: features.ids is appearance, but {', '.join(affected)} are lists or share"
            " a table, which the reference implementation does not have; take frequency or padded"
        )


def check_column_dims(params: Model, schema: Schema) -> None:
    """Check the dims of `model.tables: {name: per_column}` against the columns.

    Raises:
        ConfigError: A name is no categorical column, columns of one table have different dims that
            are not 0, or every column is left out.
    """
    if not isinstance(params.tables, PerColumn):
        return
    names = schema.categorical_features
    for name in params.tables.dims:
        if name not in names:
            raise ConfigError(
                f"params.yaml: model.tables.dims: {shorten(name)} is no categorical feature; there"
                f" are: {', '.join(names) or 'none'}"
            )
    for table, columns in schema.tables.items():
        dims = dict(zip(columns, params.column_dims(columns), strict=True))
        dims = {column: dim for column, dim in dims.items() if dim}
        if len(set(dims.values())) > 1:
            found = ", ".join(f"{column} {dim}" for column, dim in dims.items())
            raise ConfigError(
                f"params.yaml: model.tables.dims: the columns of table {table} read the same rows,"
                f" but have different dims: {found}; give them one dim, or 0 to leave one out"
            )
    if names and not any(params.column_dims(names)):
        raise ConfigError(
            "params.yaml: model.tables.dims: every categorical feature has dim 0, so none is left;"
            " keep at least one"
        )


def check_interaction(interaction: Interaction, F: int, D: int, has_dense: bool) -> None:
    """Check that an interaction works with the number and the size of its vectors.

    Args:
        interaction: The section `model.interaction`.
        F: The number of categorical features that are not left out, each of which is one vector.
        D: The size of a vector.
        has_dense: Whether there are dense features; all of them together are one more vector.

    Raises:
        ConfigError: There are too few vectors for `dot`, or the rank for `cross` is too large.
    """
    num_vectors = F + has_dense
    width = num_vectors * D
    if interaction.name == "cross" and interaction.rank is not None and interaction.rank >= width:
        raise ConfigError(
            f"params.yaml: model.interaction.rank is {interaction.rank}, but the matrices are "
            f"{width} wide ({num_vectors} vectors of embedding_dim {D}): two factors save nothing; "
            "take less than half of that, or null for full matrices"
        )
    if interaction.name == "dot" and num_vectors < 2:
        raise ConfigError(
            f"params.yaml: model.interaction is dot, but there are no pairs: {F} categorical "
            f"features and {'some' if has_dense else 'no'} dense ones; take cat or cross"
        )


def check_frequency_bucket_column(column: str | None, features: Sequence[str]) -> None:
    """Check that `evaluate.frequency_bucket_column` is a feature with one value, or null.

    Args:
        column: The parameter.
        features: The categorical features with one value in each row.

    Raises:
        ConfigError: It is another name.
    """
    if column is not None and column not in features:
        raise ConfigError(
            f"params.yaml: evaluate.frequency_bucket_column: {column!r} is no categorical feature "
            f"with one value; there are: {', '.join(features) or 'none'}"
        )
