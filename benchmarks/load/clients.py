"""Load on a server: wrk as fast as the server answers, hey at a given rate."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("requests.lua")
TEXT, JSON = "text/plain", "application/json"
TIMEOUT_S = 60  # for an answer; wrk's own 2 s are less than the slowest server needs
HEY_CLIENTS = 8  # which all send at the same moment


@dataclass(frozen=True)
class Requests:
    """The requests that a client sends.

    Attributes:
        paths: The paths of the URL; each request has one of them.
        bodies: The bodies; each request has one of them.
        content_type: Their type.
    """

    paths: Sequence[str]
    bodies: Sequence[bytes]
    content_type: str = TEXT

    def as_lua(self, count: bool) -> str:
        """Return them as a Lua table."""
        bodies = ", ".join(lua_text(body) for body in self.bodies)
        paths = ", ".join(lua_text(path.encode()) for path in self.paths)
        return (
            f"return {{paths = {{{paths}}}, bodies = {{{bodies}}}, "
            f"type = {lua_text(self.content_type.encode())}, count = {str(count).lower()}}}"
        )


@dataclass(frozen=True)
class Answers:
    """The answers to the requests of one run.

    Attributes:
        requests: The number of answers.
        seconds: The duration of the run.
        failed: Answers with an error, and requests without an answer.
        p50_ms: Half of the answers took at most this long.
        p95_ms: 95 % of them.
        p99_ms: 99 % of them.
        answers: Each different answer, status and body, and how often it came, if they are counted.
        cpu_ms: Processor time of the server for each answer, if it was measured.
    """

    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    answers: dict[str, int] = field(default_factory=dict)
    cpu_ms: float = float("nan")

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds


def check_tools() -> None:
    """Exit if wrk or hey is missing."""
    for tool in ("wrk", "hey"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed: apt-get install {tool}")


def saturate(
    port: int, requests: Requests, connections: int, seconds: float, *, count: bool = False
) -> Answers:
    """Send requests over a number of connections, on each the next one when an answer came."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requests.lua"
        file.write_text(requests.as_lua(count), encoding="ascii")
        command = ["wrk", "--threads", "1", "--connections", str(connections)]
        command += ["--duration", f"{seconds:.0f}s", "--timeout", f"{TIMEOUT_S}s"]
        command += ["--script", str(SCRIPT), f"http://127.0.0.1:{port}"]
        environment = os.environ | {"REQUESTS": str(file)}
        output = subprocess.check_output(command, env=environment, text=True)
    # Lua writes a quote in a text as \", and a line end as \ and a line end.
    line = output[output.index('{"requests"') :].replace("\\\n", "\\n")
    values = json.loads(line)
    answers = {answer: times for times, answer in values.pop("answers")}
    return Answers(**values, answers=answers)


def at_rate(port: int, requests: Requests, per_s: float, seconds: float) -> Answers:
    """Send the first of the requests at a rate, in bursts of one for each client of hey."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(requests.bodies[0])
        body.flush()
        command = ["hey", "-z", f"{seconds:.0f}s", "-c", str(HEY_CLIENTS)]
        command += ["-q", f"{per_s / HEY_CLIENTS:.3f}", "-m", "POST", "-T", requests.content_type]
        command += ["-D", body.name, f"http://127.0.0.1:{port}{requests.paths[0]}"]
        output = subprocess.check_output(command, text=True)

    def number(pattern: str) -> float:
        found = re.search(pattern, output)
        return float(found[1]) if found else float("nan")

    by_status = {
        status: int(times) for status, times in re.findall(r"\[(\d+)\]\t(\d+) resp", output)
    }
    no_answer = sum(map(int, re.findall(r"^  \[(\d+)\]\t(?!\d+ resp)", output, re.MULTILINE)))
    total = sum(by_status.values())
    return Answers(
        total,
        number(r"Total:\s+([\d.]+) secs"),
        total - by_status.get("200", 0) + no_answer,
        *(1000 * number(rf"{p}% in ([\d.]+) secs") for p in (50, 95, 99)),
    )


def lua_text(text: bytes) -> str:
    """Return bytes as a Lua text."""
    return (
        '"'
        + "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03d}"
            for byte in text
        )
        + '"'
    )
