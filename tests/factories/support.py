"""Helpers of many tests: parameters with some values changed, rows of a log, local servers."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.config.params import Params, load_params
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.ingest.stage import ingest
from features.schema.schema import load_schema

ROOT = Path(__file__).parents[2]
CRITEO = load_schema("criteo")
STAGES = ["collect", "ingest", "features", "train", "evaluate", "export"]  # of dvc.yaml, in order


def make_params(**changes: Any) -> Params:
    """Return the shipped parameters with changes: SECTION__KEY=value, or SECTION=value.

    One model is trained, and no ensemble, unless a change says so.
    """
    values = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    values["train"]["ensemble_size"] = 1
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    return Params.model_validate(values)


def plain_model(**changes: Any) -> dict[str, Any]:
    """Return the section `model` of the paper's DLRM with plain logloss; changes are KEY=value."""
    loss = {"name": "bce", "positive_weight": 1, "label_smoothing": 0}
    return {
        "standardise": False,
        "interaction": {"name": "dot"},
        "tables": {"name": "full"},
        "loss": loss,
        **changes,
    }


def make_features(root: Path, params: Params) -> None:
    """Run collect, ingest and features below root."""
    for stage in (collect, ingest, build_features):
        stage(params, root)


def line(label: str = "0", dense: str = "1", categorical: str = "0000000a", **fields: str) -> str:
    """Return a Criteo row: one value for all columns of a kind, except for the named columns."""
    values = {
        CRITEO.label: label,
        **dict.fromkeys(CRITEO.dense, dense),
        **dict.fromkeys(CRITEO.categorical, categorical),
        **fields,
    }
    return "\t".join(values[name] for name in CRITEO.names)


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Wait until a condition is true; fail after timeout_s seconds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@contextmanager
def listener() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Run an HTTP server; yield its URL, and the list of path and body of each POST."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}", got


def answer_with(
    body: bytes, *, status: int = 200, delay_s: float = 0
) -> type[BaseHTTPRequestHandler]:
    """Return a handler that gives the same answer to every GET and POST after a delay."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay_s)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Run an HTTP server with this handler; yield its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def children_where(
    condition: Callable[[psutil.Process], bool], parent: psutil.Process, *, recursive: bool = False
) -> list[psutil.Process]:
    """Return the children of a process that meet a condition; one that has just ended does not."""
    found = []
    for child in parent.children(recursive=recursive):
        with suppress(psutil.NoSuchProcess):
            if condition(child):
                found.append(child)
    return found


def still_running(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Return the processes that have not ended within a time. A zombie counts as ended."""
    deadline_s = time.monotonic() + within_s
    while (
        running := [process for process in processes if _runs(process)]
    ) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return running


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def real_log(name: str) -> Path:
    """Return the path of a file of real rows; skip the test where REAL_LOGS is not set.

    Real rows may not be copied into the project.
    """
    if "REAL_LOGS" not in os.environ:
        pytest.skip("REAL_LOGS is not set: real rows are not part of the project")
    return Path(os.environ["REAL_LOGS"]) / name


def xxh64(data: bytes) -> int:
    """Return XXH64 with seed 0, written from its specification.

    The specification is doc/xxhash_spec.md of github.com/Cyan4973/xxHash.
    """
    mask = (1 << 64) - 1
    p1, p2, p3, p4, p5 = (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )

    def rotated(value: int, bits: int) -> int:
        return ((value << bits) | (value >> (64 - bits))) & mask

    def mixed(lane: int, word: int) -> int:
        return rotated((lane + word * p2) & mask, 31) * p1 & mask

    def word_at(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], "little")

    place, lanes = 0, [(p1 + p2) & mask, p2, 0, -p1 & mask]
    while place + 32 <= len(data):
        lanes = [mixed(lane, word_at(place + 8 * k, 8)) for k, lane in enumerate(lanes)]
        place += 32
    total = p5
    if place:
        total = (
            sum(rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
            & mask
        )
        for lane in lanes:
            total = ((total ^ mixed(0, lane)) * p1 + p4) & mask
    total = (total + len(data)) & mask
    while place + 8 <= len(data):
        total = (rotated(total ^ mixed(0, word_at(place, 8)), 27) * p1 + p4) & mask
        place += 8
    if place + 4 <= len(data):
        total = (rotated(total ^ (word_at(place, 4) * p1 & mask), 23) * p2 + p3) & mask
        place += 4
    for byte in data[place:]:
        total = rotated(total ^ (byte * p5 & mask), 11) * p1 & mask
    for shift, prime in ((33, p2), (29, p3), (32, 1)):
        total = (total ^ (total >> shift)) * prime & mask
    return total
