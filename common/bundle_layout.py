"""The layout of a bundle and the rule of its version, in one place that does not need torch.

A bundle is the folder that leaves the pipeline. It contains:

    weights.safetensors   the model's parameters; those of the further members of an ensemble are
                          in weights_2.safetensors, weights_3.safetensors, ...
    state/                the feature state, schema included
    history.csv           the training curves; of an ensemble, with the number of the member
    bundle.json           the manifest: what the model was made from, the SHA-256 of all other files
                          and of its own contents (common/checked_json.py)

The model version is the first 12 hex digits of the manifest's SHA-256. The manifest contains the
hash of every other file, so the version names the contents of the whole bundle.
"""

from pathlib import Path

from common.files import DataError, other_kind, sha256_file

MODEL = Path("artifacts/model")  # the bundle of the last training
MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
HISTORY = "history.csv"
STATE = "state"
# The manifest's key, in `data`, of the bundle that training took its first weights from.
WARM_START_KEY = f"start/{MANIFEST}"
# The beginning of the manifest's keys, in `data`, of the bundles that training was taught by.
TEACHERS_PREFIX = "teachers/"
# The key, in the metadata of a Parquet file of scores, of the version of the model that made them.
MODEL_VERSION_KEY = "clickmill.model"
VERSION_DIGITS = 12
# The remedy for a bundle that contains something else, which is not opened.
ONLY_FILES = "a bundle has only files and folders; copy it again from where it was made"


def weights_name(member: int) -> str:
    """Return the name of the file with the weights of a member, which is counted from 0."""
    return WEIGHTS if member == 0 else f"weights_{member + 1}.safetensors"


def teacher_key(number: int) -> str:
    """Return the manifest's key of a teacher, which is counted from 0."""
    return f"{TEACHERS_PREFIX}{number + 1}/{MANIFEST}"


def manifest_in(directory: Path) -> Path:
    """Return the path of a bundle's manifest.

    Raises:
        DataError: There is no manifest in the directory, or it is no file.
    """
    path = directory / MANIFEST
    try:
        kind = other_kind(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{directory}: no bundle here ({MANIFEST} not found); "
            f"name a directory that clickmill stage train made, {MODEL}"
        ) from None
    if kind:
        raise DataError(f"{path} is {kind}; {ONLY_FILES}")
    return path


def version_from_sha256(sha256: str) -> str:
    """Return the model version that belongs to the hex SHA-256 of a manifest."""
    return sha256[:VERSION_DIGITS]


def version_of(directory: Path) -> str:
    """Return the model version of the bundle in a directory.

    Raises:
        DataError: There is no manifest in the directory.
    """
    return version_from_sha256(sha256_file(manifest_in(directory)))
