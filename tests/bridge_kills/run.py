"""The run: it starts the parts, kills one at random moments, starts it again, and reads the ledgers at the end."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bridge_kills.engines import Engine, running_engine
from tests.bridge_kills.sender import GROUPS
from tests.integration.bridges import bridge_processes
from tests.support import Daemon, clean_environment, running_daemon

PAUSE = 0.05, 0.4
"""Seconds between two kills, by chance."""
DRAIN_SECONDS = 600.0
"""How long the rest may take after the last kill."""


@dataclass
class Report:
    """What was done, and what went wrong."""

    sent: int = 0
    booked: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.disordered)

    def __str__(self) -> str:
        kills = ", ".join(f"{part} {count}" for part, count in sorted(self.kills.items()))
        wrong = f"lost {len(self.lost)}, doubled {len(self.doubled)}, out of order {len(self.disordered)}"
        return f"sent {self.sent:,}, booked {self.booked:,}; {self.kills.total()} kills ({kills}); {wrong}"


class Program:
    """A part that is one process: killed with SIGKILL, and started again."""

    def __init__(self, folder: Path, *command: str) -> None:
        self._folder = folder
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "programs.err").open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *self._command], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                env=clean_environment(), cwd=Path(__file__).parents[2],
            )  # fmt: skip

    def ensure(self) -> None:
        """Start it again if it has ended with an error."""
        if self._process is None or self._process.poll() not in (None, 0):
            self.start()

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()


def run(
    messages: int, kills: int, machines: int, seed: int, *, in_daemons: bool = False, engine: str = "postgres"
) -> Report:
    """Send ``messages``, and kill parts ``kills`` times meanwhile.

    ``engine`` is ``postgres`` or ``jetstream``. ``in_daemons``: the daemons run the bridges themselves, by their
    configuration.
    """
    report = Report(sent=messages)
    rng = random.Random(seed)
    with ExitStack() as stack:
        between = stack.enter_context(running_engine(engine, machines))
        files = Path(stack.enter_context(TemporaryDirectory()))
        texts = [between.forward_config(), *map(between.ingest_config, range(machines))]
        daemons = [stack.enter_context(running_daemon(environment=_configured(files, in_daemons, t))) for t in texts]
        origin, *others = daemons
        ledgers = [machine.folder / "ledger.db" for machine in others]
        for ledger in ledgers:
            with closing(sqlite3.connect(ledger)) as database:
                database.execute("pragma journal_mode = wal")
                database.execute("create table payment (number integer primary key, id text, grp text)")
        programs = _programs(between, origin, others, ledgers, messages, in_daemons)
        for program in programs.values():
            stack.callback(program.kill)
            program.start()
        parts: dict[str, Callable[[], None]] = {name: program.restart for name, program in programs.items()}
        parts["origin"] = origin.restart
        parts.update({f"daemon{number}": machine.restart for number, machine in enumerate(others)})
        parts["engine"] = between.restart
        if in_daemons:
            parts["bridge"] = lambda: _kill_bridge(rng.choice(daemons))
        for _ in range(kills):
            time.sleep(rng.uniform(*PAUSE))  # between two kills: their moments are what is tested
            name = rng.choice(sorted(parts))
            parts[name]()
            report.kills[name.rstrip("0123456789")] += 1
            for program in programs.values():
                program.ensure()
        _drain(programs, ledgers, messages)
        _judge(report, ledgers, messages)
    return report


def _configured(folder: Path, in_daemons: bool, text: str) -> dict[str, str]:
    if not in_daemons:
        return {}
    file = folder / f"{len(list(folder.iterdir()))}.toml"
    file.write_text(text)
    return {"EOQ_CONFIG": str(file)}


def _kill_bridge(daemon: Daemon) -> None:
    for pid in bridge_processes(daemon):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _programs(
    between: Engine, origin: Daemon, others: list[Daemon], ledgers: list[Path], messages: int, in_daemons: bool
) -> dict[str, Program]:
    cli = ("-m", "eoq.cli")
    sender = ("-m", "tests.bridge_kills.sender", str(origin.socket), str(messages), str(origin.folder / "sent"))
    programs = {"sender": Program(origin.folder, *sender)}
    if not in_daemons:
        forward = between.forward_command()
        programs["forwarder"] = Program(origin.folder, *cli, *forward, "--socket", str(origin.socket))
    for number, (machine, ledger) in enumerate(zip(others, ledgers, strict=True)):
        if not in_daemons:
            ingest = between.ingest_command(number)
            programs[f"ingester{number}"] = Program(machine.folder, *cli, *ingest, "--socket", str(machine.socket))
        work = ("-m", "tests.bridge_kills.worker", str(machine.socket), str(ledger))
        programs[f"worker{number}"] = Program(machine.folder, *work)
    return programs


def _drain(programs: dict[str, Program], ledgers: list[Path], messages: int) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    while sum(len({id for id, _ in _booked(ledger)}) for ledger in ledgers) < messages:
        if time.monotonic() > deadline:
            return
        for program in programs.values():
            program.ensure()
        time.sleep(0.5)  # between two looks at the ledgers


def _booked(ledger: Path) -> list[tuple[str, str | None]]:
    with closing(sqlite3.connect(ledger, timeout=30)) as database, suppress(sqlite3.OperationalError):
        return database.execute("select id, grp from payment order by number").fetchall()
    return []


def _judge(report: Report, ledgers: list[Path], messages: int) -> None:
    booked = [_booked(ledger) for ledger in ledgers]
    counts = Counter(id for rows in booked for id, _ in rows)
    report.booked = counts.total()
    report.lost = [f"{n}" for n in range(messages) if f"{n}" not in counts]
    report.doubled = [id for id, count in counts.items() if count > 1]
    for group in (f"g{number}" for number in range(GROUPS)):
        places = [[int(id) for id, grp in rows if grp == group] for rows in booked]
        if sum(map(bool, places)) > 1 or any(ids != sorted(ids) for ids in places):
            report.disordered.append(group)
