"""The ledger worker as a real process: each payment is booked once, even if the worker and the daemon are killed."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.cases import one_in
from tests.examples.conftest import EXAMPLES
from tests.support import Daemon, clean_environment, eventually

WORKER: Final = EXAMPLES / "ledger_worker.py"
ACCOUNTS: Final = ("alice", "bob", "carol")

few_or_many_kills = pytest.mark.parametrize("kills", [2, 6])


@pytest.fixture
def ledger(daemon: Daemon) -> Path:
    """Return the ledger's file, beside the daemon's."""
    return daemon.folder / "ledger.db"


@contextmanager
def _worker(daemon: Daemon, ledger: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(WORKER), "--db", str(ledger), "--socket", str(daemon.socket), *options]
    with (ledger.parent / "worker.out").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=clean_environment())
    with process:
        try:
            yield process
        finally:
            process.kill()


def _output(ledger: Path) -> str:
    return (ledger.parent / "worker.out").read_text()


def _finish(daemon: Daemon, ledger: Path) -> None:
    """Run a worker until no payment is left."""
    with _worker(daemon, ledger, "--until-empty") as process:
        status = process.wait(60)
    assert status == 0, _output(ledger)


def _rows(ledger: Path, sql: str) -> list[tuple[object, ...]]:
    """Return rows of the ledger; none while the worker has not created it."""
    if not ledger.exists():
        return []
    with closing(sqlite3.connect(ledger, timeout=30)) as database:
        if not database.execute("select 1 from sqlite_schema where name = 'booking'").fetchone():
            return []
        return database.execute(sql).fetchall()


def _booked(ledger: Path) -> int:
    return len(_rows(ledger, "select 1 from booking"))


def _wait_until_booked(ledger: Path, wanted: int) -> None:
    eventually(lambda: _booked(ledger) >= wanted, what=f"{wanted} payments are booked")


def _rounds(daemon: Daemon, ledger: Path, payments: dict[str, tuple[str, int]], kills: int) -> Iterator[int]:
    """Let a test kill what books payments, until ``kills`` of the kills came before all were booked.

    Add payments before each kill, yield how many are to be booked when it comes, and start a daemon that was killed.
    A busy machine may be late for a kill.
    """
    for number in range(10 * kills):
        wanted = _booked(ledger) + 30
        payments.update(_send_payments(daemon, 200, seed=number, start=len(payments)))
        yield wanted
        kills -= _booked(ledger) < len(payments)
        if not daemon.running:
            daemon.start()
        if kills == 0:
            return
    raise AssertionError("all were booked before each kill; send more")


def _send_payments(daemon: Daemon, count: int, seed: int, start: int = 0) -> dict[str, tuple[str, int]]:
    rng = random.Random(seed)
    numbers = range(start, start + count)
    payments = {f"order-{number}": (rng.choice(ACCOUNTS), rng.randint(-500, 1000)) for number in numbers}
    with eoq.connect(daemon.socket) as client:
        outgoing = [eoq.Outgoing({"account": a, "cents": c}, id=id) for id, (a, c) in payments.items()]
        client.send_many("payments", outgoing)
        assert all(sent.duplicate for sent in client.send_many("payments", outgoing))
    return payments


def _check(ledger: Path, payments: dict[str, tuple[str, int]]) -> None:
    """Check that the ledger has each payment once, and that its balances are their sums."""
    booked = _rows(ledger, "select payment, account, cents from booking")
    assert len(booked) == len(payments)
    assert {str(id): (account, cents) for id, account, cents in booked} == payments
    sums: dict[str, int] = {}
    for account, cents in payments.values():
        sums[account] = sums.get(account, 0) + cents
    assert dict(_rows(ledger, "select name, cents from account")) == sums  # type: ignore[arg-type] # rows of two


@pytest.mark.slow
def test_payments_are_booked_and_have_results(daemon: Daemon, ledger: Path) -> None:
    payments = _send_payments(daemon, 50, seed=1)
    _finish(daemon, ledger)
    _check(ledger, payments)
    account, _ = payments["order-0"]
    assert daemon.ask(op="result", queue="payments", id="order-0")["result"].startswith(f"{account} has ")
    _finish(daemon, ledger)
    _check(ledger, payments)


@pytest.mark.parametrize(
    "body", one_in(3, ["no JSON", "[]", '{"account": "alice"}', '{"account": "", "cents": 1}', '"\\ud800"'])
)
@pytest.mark.first_by_default
def test_a_message_that_is_no_payment_is_rejected_and_stops_no_other(daemon: Daemon, ledger: Path, body: str) -> None:
    daemon.ask(op="send", queue="payments", id="bad", body=body)
    payments = _send_payments(daemon, 3, seed=2)
    _finish(daemon, ledger)
    _check(ledger, payments)
    reply = daemon.ask(op="result", queue="payments", id="bad")
    assert reply["outcome"] == "dead"
    assert reply["error"].startswith("no payment: ")


@pytest.mark.slow
def test_a_payment_booked_but_not_acked_is_not_booked_again(daemon: Daemon, ledger: Path) -> None:
    """Make the worst moment of a kill certain: after the commit and before the ack."""
    payments = _send_payments(daemon, 1, seed=3)
    _finish(daemon, ledger)
    daemon.kill()
    for file in daemon.folder.glob("eoq.db*"):
        if file.is_file():
            file.unlink()
    daemon.start()
    _send_payments(daemon, 1, seed=3)
    _finish(daemon, ledger)
    _check(ledger, payments)
    assert daemon.ask(op="result", queue="payments", id="order-0")["outcome"] == "done"


@pytest.mark.slow
@few_or_many_kills
def test_workers_that_are_killed_book_each_payment_once(daemon: Daemon, ledger: Path, kills: int) -> None:
    payments: dict[str, tuple[str, int]] = {}
    for wanted in _rounds(daemon, ledger, payments, kills):
        with _worker(daemon, ledger) as first, _worker(daemon, ledger) as second:
            _wait_until_booked(ledger, wanted)
            first.kill()
            second.kill()
    _finish(daemon, ledger)
    _check(ledger, payments)


@pytest.mark.slow
@few_or_many_kills
def test_a_worker_goes_on_after_the_daemon_was_killed_and_restarted(daemon: Daemon, ledger: Path, kills: int) -> None:
    payments: dict[str, tuple[str, int]] = {}
    with _worker(daemon, ledger) as worker:
        for wanted in _rounds(daemon, ledger, payments, kills):
            _wait_until_booked(ledger, wanted)
            daemon.kill()
        eventually(lambda: _booked(ledger) == len(payments), 60, what="all payments are booked")
        assert worker.poll() is None, _output(ledger)
    assert "Traceback" not in _output(ledger)
    _finish(daemon, ledger)
    _check(ledger, payments)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_worker_and_a_daemon_killed_together_book_each_payment_once(daemon: Daemon, ledger: Path, kills: int) -> None:
    payments: dict[str, tuple[str, int]] = {}
    for wanted in _rounds(daemon, ledger, payments, kills):
        with _worker(daemon, ledger) as worker:
            _wait_until_booked(ledger, wanted)
            worker.kill()
            daemon.kill()
    _finish(daemon, ledger)
    _check(ledger, payments)


def test_without_a_daemon_the_worker_ends_with_a_clear_error(folder: Path) -> None:
    command = [sys.executable, str(WORKER), "--db", str(folder / "ledger.db"), "--socket", str(folder / "missing")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 69
    assert ran.stderr.startswith("ledger_worker: cannot reach the daemon")
