"""A name under which models are served: the champion that answers, and perhaps its challengers.

A canary answers a fraction of the requests. A shadow scores all requests after their answer was
sent; only the metrics show what it would have answered.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from common.logs import get_logger
from features.online.encoded_rows import EncodedRows
from features.online.encoder import RequestEncoder
from serving.batching import Scores, score_rows
from serving.metrics import CANARY, CHAMPION, SHADOW, Metrics, observe_all
from serving.options import MAX_SHADOW_BYTES, MAX_SHADOW_REQUESTS, ServeOptions
from serving.served_model import ModelSource, ServedModel

HASH_BYTES = 8

log = get_logger("serve")

Encode = Callable[[RequestEncoder], EncodedRows]
"""Encodes the rows of one request. Each model does so by its own vocabularies."""


@dataclass
class Service:
    """The models of one name.

    Attributes:
        name: The name.
        champion: The model that answers.
        shadow: The model that scores the same requests unseen; None if there is none.
        canary: The model that answers some requests; None if there is none.
        fraction: The fraction of the requests that the canary answers.
    """

    name: str
    champion: ModelSource
    shadow: ModelSource | None = None
    canary: ModelSource | None = None
    fraction: float = 0.0

    @property
    def sources(self) -> Iterator[tuple[str, ModelSource]]:
        """The role and the source of each model."""
        for role, source in (
            (CHAMPION, self.champion),
            (SHADOW, self.shadow),
            (CANARY, self.canary),
        ):
            if source is not None:
                yield role, source

    def canary_for(self, key: bytes) -> ServedModel | None:
        """Return the canary if it answers the request with this key, else None.

        The same key always has the same side, in all workers and after a restart.

        Args:
            key: The id of the request, or its body.
        """
        if self.canary is None or self.canary.model is None:
            return None
        digest = hashlib.blake2b(key, digest_size=HASH_BYTES).digest()
        share = int.from_bytes(digest, "big") / (1 << 8 * HASH_BYTES)
        return self.canary.model if share < self.fraction else None


@cache
def warn_once(name: str, role: str, version: str, error: str) -> None:
    """Log that a challenger fails: once, for it may fail for each request."""
    log.warning("%s: the %s %s cannot score (%s)", name, role, version, error)


def make_services(options: ServeOptions) -> dict[str, Service]:
    """Return the services that the options name, none of whose models is loaded yet."""
    services = {}
    for name, path in options.models.items():
        service = services[name] = Service(name, ModelSource(path))
        if name in options.shadows:
            service.shadow = ModelSource(options.shadows[name])
        if canary := options.canaries.get(name):
            service.canary, service.fraction = ModelSource(canary.path), canary.fraction
    return services


@dataclass(frozen=True)
class Scored:
    """The rows of a request with their scores, and the model that computed them."""

    model: ServedModel
    role: str
    rows: EncodedRows
    scores_G: Scores


class ShadowScorer:
    """Scores requests with shadows, in a thread, and compares the scores with the answers.

    Requests that come faster than the shadow scores them are not compared.

    Args:
        metrics: Where the comparison goes.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "shadow")
        self._waiting = 0
        self._waiting_bytes = 0

    def compare(
        self, service: Service, encode: Encode, num_bytes: int, rows: EncodedRows, scores_G: Scores
    ) -> None:
        """Score a request that was answered, if the service has a shadow.

        Args:
            service: The service.
            encode: Encodes the rows of the request.
            num_bytes: The size of the body, which is kept until it is scored.
            rows: The rows as they were encoded for the answer.
            scores_G: The scores of the answer.
        """
        if service.shadow is None or service.shadow.model is None:
            return
        is_full = self._waiting >= MAX_SHADOW_REQUESTS
        if is_full or self._waiting_bytes + num_bytes > MAX_SHADOW_BYTES:
            self._count(service, "dropped")
            return
        self._waiting += 1
        self._waiting_bytes += num_bytes
        model = service.shadow.model
        future = self._thread.submit(self._compare, service, model, encode, rows, scores_G)
        loop = asyncio.get_running_loop()
        future.add_done_callback(
            lambda _: loop.call_soon_threadsafe(self._done, num_bytes)  # counted by one thread
        )

    def close(self) -> None:
        """Forget the requests that wait."""
        self._thread.shutdown(cancel_futures=True)

    def _done(self, num_bytes: int) -> None:
        self._waiting -= 1
        self._waiting_bytes -= num_bytes

    def _count(self, service: Service, outcome: str) -> None:
        self._metrics.challenger_requests.labels(service.name, SHADOW, outcome).inc()

    def _compare(
        self,
        service: Service,
        model: ServedModel,
        encode: Encode,
        rows: EncodedRows,
        scores_G: Scores,
    ) -> None:
        try:
            others = encode(model.encoder)
            shadow_scores = score_rows(model, [others])
            _, ours, theirs = np.intersect1d(
                rows.row_numbers_G, others.row_numbers_G, assume_unique=True, return_indices=True
            )
            differences = np.abs(scores_G[ours] - shadow_scores[theirs])
        except Exception as error:  # whatever a challenger does, the answers go on
            self._count(service, "failed")
            warn_once(service.name, SHADOW, model.version, type(error).__name__)
            return
        self._count(service, "scored")
        observe_all(self._metrics.scores_of(service.name, SHADOW), shadow_scores)
        observe_all(self._metrics.shadow_difference.labels(service.name), differences)
