"""The ASGI application: it answers requests with scores.

    POST /score                    rows as JSON or as lines of a log, to the first model
    POST /models/NAME/score        the same, to a model by its name
    POST /v2/models/NAME/infer     column tensors (the Open Inference Protocol)
    GET  /health, /ready, /metrics, and those of the Open Inference Protocol

docs/guides/serving.md describes them.
"""

import asyncio
import hmac
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any

import orjson

from common.logs import get_logger
from features.online.encoded_rows import RequestError
from serving import open_inference
from serving.access_log import AccessLog, now
from serving.batching import Batcher
from serving.http import (
    RETRY,
    Answer,
    ClientGoneError,
    Headers,
    HttpError,
    Receive,
    Scope,
    Send,
    id_of,
    length_of,
    media_type_of,
    parse_json,
    read_body,
    shown,
    too_large,
)
from serving.log_keys import KeysOf, keys_of_lines, keys_of_records
from serving.logged_requests import LoggedRequest, RequestSampler
from serving.metrics import CANARY, CHAMPION, CONTENT_TYPE, Metrics, observe_all
from serving.options import FIRST_LOAD_S, MAX_BYTES_AT_WORK, POLL_S, ServeOptions
from serving.served_model import ModelSource, ServedModel
from serving.service import Encode, Scored, Service, ShadowScorer, make_services, warn_once

ROWS = "rows"
JSON_TYPE = "application/json"
LINE_TYPES = ("text/plain", "text/tab-separated-values", "text/csv", "application/x-ndjson")
BINARY_TENSORS = b"inference-header-content-length"  # an extension of the protocol
OPEN_TO_ALL = ("/health", "/ready", "/v2/health/live", "/v2/health/ready")  # for probes
CLIENT_GONE = 499  # nobody gets this code; it is for the log
NO_MODEL = "-"  # the label of requests that name no model

log = get_logger("serve")


