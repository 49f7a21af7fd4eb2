"""Interleaved rounds of contenders.

Every contender is a process that works for a window of steps when it is its turn, and waits
otherwise.
"""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from speed.work import Work
from torch.optim.optimizer import register_optimizer_step_post_hook

from common.threads import limit_threads

MAX_WINDOW_S = 5.0


class Windows:
    """The contender's side: counts its steps, and reports and waits at the end of each window.

    A window has num_steps steps, or as many as MAX_WINDOW_S allows; a window that is a whole epoch
    has all of it. The first window warms up. It starts at the end of the first step, and its report
    contains the time from the start of the process to there.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.max_s = num_steps, MAX_WINDOW_S
        self.done = 0
        self.to_first_step = 0.0
        self.started = 0.0
        self.report = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the contender itself prints goes to standard error

    def be_a_pass(self, num_steps: int) -> None:
        """Make each window a whole epoch of num_steps steps."""
        self.num_steps, self.max_s = num_steps, math.inf

    def tick(self, *_: object) -> None:
        """Count a step."""
        if not self.to_first_step:
            self.to_first_step = time.time() - psutil.Process().create_time()
            self.started = time.perf_counter()
        self.done += 1
        if self.done == self.num_steps or time.perf_counter() - self.started > self.max_s:
            self._pause()

    def tick_after_optimizer(self) -> None:
        """Count every step of any torch optimizer, for loops that cannot call `tick`."""
        register_optimizer_step_post_hook(self.tick)

    def _pause(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        figures = {
            "seconds": seconds,
            "steps": self.done,
            "to_first_step": self.to_first_step,
            "peak_mib": peak_mib(),
        }
        print(json.dumps(figures), file=self.report, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the loop of the contender does not end by itself
        self.done, self.started = 0, time.perf_counter()


def peak_mib() -> int:
    """Return the peak resident memory in MiB; ru_maxrss would include that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10


@dataclass
class Contender:
    """The parent's side of a contender.

    Attributes:
        name: Its name.
        work: What it trains.
        is_ours: Whether its threads wait for work as in the train stage.
        windows: The report of each window.
        others: CPUs that other processes used during each window.
    """

    name: str
    work: Work
    is_ours: bool
    windows: list[dict[str, Any]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Start the process and wait for the end of its first window."""
        threads = {name: str(self.work.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = os.environ | threads
        if self.is_ours:
            limit_threads(environment)
        command = [
            sys.executable,
            sys.argv[0],
            "--contender",
            self.name,
            "--work",
            self.work.to_json(),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.first = self._read()

    def turn(self) -> None:
        """Let the contender work for a window and append its report."""
        assert self.process.stdin is not None
        process, before = psutil.Process(self.process.pid), _busy()
        own = sum(process.cpu_times()[:2])
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.windows.append(self._read())
        busy, own = _busy() - before, sum(process.cpu_times()[:2]) - own
        self.others.append(max(0.0, busy - own) / self.windows[-1]["seconds"])

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            raise RuntimeError(f"{self.name} ended: {errors[-2000:]}")
        return json.loads(line)  # type: ignore[no-any-return]


def _busy() -> float:
    """Return the seconds that all CPUs together have worked."""
    times = psutil.cpu_times()
    not_working = times.idle + getattr(times, "iowait", 0)
    counted_twice = getattr(times, "guest", 0) + getattr(times, "guest_nice", 0)
    return float(sum(times) - not_working - counted_twice)


def interleave(contenders: list[Contender], rounds: int) -> None:
    """Let each contender take `rounds` turns; each round begins with another contender."""
    started: list[Contender] = []
    try:
        for contender in contenders:
            started.append(contender)
            contender.start()
        for number in range(rounds):
            for k in range(len(contenders)):
                contenders[(number + k) % len(contenders)].turn()
    finally:
        for contender in started:
            contender.stop()
