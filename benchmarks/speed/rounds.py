"""Interleaved rounds: every contender is a process of its own that works for a window when it is its turn and waits otherwise."""

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

LONGEST_S = 5.0


class Windows:
    """A contender's side: it counts its steps here, and at the end of each window this reports and waits for the next turn.

    A window is num_steps, or what LONGEST_S allows; of a whole pass it is all of it. The first warms up; it begins as its first step
    ends, and is reported for the time that took from the start of the process.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.longest_s = num_steps, LONGEST_S
        self.done = 0
        self.to_first_step = 0.0
        self.started = 0.0
        self.report = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever the contender prints is no report

    def be_a_pass(self, num_steps: int) -> None:
        self.num_steps, self.longest_s = num_steps, math.inf

    def tick(self, *_: object) -> None:
        """A step was done."""
        if not self.to_first_step:
            self.to_first_step = time.time() - psutil.Process().create_time()
            self.started = time.perf_counter()
        self.done += 1
        if self.done == self.num_steps or time.perf_counter() - self.started > self.longest_s:
            self._pause()

    def tick_after_optimizer(self) -> None:
        """Every step of any torch optimizer counts: the hook into loops that are not ours."""
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
            os._exit(0)  # from within whatever loop this is
        self.done, self.started = 0, time.perf_counter()


def peak_mib() -> int:
    """The most memory this process has had resident; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10


@dataclass
class Contender:
    """The parent's side. windows: what the contender reported of each; others: share of the CPUs that other processes had meanwhile."""

    name: str
    work: Work
    windows: list[dict[str, Any]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Up to the end of the first window."""
        threads = {name: str(self.work.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
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
            env=os.environ | threads,
        )
        self.first = self._read()

    def turn(self) -> None:
        assert self.process.stdin is not None
        process, before = psutil.Process(self.process.pid), _busy()
        own = sum(process.cpu_times()[:2])
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.windows.append(self._read())
        busy, own = _busy() - before, sum(process.cpu_times()[:2]) - own
        self.others.append(max(0.0, busy - own) / self.windows[-1]["seconds"])

    def stop(self) -> None:
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            raise RuntimeError(f"{self.name} ended: {errors[-2000:]}")
        return json.loads(line)  # type: ignore[no-any-return]


def _busy() -> float:
    """Seconds that all CPUs together have worked."""
    times = psutil.cpu_times()
    return float(
        sum(times)
        - times.idle
        - getattr(times, "iowait", 0)
        - getattr(times, "guest", 0)
        - getattr(times, "guest_nice", 0)
    )


def interleave(contenders: list[Contender], rounds: int) -> None:
    """So many turns of each, one after the other, in an order that turns with the round."""
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
