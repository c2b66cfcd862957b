"""One run of the chaos test: real processes, killed, stopped and restarted at random; then the books are checked.

Producers (clients, an outbox, a spool), workers of all kinds, callers of ``once``; in the daemon a relay and a
schedule. Meanwhile the clock of all of them is set, the configuration changed, and backups are taken and restored.
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
from tests.chaos.operators import ClockedDaemon, Operators
from tests.chaos.programs import END, Program
from tests.faults.daemons import left
from tests.forker import Forker
from tests.support import Daemon, eventually, short_folder

QUEUE: Final = "payments"
PRODUCERS: Final = {"p0": "send", "p1": "send", "p2": "outbox", "p3": "spool"}
WORKERS: Final = {"w0": "consume", "w1": "work", "w2": "batch", "w3": "asyncio"}
CALLERS: Final = ("o0", "o1")
OPERATORS: Final = ("clock", "files")
"""They take their turns as the processes do."""
RESTORES: Final = 0.1
"""In which part of their turns they restore a backup instead of making one."""
CLOCK: Final = "clock"
"""The file that says by how many seconds the clock is wrong."""
LONGEST_PAUSE: Final = 0.5
"""Seconds between two moments at which something is done to the processes, at most."""
LONGEST_SLEEP: Final = 4.0
"""Seconds for which a process is stopped: longer than the leases of the workers."""
TICK: Final = "tick"
"""The name of the schedule, with which the ids of its messages begin."""


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
                f"{kills:,} kills, {stops:,} stops, {self.actions.total() - kills - stops:,} other disturbances",
                "  " + ", ".join(f"{action} {count:,}" for action, count in sorted(self.actions.items())),
                f"lost {_shown(self.lost)}, doubled {_shown(self.doubled)}, uncalled for {_shown(self.unexpected)},",
                f"out of order {_shown(self.unordered)}, keys with two results {_shown(self.ambiguous)}",
            )
        )


def _shown(ids: Sequence[str]) -> str:
    return f"{len(ids):,}" + (f" ({', '.join(ids[:5])})" if ids else "")


def run(seconds: float, seed: int, pause: float = LONGEST_PAUSE) -> Report:
    """Run the processes for some seconds, let them finish, and check the books. ``pause`` is between two kills."""
    report = Report(seed, seconds)
    rng = random.Random(seed)
    with short_folder() as folder, closing(_forker(folder)) as forker, _world(folder, forker) as daemon:
        message = partial(producers.message, seed)
        operators = Operators(daemon, folder / CLOCK, rng, QUEUE, TICK, message)
        operators.configure()
        daemon.start()
        with _programs(daemon, forker, seed) as programs:
            _Disturbances(daemon, operators, programs, rng, report.actions).run(seconds, pause)
            (folder / "stop").touch()
            for name in PRODUCERS:
                programs[name].wait()
            operators.end_schedule()
            with eoq.connect(daemon.socket) as client:
                try:
                    eventually(lambda: not _left(folder, client), END, what="everything is drained")
                except AssertionError as error:
                    error.add_note(f"left: {_left(folder, client)}; done: {report.actions}")
                    raise
        _check(folder, report)
        assert daemon.terminate() == 0, daemon.said
    return report


def _forker(folder: Path) -> Forker:
    """Return the forker of the processes, whose clock is right."""
    (folder / CLOCK).write_text("0")
    return Forker(folder / CLOCK)


@contextmanager
def _world(folder: Path, forker: Forker) -> Iterator[ClockedDaemon]:
    """Make a ledger and a daemon, which is not started. Kill the daemon at the end."""
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        database.executescript(workers.SCHEMA)
    with closing(sqlite3.connect(folder / "shop.db")) as database:
        database.executescript(producers.SCHEMA)
    daemon = ClockedDaemon(folder, forker)
    try:
        yield daemon
        daemon.check()
    except BaseException as error:
        error.add_note(f"the daemon said:\n{daemon.said}")
        raise
    finally:
        daemon.kill()


@contextmanager
def _programs(daemon: Daemon, forker: Forker, seed: int) -> Iterator[dict[str, Program]]:
    """Start all programs, and yield them by name. Kill them at the end."""
    folder, socket = daemon.folder, daemon.socket
    producing, working = producers.__file__, workers.__file__
    commands: dict[str, tuple[object, ...]] = {
        name: (producing, way, socket, QUEUE, seed, name, folder) for name, way in PRODUCERS.items()
    }
    commands |= {name: (working, how, socket, QUEUE, folder / "ledger.db") for name, how in WORKERS.items()}
    commands |= {name: (working, "once", socket, folder, name) for name in CALLERS}
    programs = {name: Program(forker, folder, name, *command) for name, command in commands.items()}
    with ExitStack() as stack:
        for program in programs.values():
            stack.callback(program.kill)
            program.start()
        yield programs


class _Disturbances:
    """What is done to one or two processes at a time, in random order but to each as often as to the others."""

    def __init__(
        self,
        daemon: Daemon,
        operators: Operators,
        programs: dict[str, Program],
        rng: random.Random,
        actions: Counter[str],
    ) -> None:
        self._daemon = daemon
        self._operators = operators
        self._programs = programs
        self._rng = rng
        self._actions = actions
        self._victims: dict[str, Program | Daemon] = {"daemon": daemon, **programs}
        self._asleep: dict[str, float] = {}
        self._turns: list[str] = []

    def run(self, seconds: float, pause: float) -> None:
        """Disturb for some seconds. A backup is restored in the middle, and now and then."""
        begin = time.monotonic()
        middle = False
        while time.monotonic() < begin + seconds:
            time.sleep(self._rng.uniform(0.0, pause))  # how long the processes live is part of the test
            for name in [name for name, until in self._asleep.items() if until < time.monotonic()]:
                self._wake(name)
            for _ in range(self._rng.choice((1, 1, 2))):
                self._turns = self._turns or self._rng.sample((*self._victims, *OPERATORS), len(self._victims) + 2)
                self._disturb(self._turns.pop())
            if not middle and self._operators.has_backup and time.monotonic() > begin + seconds / 2:
                middle = True
                self._restore()
        for name in list(self._asleep):
            self._wake(name)

    def _disturb(self, name: str) -> None:
        if name == "clock":
            self._operators.set_clock()
            self._actions["set clock"] += 1
            return
        if name == "files":
            for sleeper in list(self._asleep):  # it may have a lock
                self._wake(sleeper)
            if self._operators.has_backup and self._rng.random() < RESTORES:
                self._restore()
            else:
                self._operators.back_up()
                self._actions["back up files"] += 1
            return
        do = self._rng.choices(("kill", "stop", "restart"), (6, 1, 1))[0]
        if do == "stop":
            self._victims[name].signal(signal.SIGSTOP)
            self._asleep[name] = time.monotonic() + self._rng.uniform(0.05, LONGEST_SLEEP)
        elif do == "restart" and name == "daemon" and name not in self._asleep:
            do = self._restart_or_reload()
        else:
            do = "kill"
            self._asleep.pop(name, None)
            self._victims[name].restart()
        self._actions[f"{do} {name}"] += 1

    def _restart_or_reload(self) -> str:
        if self._rng.random() < 0.5:
            self._operators.reload()
            return "reload"
        assert self._daemon.terminate() == 0, self._daemon.said
        self._daemon.start()
        return "restart"

    def _restore(self) -> None:
        for name in list(self._asleep):
            if name not in WORKERS:
                self._wake(name)
        what = self._operators.restore(self._programs, [*PRODUCERS, *CALLERS])
        for name in list(self._asleep):
            self._wake(name)
        self._actions[f"restore {what}"] += 1

    def _wake(self, name: str) -> None:
        del self._asleep[name]
        self._victims[name].signal(signal.SIGCONT)


def _left(folder: Path, client: eoq.Client) -> dict[str, object]:
    """Return what is on its way: rows of the outbox, files of the spool, and messages by their state."""
    with closing(sqlite3.connect(folder / "shop.db", timeout=60)) as database:
        rows = database.execute("select id, error from eoq_outbox limit 10").fetchall()
    spool = folder / "spool" / QUEUE
    # A file that a killed sender had not finished stays, under a name that is not ready.
    files = [path for path in (*spool.glob("*"), *spool.glob(".taking/*")) if not path.name.startswith(".")]
    found: dict[str, object] = {"rows": rows, "files": files[:10], "messages": left(client, QUEUE)}
    return {name: value for name, value in found.items() if value}


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
