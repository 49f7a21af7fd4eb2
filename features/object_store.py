"""Object stores, such as S3, that the machines of a cluster share (`dask.shared_storage`).

Credentials and the endpoint come from each machine's environment, never from params.yaml.
"""

from functools import cache
from typing import Any

import fsspec

from common.config.loading import ConfigError

SHARDS = "shards"  # the folder in the store with the shards of artifacts/parquet


def shard_in_store(sha256: str) -> str:
    """Return the name in the store of the shard with this SHA-256."""
    return f"{SHARDS}/{sha256}.parquet"


@cache
def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a store, and the path of the URL in it.

    Args:
        url: Such as s3://BUCKET/PREFIX.

    Raises:
        ConfigError: The URL contains a password, or fsspec does not know its kind.
    """
    if "@" in url:  # the message does not repeat the URL, because it contains a password
        raise ConfigError(
            "dask.shared_storage has an @ in it: user and password come from each "
            "machine's environment, not from params.yaml"
        )
    options = {"auto_mkdir": True} if url.startswith("file:") else {}
    try:
        # A cache of listings would hide what other machines have changed since.
        store, path = fsspec.url_to_fs(url, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"dask.shared_storage: {error}; give s3://BUCKET/PREFIX or another URL that fsspec"
            " knows"
        ) from None
    return store, path.rstrip("/")
