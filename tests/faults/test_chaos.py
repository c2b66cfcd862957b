"""Producers, workers and the daemon are real processes and killed at random. At the end each effect is there once.

``EOQ_SEED`` repeats the plan and the order of the kills of an earlier run, but not its timing.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.faults import chaos_producer, chaos_worker
from tests.faults.daemons import PlantedDaemon, left, planted_daemon
from tests.support import clean_environment, eventually

QUEUE: Final = "payments"
PRODUCERS: Final = ("p0", "p1")
WORKERS: Final = {"w0": "consume", "w1": "work"}
LONGEST_LIFE: Final = 0.8
"""How many seconds pass between two kills at most."""
END: Final = 60.0
"""How many seconds the rest may take after the last kill."""


class Program:
    """A Python process that is killed and started again. Its standard error goes to a file."""

    def __init__(self, folder: Path, name: str, *command: object) -> None:
        self.name = name
        self._errors = folder / f"{name}.err"
        self._command = [sys.executable, *map(str, command)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stderr=errors, env=clean_environment(), cwd="/"
            )

    def kill(self) -> None:
        """Kill the process with ``kill -9``. Fail if it has ended by itself."""
        if self._process is not None:
            ended = self._process.poll()
            self._process.kill()
            self._process.wait()
            self._process = None
            assert ended is None, f"{self.name} has ended with {ended}: {self._errors.read_text()}"

    def restart(self) -> None:
        """Kill the process and start a new one."""
        self.kill()
        self.start()

    def wait(self) -> None:
        """Wait until the process ends by itself, with status 0."""
        assert self._process is not None
        status = self._process.wait(END)
        self._process = None
        assert status == 0, self._errors.read_text()


@contextmanager
def _programs(daemon: PlantedDaemon, seed: int) -> Iterator[dict[str, Program]]:
    """Start the producers and the workers, and yield them. Kill them at the end."""
    folder = daemon.folder
    producer, worker = Path(chaos_producer.__file__), Path(chaos_worker.__file__)
    programs = {name: Program(folder, name, producer, daemon.socket, QUEUE, seed, name, folder) for name in PRODUCERS}
    ledger = folder / "ledger.db"
    programs |= {
        name: Program(folder, name, worker, daemon.socket, QUEUE, ledger, how) for name, how in WORKERS.items()
    }
    with ExitStack() as stack:
        for program in programs.values():
            stack.callback(program.kill)
            program.start()
        yield programs


def _kill_at_random(victims: dict[str, Callable[[], None]], rng: random.Random, seconds: float) -> Counter[str]:
    """Kill and restart one or two at a time, in random order but each as often as the others. Return the counts."""
    kills: Counter[str] = Counter()
    turns: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.0, LONGEST_LIFE))
        for _ in range(rng.choice((1, 1, 2))):
            turns = turns or rng.sample(list(victims), len(victims))
            name = turns.pop()
            victims[name]()
            kills[name] += 1
    return kills


def _check(daemon: PlantedDaemon, seed: int) -> int:
    """Check that each confirmed message has its effect once, and that there is no other. Return how many there are."""
    sent = [id for name in PRODUCERS for id in (daemon.folder / f"{name}.sent").read_text().split()]
    with closing(sqlite3.connect(daemon.folder / "ledger.db")) as database:
        effects = Counter(id for (id,) in database.execute("select id from effect"))
        (total,) = database.execute("select sum(amount) from effect").fetchone()
    assert [id for id, count in effects.items() if count > 1] == [], "effects that happened twice"
    assert sorted(set(sent) - effects.keys()) == [], "confirmed messages without an effect"
    assert sorted(effects.keys() - set(sent)) == [], "effects without a confirmed message"
    assert total == sum(chaos_producer.amount(seed, id) for id in sent)
    return len(sent)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [6.0, pytest.param(35.0, marks=pytest.mark.slow)])
def test_everything_killed_at_random_takes_effect_once(seconds: float) -> None:
    seed = int(os.environ.get("EOQ_SEED") or random.SystemRandom().randrange(10**6))
    print(f"EOQ_SEED={seed}")
    with planted_daemon() as daemon:
        ledger = daemon.folder / "ledger.db"
        with closing(sqlite3.connect(ledger)) as database:
            database.executescript(chaos_worker.SCHEMA)
        with _programs(daemon, seed) as programs:
            victims = {"daemon": daemon.restart, **{name: each.restart for name, each in programs.items()}}
            kills = _kill_at_random(victims, random.Random(seed), seconds)
            (daemon.folder / "stop").touch()
            for name in PRODUCERS:
                programs[name].wait()
            with eoq.connect(daemon.socket) as client:
                eventually(lambda: not left(client, QUEUE), END, what="the queue is drained")
        count = _check(daemon, seed)
    print(f"{count} messages over {kills.total()} kills: {dict(kills)}")
    assert count > 10 * kills.total()
    assert kills["daemon"]
