"""The run: it starts the parts, kills one at random moments, starts it again, and reads the ledgers at the end."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import eoq
from tests.bridge_kills.engines import running_engine
from tests.bridge_kills.parts import Program, skewed
from tests.bridge_kills.sender import GROUPS
from tests.integration.bridges import bridge_processes
from tests.support import Daemon, running_daemon, short_folder

PAUSE = 0.05, 0.4
"""Seconds between two kills, by chance."""
DRAIN_SECONDS = 3600.0
"""How long the rest may take after the last kill. On a machine at work it takes much longer than on an idle one."""
FROZEN_SECONDS = 0.2, 1.5
"""How long a network is frozen, by chance."""


@dataclass(frozen=True)
class Plan:
    """What to do. ``kills`` counts the faults of all kinds."""

    messages: int
    kills: int
    machines: int
    seed: int
    engine: str = "postgres"
    """Or `jetstream`, which carries no results."""
    in_daemons: bool = False
    """The daemons run the bridges themselves, by their configuration."""
    results: bool = False
    """Results come back, and are checked."""
    one_step_in: int = 0
    """A bridge kills itself at one of so many steps: statements, commits, requests. 0 is never."""
    cuts: bool = False
    """The network between bridges and engine is cut and frozen."""
    skew: float = 0.0
    """By how many seconds the clocks of every second machine are wrong, ahead or behind."""
    away: float = 0.0
    """For how many seconds the engine is away, once, in the middle."""


@dataclass
class Report:
    """What was done, and what went wrong."""

    sent: int = 0
    booked: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.disordered or self.unanswered)

    def __str__(self) -> str:
        kills = ", ".join(f"{part} {count}" for part, count in sorted(self.kills.items()))
        wrong = f"lost {len(self.lost)}, doubled {len(self.doubled)}, out of order {len(self.disordered)}"
        wrong += f", without their result {len(self.unanswered)}"
        return f"sent {self.sent:,}, booked {self.booked:,}; {self.kills.total()} kills ({kills}); {wrong}"


class System:
    """All parts of a run."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self.engine = stack.enter_context(running_engine(plan.engine, plan.machines))
        self._files = stack.enter_context(short_folder())
        self.wires: dict[str, Program] = {}
        self.programs: dict[str, Program] = {}
        self._urls: list[str] = []
        """Those of the engine, as each machine reaches it."""
        self._environments = [self._environment(number) for number in range(plan.machines + 1)]
        self.daemons = [stack.enter_context(running_daemon(environment=one)) for one in self._environments]
        self.origin, *others = self.daemons
        self.ledgers = [machine.folder / "ledger.db" for machine in others]
        for ledger in self.ledgers:
            with closing(sqlite3.connect(ledger)) as database:
                database.execute("pragma journal_mode = wal")
                database.execute("create table payment (number integer primary key, id text, grp text)")
        self._add_programs(others)
        for program in (*self.wires.values(), *self.programs.values()):
            stack.callback(program.kill)
            program.start()

    def _environment(self, number: int) -> dict[str, str]:
        """Make the wire of a machine, and return its environment. The first machine sends."""
        folder = self._files / f"w{number}"
        folder.mkdir()
        if self._plan.cuts:
            self.wires[f"wire{number}"], url = self.engine.wire(folder)
        else:
            url = self.engine.url
        self._urls.append(url)
        results = ("results = true\n" if self._plan.results else "") + self.engine.lines(number)
        text = f'[[forward]]\nqueue = "q"\nto = "{url}"\n{results}'
        if number:
            place = f'from = "{url}"\nas = "m{number}"\nlimit = 100\n'
            text = f'[[ingest]]\nqueue = "q"\n{place}{results}'
        file = self._files / f"{number}.toml"
        file.write_text(text if self._plan.in_daemons else "")
        skew = self._plan.skew * (0, 1, -1)[number % 3]
        return {"EOQ_CONFIG": str(file), **skewed(skew)}

    def _add_programs(self, others: list[Daemon]) -> None:
        plan, origin = self._plan, self.origin
        sender = (
            "-m",
            "tests.bridge_kills.sender",
            str(origin.socket),
            str(plan.messages),
            str(origin.folder / "sent"),
        )
        self.programs["sender"] = Program(origin.folder, *sender, environment=self._environments[0])
        results = ("--results",) if plan.results else ()
        forward = (
            "forward",
            "q",
            "--to",
            self._urls[0],
            *results,
            *self.engine.flags(0),
            "--socket",
            str(origin.socket),
        )
        self._add_bridge("forwarder", 0, origin, *forward)
        for number, (machine, ledger) in enumerate(zip(others, self.ledgers, strict=True), 1):
            named = ("--as", f"m{number}", "--limit", "100", *results, *self.engine.flags(number))
            ingest = ("ingest", "q", "--from", self._urls[number], *named, "--socket", str(machine.socket))
            self._add_bridge(f"ingester{number}", number, machine, *ingest)
            work = ("-m", "tests.bridge_kills.worker", str(machine.socket), str(ledger))
            self.programs[f"worker{number}"] = Program(machine.folder, *work, environment=self._environments[number])

    def _add_bridge(self, name: str, number: int, machine: Daemon, *command: str) -> None:
        if self._plan.in_daemons:
            return
        start: tuple[str, ...] = ("-m", "eoq.cli")
        if self._plan.one_step_in:
            start = ("-m", "tests.bridge_kills.stepped", f"{self._plan.seed + number}", f"{self._plan.one_step_in}")
        self.programs[name] = Program(machine.folder, *start, *command, environment=self._environments[number])

    def faults(self) -> dict[str, Callable[[], None]]:
        """Return the faults, by their names."""
        faults: dict[str, Callable[[], None]] = {name: program.restart for name, program in self.programs.items()}
        faults["origin"] = self.origin.restart
        faults.update({f"daemon{number}": machine.restart for number, machine in enumerate(self.daemons[1:])})
        faults["engine"] = self.engine.restart
        for name, one in self.wires.items():
            faults[name.replace("wire", "cut")] = one.restart
            faults[name.replace("wire", "freeze")] = partial(self._freeze, one)
        if self._plan.in_daemons:
            faults["bridge"] = lambda: _kill_bridge(self._rng.choice(self.daemons))
        return faults

    def _freeze(self, one: Program) -> None:
        one.freeze(self._rng.uniform(*FROZEN_SECONDS))

    def ensure(self, report: Report) -> None:
        """Start what has ended, and count what has killed itself."""
        for name, program in self.programs.items():
            if program.ensure():
                report.kills[f"{name.rstrip('0123456789')} at a step"] += 1
        for one in self.wires.values():
            one.ensure()  # another program may have had its port when it was started


