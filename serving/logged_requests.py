"""The choice of the requests that go to the request log, and the way of their rows into it."""

import secrets
from collections.abc import Callable
from typing import Self

from features.online.encoded_rows import EncodedRows
from features.schema.schema import Schema
from serving.batching import Scores
from serving.log_keys import Keys, KeysOf
from serving.metrics import Metrics
from serving.options import LogRequests
from serving.request_log import ANSWER, LoggedModel, RequestLog, Role
from serving.served_model import ServedModel


class LoggedRequest:
    """A request that was chosen for the request log.

    Args:
        log: The request log.
        request_id: The id of the request.
        name: The name of the model that it asked for.
        find_keys: Returns the keys of its rows for a schema; None if the log has no keys.
    """

    def __init__(
        self,
        log: RequestLog,
        request_id: str,
        name: str,
        find_keys: Callable[[Schema], Keys | None] | None,
    ) -> None:
        self._log, self._request_id, self._name = log, request_id, name
        self._find_keys = find_keys
        self._keys: Keys | None = None

    def add(
        self, model: ServedModel, rows: EncodedRows, scores_G: Scores, role: Role = ANSWER
    ) -> None:
        """Log the rows as a model has scored them."""
        if self._find_keys is not None:  # a shadow finds those of the answer
            self._keys, self._find_keys = self._find_keys(model.schema), None
        logged = LoggedModel.of(self._name, model.version, model.schema)
        self._log.add(logged, self._request_id, rows, scores_G, keys=self._keys, role=role)


class RequestSampler:
    """Chooses requests for the request log of a worker.

    Args:
        options: The options of the log.
        metrics: Where its rows are counted.
    """

    def __init__(self, options: LogRequests, metrics: Metrics) -> None:
        self._log = RequestLog(
            options.directory,
            options.fraction,
            count=lambda outcome, num_rows: metrics.logged_rows.labels(outcome).inc(num_rows),
        )
        self._key = options.key

    @classmethod
    def of(cls, options: LogRequests | None, metrics: Metrics) -> Self | None:
        """Return the sampler that the options name; None if they name none."""
        return cls(options, metrics) if options else None

    def choose(self, request_id: bytes | None, name: str, keys_of: KeysOf) -> LoggedRequest | None:
        """Return a request if it is to be logged, else None.

        Args:
            request_id: Its id; None if the client gave none. It then gets a random one.
            name: The name of the model that it asks for.
            keys_of: Finds the keys of its rows.
        """
        text = request_id.decode() if request_id else secrets.token_hex(16)
        if not self._log.wants(text):
            return None
        key = self._key
        find_keys = None if key is None else lambda schema: keys_of(schema, key)
        return LoggedRequest(self._log, text, name, find_keys)

    def close(self) -> None:
        """Write what waits."""
        self._log.close()
