"""``eoq demo``: process payments from start to end, with real processes that are killed meanwhile.

This process starts, kills and counts the others. What the others do is in ``demo_roles.py``.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError

from .common import print_json
from .demo_roles import QUEUE, plan
from .options import json_option
from .scratch import daemon_command, environment

PRODUCERS: Final = 2
WORKERS: Final = 2
POLL_SECONDS: Final = 0.01
"""Pause between two readings of the ledger."""
STUCK_SECONDS: Final = 60.0
"""How long to wait without progress before the demo fails."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures printed at the end. Balances are in cents."""

    payments: int
    sends: int
    duplicates_refused: int
    daemon_kills: int
    worker_kills: int
    redeliveries: int
    replays: int
    effects: int
    missing: int
    doubled: int
    balance_expected: int
    balance_found: int
    seconds: float
    seed: int

    @property
    def good(self) -> bool:
        """Whether every payment took effect exactly once."""
        return not self.missing and not self.doubled and self.balance_found == self.balance_expected


@click.command()
@click.option(
    "--payments", type=click.IntRange(1, 1_000_000), default=2000, metavar="N", help="Number of payments; default 2000."
)
@click.option(
    "--kills",
    type=click.IntRange(0, 1000),
    default=8,
    metavar="N",
    help="Number of kills of workers and the daemon; default 8.",
)
@click.option("--seed", type=int, metavar="N", help="Repeat the payments and kills of an earlier run.")
@click.option("--keep", is_flag=True, help="Keep the temporary folder with the ledger and the daemon's file.")
@json_option
def demo(payments: int, kills: int, seed: int | None, keep: bool, as_json: bool) -> None:
    """Show that each payment takes effect once despite kill -9.

    Two producers send payments to a separate daemon, some of them twice. Two workers apply them to a ledger in an
    SQLite file, through the inbox. Workers and daemon are killed meanwhile. Exit status 1 if an effect is missing or
    doubled.

    \b
    eoq demo
    eoq demo --payments 20000 --kills 40 --seed 7
    """
    if seed is None:
        seed = random.SystemRandom().randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="eoq-demo-"))
    try:
        with _Processes(folder, seed, payments) as processes:
            outcome = _run(processes, kills)
    finally:
        if keep:
            click.echo(f"eoq: kept {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json({**asdict(outcome), "good": outcome.good})
    else:
        _print_table(outcome)
    if not outcome.good:
        sys.exit(1)


class _Processes:
    """The processes of the demo, and their files. Leaving the context kills them all."""

    def __init__(self, folder: Path, seed: int, payments: int) -> None:
        self.seed = seed
        self.payments = payments
        self.socket = folder / "eoq.sock"
        self.ledger = folder / "ledger.db"
        self.events = folder / "events"
        self._folder = folder
        self._errors = folder / "errors.log"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.producers: list[subprocess.Popen[bytes]] = []
        self._log: IO[bytes] = self._errors.open("ab")

    def __enter__(self) -> _Processes:
        try:
            self._make_ledger()
            self.start_daemon()
            self.workers = [self._start_worker() for _ in range(WORKERS)]
            self.producers = [self._start_producer(part) for part in range(PRODUCERS)]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        processes = [*self.producers, *self.workers]
        if hasattr(self, "daemon"):
            processes.append(self.daemon)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._log.close()

    def start_daemon(self) -> None:
        """Start the daemon, and return when it accepts connections."""
        command = [*daemon_command(self._folder, self.socket), "--max-attempts", "1000000"]
        self.daemon = self._start(command)
        assert self.daemon.stdout is not None  # noqa: S101 # it is a pipe
        if not self.daemon.stdout.readline().startswith(b"ready"):
            raise self.failure("the daemon did not start")

    def kill_daemon(self) -> None:
        """Kill the daemon and start it again on the same file."""
        self._kill(self.daemon)
        self.start_daemon()

    def kill_worker(self, index: int) -> None:
        """Kill a worker and start another in its place."""
        self._kill(self.workers[index])
        self.workers[index] = self._start_worker()

    def failure(self, what: str) -> EoqError:
        """Return an error that shows what the processes have written to standard error."""
        log = self._errors.read_text("utf-8", errors="replace").strip()
        return EoqError(f"{what}; standard error of the processes:\n{log or '(nothing)'}")

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _make_ledger(self) -> None:
        database = sqlite3.connect(self.ledger)
        database.executescript(
            """
            pragma journal_mode = wal;
            create table ledger (payment text, account text, amount integer);
            """
        )
        database.close()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._start_role("work", str(self.socket), str(self.ledger), str(self.events))

    def _start_producer(self, part: int) -> subprocess.Popen[bytes]:
        numbers = [str(number) for number in (self.seed, self.payments, part, PRODUCERS)]
        return self._start_role("produce", str(self.socket), *numbers)

    def _start_role(self, *arguments: str) -> subprocess.Popen[bytes]:
        # -P: use the installed eoq, also if the current folder contains another one.
        return self._start([sys.executable, "-P", "-m", "eoq.cli.demo_roles", *arguments])

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(),
            start_new_session=True,  # Ctrl-C must reach only this process, which ends the others
        )