def run(plan: Plan) -> Report:
    """Send messages, and kill parts meanwhile."""
    report = Report(sent=plan.messages)
    rng = random.Random(plan.seed)
    with ExitStack() as stack:
        system = System(plan, stack)
        faults = system.faults()
        was_away = False
        while report.kills.total() < plan.kills:
            time.sleep(rng.uniform(*PAUSE))  # between two kills: their moments are what is tested
            name = rng.choice(sorted(faults))
            faults[name]()
            report.kills[name.rstrip("0123456789")] += 1
            system.ensure(report)
            if plan.away and not was_away and report.kills.total() >= plan.kills // 2:
                was_away = True
                system.engine.server.kill()
                time.sleep(plan.away)  # the length of the fault
                system.engine.server.start()
        _drain(system, report)
        _judge(system.ledgers, report)
        if plan.results:
            _judge_results(system, report)
    return report


def _kill_bridge(daemon: Daemon) -> None:
    for pid in bridge_processes(daemon):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _drain(system: System, report: Report) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    while sum(len({id for id, _ in _booked(ledger)}) for ledger in system.ledgers) < report.sent:
        if time.monotonic() > deadline:
            return
        system.ensure(report)
        time.sleep(0.5)  # between two looks at the ledgers


def _booked(ledger: Path) -> list[tuple[str, str | None]]:
    with closing(sqlite3.connect(ledger, timeout=30)) as database, suppress(sqlite3.OperationalError):
        return database.execute("select id, grp from payment order by number").fetchall()
    return []


def _judge(ledgers: list[Path], report: Report) -> None:
    booked = [_booked(ledger) for ledger in ledgers]
    counts = Counter(id for rows in booked for id, _ in rows)
    report.booked = counts.total()
    report.lost = [f"{n}" for n in range(report.sent) if f"{n}" not in counts]
    report.doubled = [id for id, count in counts.items() if count > 1]
    for group in (f"g{number}" for number in range(GROUPS)):
        places = [[int(id) for id, grp in rows if grp == group] for rows in booked]
        if sum(map(bool, places)) > 1 or any(ids != sorted(ids) for ids in places):
            report.disordered.append(group)


def _judge_results(system: System, report: Report) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    left = [f"{n}" for n in range(report.sent)]
    with eoq.connect(system.origin.socket, timeout=600) as client:
        while left and time.monotonic() < deadline:
            system.ensure(report)
            left = [id for id in left if not _has_result(client, id)]
            time.sleep(0.5 if left else 0)  # between two rounds of questions
    report.unanswered = left


def _has_result(client: eoq.Client, id: str) -> bool:
    result = client.result("q", id)
    return result is not None and (result.outcome, result.text) == ("done", f"booked {id}")
