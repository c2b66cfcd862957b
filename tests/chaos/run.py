"""One run of the chaos test: real processes, killed, stopped and restarted at random; then the books are checked.

Producers (clients, an outbox, a spool), workers of all kinds, callers of ``once``, a relay and schedules in the daemon.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import eoq
from tests.chaos import producers, workers
from tests.chaos.programs import END, Program
from tests.faults.daemons import left
from tests.support import Daemon, eventually, running_daemon

QUEUE: Final = "payments"
PRODUCERS: Final = {"p0": "send", "p1": "send", "p2": "outbox", "p3": "spool"}
WORKERS: Final = {"w0": "consume", "w1": "work", "w2": "batch", "w3": "asyncio"}
CALLERS: Final = ("o0", "o1")
LONGEST_PAUSE: Final = 0.5
"""Seconds between two moments at which something is done to the processes."""
LONGEST_SLEEP: Final = 4.0
"""Seconds for which a process is stopped: longer than the leases of the workers."""
TICK: Final = "tick"
"""The name of the schedule, with which the ids of its messages begin."""
CONFIG: Final = """
[queues."*"]
retry_first = 0.05
max_attempts = 1000
# {moment}

[[relay]]
path = "shop.db"

[[schedule]]
name = "{tick}"
every = 1
queue = "{queue}"
body = '{{"amount": 0}}'
"""


@dataclass
class Report:
    """What was done in a run, and what went wrong: ids that are lost, doubled, uncalled for or out of order."""

    seed: int
    seconds: float
    sent: Counter[str] = field(default_factory=Counter)
    effects: int = 0
    ticks: int = 0
    keys: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unordered: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.unexpected or self.unordered or self.ambiguous)

    def __str__(self) -> str:
        kills = sum(count for action, count in self.actions.items() if action.startswith("kill"))
        stops = sum(count for action, count in self.actions.items() if action.startswith("stop"))
        ways = ", ".join(f"{way} {count:,}" for way, count in sorted(self.sent.items()))
        return "\n".join(
            (
                f"seed {self.seed}, {self.seconds:,.0f} s",
                f"{self.sent.total():,} messages confirmed ({ways}), {self.ticks:,} of a schedule, {self.keys:,} keys",
                f"{kills:,} kills, {stops:,} stops, {self.actions.total() - kills - stops:,} restarts and reloads",
                "  " + ", ".join(f"{action} {count:,}" for action, count in sorted(self.actions.items())),
                f"lost {_shown(self.lost)}, doubled {_shown(self.doubled)}, uncalled for {_shown(self.unexpected)},",
                f"out of order {_shown(self.unordered)}, keys with two results {_shown(self.ambiguous)}",
            )
        )


def _shown(ids: Sequence[str]) -> str:
    return f"{len(ids):,}" + (f" ({', '.join(ids[:5])})" if ids else "")


def run(seconds: float, seed: int) -> Report:
    """Run the processes for some seconds, let them finish, and check the books."""
    report = Report(seed, seconds)
    with _world() as daemon:
        with _programs(daemon, seed) as programs:
            _disturb(daemon, programs, random.Random(seed), seconds, report.actions)
            (daemon.folder / "stop").touch()
            for name in PRODUCERS:
                programs[name].wait()
            with eoq.connect(daemon.socket) as client:
                eventually(lambda: _is_drained(daemon.folder, client), END, what="everything is drained")
        _check(daemon.folder, report)
    return report


@contextmanager
def _world() -> Iterator[Daemon]:
    """Run a daemon with a configuration, a spool and a ledger in its folder."""
    with running_daemon("--config", "eoq.toml", "--spool", "spool", start=False) as daemon:
        _configure(daemon)
        with closing(sqlite3.connect(daemon.folder / "ledger.db")) as database:
            database.executescript(workers.SCHEMA)
        daemon.start()
        yield daemon


def _configure(daemon: Daemon) -> None:
    text = CONFIG.format(moment=time.time(), tick=TICK, queue=QUEUE)
    (daemon.folder / "eoq.toml").write_text(text)


@contextmanager
def _programs(daemon: Daemon, seed: int) -> Iterator[dict[str, Program]]:
    """Start all programs, and yield them by name. Kill them at the end."""
    folder, socket = daemon.folder, daemon.socket
    producing, working = producers.__file__, workers.__file__
    programs = {
        name: Program(folder, name, producing, way, socket, QUEUE, seed, name, folder)
        for name, way in PRODUCERS.items()
    }
    programs |= {
        name: Program(folder, name, working, how, socket, QUEUE, folder / "ledger.db") for name, how in WORKERS.items()
    }
    programs |= {name: Program(folder, name, working, "once", socket, folder, name) for name in CALLERS}
    with ExitStack() as stack:
        for program in programs.values():
            stack.callback(program.kill)
            program.start()
        yield programs


def _disturb(
    daemon: Daemon, programs: dict[str, Program], rng: random.Random, seconds: float, actions: Counter[str]
) -> None:
    """Do something to one or two processes at a time, in random order but to each as often as to the others."""
    asleep: dict[str, float] = {}
    turns: list[str] = []
    victims: dict[str, Program | Daemon] = {"daemon": daemon, **programs}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.0, LONGEST_PAUSE))  # how long the processes live is part of the test
        for name in [name for name, until in asleep.items() if until < time.monotonic()]:
            del asleep[name]
            victims[name].signal(signal.SIGCONT)
        for _ in range(rng.choice((1, 1, 2))):
            turns = turns or rng.sample(list(victims), len(victims))
            name = turns.pop()
            do = rng.choices(("kill", "stop", "restart"), (6, 1, 1))[0]
            if do == "stop":
                victims[name].signal(signal.SIGSTOP)
                asleep[name] = time.monotonic() + rng.uniform(0.05, LONGEST_SLEEP)
            elif do == "restart" and name == "daemon" and name not in asleep:
                _restart_or_reload(daemon, rng)
            else:
                do = "kill"
                asleep.pop(name, None)
                victims[name].restart()
            actions[f"{do} {name}"] += 1
    for name in asleep:
        victims[name].signal(signal.SIGCONT)


def _restart_or_reload(daemon: Daemon, rng: random.Random) -> None:
    if rng.random() < 0.5:
        _configure(daemon)
        daemon.signal(signal.SIGHUP)
        return
    assert daemon.terminate() == 0, daemon.said
    daemon.start()


def _is_drained(folder: Path, client: eoq.Client) -> bool:
    with closing(sqlite3.connect(folder / "shop.db")) as database:
        waiting = database.execute("select count(*) from eoq_outbox").fetchone() != (0,)
    spool = folder / "spool" / QUEUE
    # A file that a killed sender had not finished stays, under a name that is not ready.
    files = [path for path in (*spool.glob("*"), *spool.glob(".taking/*")) if not path.name.startswith(".")]
    return not (waiting or files or left(client, QUEUE))


# ── the books ───────────────────────────────────────────────────────────────────────────────────────────────


def _check(folder: Path, report: Report) -> None:
    """Compare what was confirmed with the effects in the ledger, and the results of each key."""
    sent: set[str] = set()
    for name, way in PRODUCERS.items():
        ids = (folder / f"{name}.sent").read_text().split()
        report.sent[way] += len(ids)
        sent.update(ids)
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        rows = database.execute("select id, amount from effect order by rowid").fetchall()
    counts = Counter(id for id, _ in rows)
    ticks = {id for id in counts if id.startswith(TICK)}
    report.effects, report.ticks = len(rows), len(ticks)
    report.lost = sorted(sent - counts.keys())
    report.doubled = sorted(id for id, count in counts.items() if count > 1)
    report.unexpected = sorted(counts.keys() - sent - ticks)
    report.unexpected += [id for id, amount in rows if id in sent and amount != producers.amount(report.seed, id)]
    report.unordered = _unordered([id for id, _ in rows if id in sent], partial(producers.group, report.seed))
    results: dict[str, set[str]] = defaultdict(set)
    for name in CALLERS:
        for line in (folder / f"{name}.once").read_text().splitlines():
            key, _, token = line.partition(" ")
            if token != workers.UNKNOWN:
                results[key].add(token)
    report.keys = len(results)
    report.ambiguous = sorted(key for key, tokens in results.items() if len(tokens) > 1)


def _unordered(ids: Sequence[str], group_of: Callable[[str], str | None]) -> list[str]:
    """Return the ids whose effect came before that of an earlier message of their group."""
    last: dict[str, int] = {}
    found = []
    for id in ids:
        if (group := group_of(id)) is not None:
            number = int(id.partition("-")[2])
            if number < last.get(group, -1):
                found.append(id)
            last[group] = max(number, last.get(group, -1))
    return found