def _run(processes: _Processes, kills: int) -> Outcome:
    """Let the payments run, and kill a process each time another share of them has been applied."""
    chance = random.Random(processes.seed + 1)  # noqa: S311 # a plan that can be repeated, not a secret
    thresholds = [processes.payments * (number + 1) // (kills + 1) for number in range(kills)]
    start = time.monotonic()
    progressed = start
    applied = daemon_kills = worker_kills = 0
    with _reading(processes.ledger) as ledger:
        while True:
            before, applied = applied, ledger.execute("select count(*) from ledger").fetchone()[0]
            if applied != before:
                progressed = time.monotonic()
            if thresholds and applied >= thresholds[0]:
                if len(thresholds) % 2:
                    processes.kill_daemon()
                    daemon_kills += 1
                else:
                    processes.kill_worker(chance.randrange(WORKERS))
                    worker_kills += 1
                thresholds.pop(0)
                continue
            _check(processes, progressed)
            _show_progress(applied, processes.payments, daemon_kills + worker_kills)
            if all(producer.poll() is not None for producer in processes.producers) and _drained(processes):
                break
            time.sleep(POLL_SECONDS)  # leaves the processors to the workers
        seconds = time.monotonic() - start
        _end_progress()
        return _count(processes, ledger, daemon_kills, worker_kills, seconds)


def _check(processes: _Processes, progressed: float) -> None:
    """Raise `EoqError` if a process ended, or if no payment was applied for long."""
    if any(worker.poll() is not None for worker in processes.workers) or processes.daemon.poll() is not None:
        raise processes.failure("a process ended by itself")
    if any(producer.poll() not in (None, 0) for producer in processes.producers):
        raise processes.failure("a producer failed")
    if time.monotonic() > progressed + STUCK_SECONDS:
        raise processes.failure(f"nothing was applied for {STUCK_SECONDS:g} s")


def _drained(processes: _Processes) -> bool:
    """Return whether every message is settled."""
    with Client(processes.socket) as client:
        rows = [row for row in client.queues() if row["name"] == QUEUE]
    return all(row["oldest"] is None for row in rows)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open an SQLite file for reading only."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=30)
    try:
        yield database
    finally:
        database.close()


def _count(
    processes: _Processes, ledger: sqlite3.Connection, daemon_kills: int, worker_kills: int, seconds: float
) -> Outcome:
    """Compare the ledger with the payments that were sent."""
    expected = {payment.id: payment for payment in plan(processes.seed, processes.payments)}
    found: dict[str, int] = {}
    for (payment,) in ledger.execute("select payment from ledger"):
        found[payment] = found.get(payment, 0) + 1
    sends = duplicates = 0
    for producer in processes.producers:
        assert producer.stdout is not None  # noqa: S101 # it is a pipe
        counts = json.loads(producer.stdout.read())
        sends += counts["sends"]
        duplicates += counts["duplicates"]
    events = processes.events.read_bytes() if processes.events.exists() else b""
    return Outcome(
        payments=processes.payments,
        sends=sends,
        duplicates_refused=duplicates,
        daemon_kills=daemon_kills,
        worker_kills=worker_kills,
        redeliveries=events.count(b"redelivery"),
        replays=events.count(b"replay"),
        effects=sum(found.values()),
        missing=len(expected.keys() - found.keys()),
        doubled=sum(count - 1 for count in found.values()),
        balance_expected=sum(payment.amount for payment in expected.values()),
        balance_found=ledger.execute("select coalesce(sum(amount), 0) from ledger").fetchone()[0],
        seconds=round(seconds, 1),
        seed=processes.seed,
    )


def _show_progress(applied: int, payments: int, kills: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{applied:,} of {payments:,} payments applied · {kills} kills ")
        sys.stderr.flush()


def _end_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


def _print_table(outcome: Outcome) -> None:
    rows = [
        ("payments", f"{outcome.payments:,}"),
        ("sends", f"{outcome.sends:,}"),
        ("duplicates refused", f"{outcome.duplicates_refused:,}"),
        ("kill -9 of the daemon", f"{outcome.daemon_kills:,}"),
        ("kill -9 of a worker", f"{outcome.worker_kills:,}"),
        ("redeliveries", f"{outcome.redeliveries:,}"),
        ("replays from the inbox", f"{outcome.replays:,}"),
        ("effects", f"{outcome.effects:,}"),
        ("  missing", f"{outcome.missing:,}"),
        ("  doubled", f"{outcome.doubled:,}"),
        ("balance expected", f"{outcome.balance_expected / 100:,.2f}"),
        ("balance found", f"{outcome.balance_found / 100:,.2f}"),
    ]
    width = max(len(value) for _, value in rows)
    for name, value in rows:
        click.echo(f"{name:24}{value:>{width}}")
    conclusion = "every payment took effect exactly once" if outcome.good else "THE GUARANTEE IS BROKEN"
    click.echo(click.style(conclusion, fg="green" if outcome.good else "red", bold=True))
    click.echo(f"{outcome.seconds} s; repeat with --seed {outcome.seed}")
