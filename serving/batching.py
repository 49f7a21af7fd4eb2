"""Batches: the rows of all requests that arrived in one turn of the event loop are scored together.

No request waits for others to come. While a batch is scored, the sockets gather the requests of the
next one, so batches grow with the load by themselves. A row's score has the same bits in every
batch (serving/runtime.py).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.online.encoded_rows import EncodedRows
from serving.served_model import ServedModel

MAX_BATCH_ROWS = 1024  # more rows at a time are not scored faster, but need more memory

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Waiting:
    """The rows of a request that wait for their scores."""

    model: ServedModel
    rows: EncodedRows
    scores: "asyncio.Future[Scores]"


class Batcher:
    """Scores rows on the thread of the event loop.

    Args:
        on_batch: It is called with the number of rows of each batch.
    """

    def __init__(self, on_batch: Callable[[int], None]) -> None:
        self._on_batch = on_batch
        self._waiting: list[Waiting] = []

    def score(self, model: ServedModel, rows: EncodedRows) -> "asyncio.Future[Scores]":
        """Return the scores (G,) of the good rows of a request, as soon as the loop's turn ends."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._score_all)  # it comes after all that the sockets have brought
        scores: asyncio.Future[Scores] = loop.create_future()
        self._waiting.append(Waiting(model, rows, scores))
        return scores

    def _score_all(self) -> None:
        of_model: dict[ServedModel, list[Waiting]] = {}
        for one in self._waiting:
            of_model.setdefault(one.model, []).append(one)
        self._waiting = []
        for model, waiting in of_model.items():
            batch: list[Waiting] = []
            num_rows = 0
            for one in waiting:
                if batch and num_rows + len(one.rows.ids_GF) > MAX_BATCH_ROWS:
                    self._score(model, batch)
                    batch, num_rows = [], 0
                batch.append(one)
                num_rows += len(one.rows.ids_GF)
            self._score(model, batch)

    def _score(self, model: ServedModel, batch: list[Waiting]) -> None:
        try:
            scores = score_rows(model, [one.rows for one in batch])
        except Exception as error:
            for one in batch:
                if not one.scores.done():
                    one.scores.set_exception(error)
            return
        self._on_batch(len(scores))
        end = 0
        for one in batch:
            begin, end = end, end + len(one.rows.ids_GF)
            if not one.scores.done():  # it is cancelled if the server stops
                one.scores.set_result(scores[begin:end])


def score_rows(model: ServedModel, rows: list[EncodedRows]) -> Scores:
    """Return the scores of the good rows of several requests, one after the other.

    Raises:
        ArithmeticError: A score is no number between 0 and 1.
    """
    if len(rows) == 1:
        dense_BN, ids_BF = rows[0].dense_GN, rows[0].ids_GF
    else:
        dense_BN = np.concatenate([one.dense_GN for one in rows])
        ids_BF = np.concatenate([one.ids_GF for one in rows])
    if not len(ids_BF):
        return np.zeros(0, np.float32)
    scores = model.runtime.scores(dense_BN, ids_BF)
    if not ((scores >= 0) & (scores <= 1)).all():  # a NaN is neither
        raise ArithmeticError(f"model {model.version} gave a score that is not in [0, 1]")
    return scores