@dataclass(frozen=True)
class Request:
    """The head of a request."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    id: bytes | None
    receive: Receive

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> "Request":
        """Return the head of a request of ASGI."""
        headers = dict(scope["headers"])
        return cls(scope["method"], scope["path"], headers, id_of(headers), receive)


Handler = Callable[[Request], Awaitable[Answer]]


class App:
    """The application of one worker.

    Args:
        options: What to serve.
        access_log: Where each request is logged; None: nowhere.
        metrics: What is counted.
    """

    def __init__(
        self, options: ServeOptions, metrics: Metrics, access_log: AccessLog | None
    ) -> None:
        self._options = options
        self._metrics = metrics
        self._access_log = access_log
        self._token = options.token.encode() if options.token else None
        self.services = make_services(options)
        self._batcher = Batcher(metrics.batch_rows.observe)
        self._shadows = ShadowScorer(metrics)
        self._sampler = RequestSampler.of(options.log_requests, metrics)
        self._requests_at_work = 0
        self._bytes_at_work = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or start or stop with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(Request.of(scope, receive), scope, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def start(self) -> None:
        """Load the models, and follow their paths from now on."""
        first = asyncio.Event()
        self._tasks = [asyncio.create_task(self._follow_paths(first))]
        if self._access_log:
            self._tasks.append(asyncio.create_task(self._access_log.run()))
        with suppress(TimeoutError):  # a large model may take longer; it is 503 until then
            await asyncio.wait_for(first.wait(), FIRST_LOAD_S)

    async def stop(self) -> None:
        """Stop what runs beside the requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._shadows.close()
        if self._sampler:
            await asyncio.to_thread(self._sampler.close)

    async def _follow_paths(self, first: asyncio.Event) -> None:
        while True:
            for service in self.services.values():
                for role, source in service.sources:
                    await self.refresh(service.name, role, source)
            first.set()
            await asyncio.sleep(POLL_S)

    async def refresh(self, name: str, role: str, source: ModelSource) -> None:
        """Load what a path leads to in a thread, if it leads to something new."""
        before = source.model
        outcome = await asyncio.to_thread(source.refresh)
        if outcome is None:
            return
        metrics = self._metrics
        metrics.loads.labels(name, role, "loaded" if outcome else "refused").inc()
        metrics.faults.labels(name, role).set(source.fault is not None)
        metrics.ready.labels(name, role).set(source.model is not None)
        if source.model is not None:
            if before is not None:
                metrics.info.labels(name, role, before.version).set(0)
            metrics.info.labels(name, role, source.model.version).set(1)

    async def _serve(self, request: Request, scope: Scope, send: Send) -> None:
        begin_s = time.perf_counter()
        service: Service | None = None
        try:
            self._authorize(request)
            service, handle = self._route(request)
            answer = await handle(request)
        except HttpError as error:
            answer = Answer.of_error(error)
        except ClientGoneError:
            answer = Answer(CLIENT_GONE, b"")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # its text may contain values of features
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s while answering:\n%s", type(error).__name__, place)
            answer = Answer.of_error(HttpError(500, "the server failed; its log says where"))
        if answer.status != CLIENT_GONE:
            await answer.send(send, request.id)
        if answer.after:
            answer.after()
        self._record(request, scope, service, answer, time.perf_counter() - begin_s)

    def _record(
        self,
        request: Request,
        scope: Scope,
        service: Service | None,
        answer: Answer,
        seconds: float,
    ) -> None:
        """Count a request and log it."""
        name = service.name if service else NO_MODEL
        metrics = self._metrics
        metrics.requests_of(name, str(answer.status)).inc()
        if answer.role is not None:
            metrics.seconds_of(name).observe(seconds)
            metrics.rows_of(name, "scored").inc(answer.num_rows - answer.num_bad)
            if answer.num_bad:
                metrics.rows_of(name, "malformed").inc(answer.num_bad)
        if self._access_log is None:
            return
        self._access_log.add(
            {
                "time": now(),
                "client": scope["client"][0] if scope.get("client") else None,
                "request_id": request.id.decode() if request.id else None,
                "method": request.method,
                "path": shown(request.path),
                "status": answer.status,
                "model": service.name if service else None,
                "version": answer.version,
                "role": answer.role,
                "rows": answer.num_rows,
                "malformed": answer.num_bad,
                "milliseconds": round(1000 * seconds, 3),
            }
        )

    def _authorize(self, request: Request) -> None:
        """Check the token.

        Raises:
            HttpError: It is missing or wrong.
        """
        if request.path not in OPEN_TO_ALL and not self._is_authorized(request):
            headers: Headers = [(b"www-authenticate", b"Bearer")]
            raise HttpError(
                401, "the header Authorization: Bearer TOKEN is missing or wrong", headers
            )

    def _is_authorized(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"

    def _route(self, request: Request) -> tuple[Service | None, Handler]:
        """Return the service that a path names, and what answers it.

        Raises:
            HttpError: There is no such path or model, or the path has another method.
        """
        service, methods, handle = self._find(request.path)
        if request.method not in methods:
            allowed: Headers = [(b"allow", ", ".join(methods).encode())]
            raise HttpError(405, f"{shown(request.path)} has only {' and '.join(methods)}", allowed)
        return service, handle

    def _find(self, path: str) -> tuple[Service | None, Sequence[str], Handler]:
        get, post = ("GET", "HEAD"), ("POST",)
        match path.split("/")[1:]:
            case ["score"]:
                service = next(iter(self.services.values()))
                return service, post, lambda request: self._score(service, request)
            case ["models", name, "score"]:
                service = self._service(name)
                return service, post, lambda request: self._score(service, request)
            case ["v2", "models", name, "infer"]:
                service = self._service(name)
                return service, post, lambda request: self._infer(service, request)
            case ["v2", "models", name]:
                service = self._service(name)
                return service, get, lambda request: self._metadata(service)
            case ["v2", "models", name, "ready"]:
                service = self._service(name)
                return service, get, lambda request: self._model_ready(service)
            case ["health"] | ["v2", "health", "live"]:
                return None, get, lambda request: _soon(Answer(200, b'{"live":true}'))
            case ["ready"] | ["v2", "health", "ready"]:
                return None, get, self._ready
            case ["v2"]:
                return None, get, self._server
            case ["metrics"]:
                return None, get, self._show_metrics
        raise HttpError(404, f"no such path: {shown(path)}; POST /score scores rows")

    def _service(self, name: str) -> Service:
        if name not in self.services:
            raise HttpError(404, f"no model {shown(name)!r}; served: {', '.join(self.services)}")
        return self.services[name]

    async def _ready(self, request: Request) -> Answer:
        ready = all(service.champion.model for service in self.services.values())
        answer: dict[str, Any] = {"ready": ready}
        if self._is_authorized(request):  # a fault names paths
            answer["models"] = {
                name: {
                    role: {
                        "version": source.model.version if source.model else None,
                        "fault": source.fault,
                    }
                    for role, source in service.sources
                }
                for name, service in self.services.items()
            }
        return Answer(200 if ready else 503, orjson.dumps(answer))

    async def _server(self, request: Request) -> Answer:
        return Answer(200, orjson.dumps({"name": "clickmill", "version": "2", "extensions": []}))

    async def _show_metrics(self, request: Request) -> Answer:
        return Answer(200, self._metrics.text(), CONTENT_TYPE)

    async def _metadata(self, service: Service) -> Answer:
        model = _loaded(service)
        return Answer(200, orjson.dumps(open_inference.metadata_of(service.name, model)))

    async def _model_ready(self, service: Service) -> Answer:
        ready = service.champion.model is not None
        return Answer(200 if ready else 503, orjson.dumps({"name": service.name, "ready": ready}))

    async def _score(self, service: Service, request: Request) -> Answer:
        is_json = self._check_head(request, (JSON_TYPE, *LINE_TYPES)) == JSON_TYPE
        with self._at_work() as take:
            _loaded(service)
            body = await read_body(request.receive, self._options.max_body_bytes, take)
            if is_json:
                records = self._records_of(parse_json(body))
                encode: Encode = methodcaller("encode_records", records)
                keys_of: KeysOf = partial(keys_of_records, records)
            else:
                self._check_num_rows(body.count(b"\n") + (not body.endswith(b"\n")))
                encode = methodcaller("encode_lines", body)
                keys_of = partial(keys_of_lines, body)
            scored = await self._scores(service, request.id or body, encode)
        logged = self._choose(service, request, keys_of)
        value = _score_body(service.name, scored)
        return self._answer(service, len(body), scored, encode, value, logged)

    async def _infer(self, service: Service, request: Request) -> Answer:
        self._check_head(request, (JSON_TYPE,))
        with self._at_work() as take:
            model = _loaded(service)
            body = await read_body(request.receive, self._options.max_body_bytes, take)
            value = parse_json(body)
            records = open_inference.records_of(
                value, model.encoder.columns, self._options.max_rows
            )
            encode = methodcaller("encode_records", records)
            scored = await self._scores(service, request.id or body, encode)
        if scored.rows.bad_rows:
            raise open_inference.error_of(scored.rows.bad_rows)
        answer = open_inference.answer_of(service.name, scored.model, value, scored.scores_G)
        logged = self._choose(service, request, partial(open_inference.keys_of, value))
        return self._answer(service, len(body), scored, encode, answer, logged)

    def _check_head(self, request: Request, types: tuple[str, ...]) -> str:
        """Return the type of the body.

        Raises:
            HttpError: The server does not take a body of this type, encoding or size.
        """
        media_type = media_type_of(request.headers)
        if media_type not in types:
            raise HttpError(
                415, f"Content-Type {shown(media_type)!r}: {' or '.join(types)} expected"
            )
        if request.headers.get(b"content-encoding", b"identity") != b"identity":
            raise HttpError(415, "Content-Encoding: a body that is not compressed expected")
        if BINARY_TENSORS in request.headers:
            raise HttpError(415, "binary tensors are not supported; send tensors as JSON")
        if length_of(request.headers) > self._options.max_body_bytes:
            raise too_large(self._options.max_body_bytes)
        return media_type

    @contextmanager
    def _at_work(self) -> Iterator[Callable[[int], None]]:
        """Count a request, and the bytes of its body with the function that this yields.

        Raises:
            HttpError: Too many requests or bytes are at work.
        """
        if self._requests_at_work >= self._options.max_requests:
            raise HttpError(
                429, f"{self._requests_at_work:,} requests are at work; try later", RETRY
            )
        taken = 0

        def take(num_bytes: int) -> None:
            nonlocal taken
            if self._bytes_at_work + num_bytes > MAX_BYTES_AT_WORK:
                raise HttpError(429, f"{self._bytes_at_work:,} bytes are at work; try later", RETRY)
            taken += num_bytes
            self._bytes_at_work += num_bytes

        self._requests_at_work += 1
        self._metrics.at_work.inc()
        try:
            yield take
        finally:
            self._requests_at_work -= 1
            self._bytes_at_work -= taken
            self._metrics.at_work.dec()

    def _records_of(self, value: Any) -> list[Any]:
        """Return the rows of a JSON body.

        Raises:
            HttpError: It has no rows, other keys, or too many rows.
        """
        if not isinstance(value, dict) or type(value.get(ROWS)) is not list:
            raise HttpError(422, f'{{"{ROWS}": [{{COLUMN: VALUE, ...}}, ...]}} expected')
        if others := [key for key in value if key != ROWS]:
            raise HttpError(422, f'{shown(others[0])!r} found beside "{ROWS}"; remove this key')
        rows: list[Any] = value[ROWS]
        self._check_num_rows(len(rows))
        return rows

    def _check_num_rows(self, num_rows: int) -> None:
        if num_rows > self._options.max_rows:
            raise HttpError(
                413, f"{num_rows:,} rows; at most {self._options.max_rows:,} a request are scored"
            )

    async def _scores(self, service: Service, key: bytes, encode: Encode) -> Scored:
        """Score the rows of a request with the canary or with the champion.

        Raises:
            HttpError: The rows are wrong as a whole, or no model is loaded.
        """
        canary = service.canary_for(key)
        if canary is not None:
            outcomes = self._metrics.challenger_requests
            try:
                scored = await self._score_with(canary, CANARY, encode)
            except Exception as error:  # whatever a challenger does, the answers go on
                outcomes.labels(service.name, CANARY, "failed").inc()
                warn_once(service.name, CANARY, canary.version, type(error).__name__)
            else:
                outcomes.labels(service.name, CANARY, "scored").inc()
                return scored
        try:
            return await self._score_with(_loaded(service), CHAMPION, encode)
        except RequestError as error:
            raise HttpError(422, str(error)) from None

    async def _score_with(self, model: ServedModel, role: str, encode: Encode) -> Scored:
        rows = encode(model.encoder)
        return Scored(model, role, rows, await self._batcher.score(model, rows))

    def _choose(self, service: Service, request: Request, keys_of: KeysOf) -> LoggedRequest | None:
        """Return the request if the request log is to have it, else None."""
        if self._sampler is None:
            return None
        return self._sampler.choose(request.id, service.name, keys_of)

    def _answer(
        self,
        service: Service,
        num_bytes: int,
        scored: Scored,
        encode: Encode,
        value: dict[str, Any],
        logged: LoggedRequest | None,
    ) -> Answer:
        """Return the answer of a request that was scored, after which the shadow scores it."""
        rows, scores_G = scored.rows, scored.scores_G

        def after() -> None:
            if len(scores_G):
                observe_all(self._metrics.scores_of(service.name, scored.role), scores_G)
            if logged:
                logged.add(scored.model, rows, scores_G)
            self._shadows.compare(service, encode, num_bytes, rows, scores_G, logged)

        return Answer(
            200,
            orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY),
            version=scored.model.version,
            role=scored.role,
            num_rows=rows.num_rows,
            num_bad=len(rows.bad_rows),
            after=after,
        )


async def _soon(answer: Answer) -> Answer:
    return answer


def _loaded(service: Service) -> ServedModel:
    """Return the champion of a service.

    Raises:
        HttpError: It is not loaded yet.
    """
    model = service.champion.model
    if model is None:
        raise HttpError(503, f"model {service.name!r} is not loaded yet; see /ready", RETRY)
    return model


def _score_body(name: str, scored: Scored) -> dict[str, Any]:
    """Return the JSON value of an answer: the score of each row, null for a malformed one."""
    rows = scored.rows
    scores: Any = scored.scores_G
    if rows.bad_rows:
        scores = [None] * rows.num_rows
        for row, score in zip(rows.row_numbers_G.tolist(), scored.scores_G, strict=True):
            scores[row] = score  # a float32, which is written with as few digits as it needs
    errors = [{"row": row, "reason": reason} for row, reason in rows.bad_rows]
    return {"model": name, "version": scored.model.version, "scores": scores, "errors": errors}
