"""The SQLAlchemy worker as a real process: each payment is booked once, even if worker and daemon are killed."""

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
from tests.examples.conftest import EXAMPLES
from tests.support import Daemon, clean_environment, eventually

WORKER: Final = EXAMPLES / "sqlalchemy_worker.py"


@contextmanager
def _worker(daemon: Daemon, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(WORKER), "--db", str(_ledger(daemon)), "--socket", str(daemon.socket), *options]
    with (daemon.folder / "worker.out").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=clean_environment())
    with process:
        try:
            yield process
        finally:
            process.kill()


def _ledger(daemon: Daemon) -> Path:
    return daemon.folder / "ledger.db"


def _finish(daemon: Daemon) -> None:
    with _worker(daemon, "--until-empty") as process:
        assert process.wait(60) == 0, (daemon.folder / "worker.out").read_text()


def _bookings(daemon: Daemon) -> list[str]:
    if not _ledger(daemon).exists():
        return []
    with closing(sqlite3.connect(_ledger(daemon), timeout=30)) as database:
        if not database.execute("select 1 from sqlite_schema where name = 'booking'").fetchone():
            return []
        return sorted(id for (id,) in database.execute("select payment from booking"))


def _wait_until_booked(daemon: Daemon, wanted: int) -> None:
    eventually(lambda: len(_bookings(daemon)) >= wanted, 60, what=f"{wanted} payments are booked")


@pytest.mark.slow
def test_payments_are_booked_once_even_if_the_worker_and_the_daemon_are_killed(daemon: Daemon) -> None:
    rng = random.Random(7)
    cents = {f"order-{number:03}": rng.randint(-500, 1000) for number in range(150)}
    with eoq.connect(daemon.socket) as client:
        client.send_many("payments", [eoq.Outgoing({"account": "a", "cents": c}, id=id) for id, c in cents.items()])
    for wanted in (20, 60):
        with _worker(daemon) as worker:
            _wait_until_booked(daemon, wanted)
            worker.kill()
        daemon.restart()
    _finish(daemon)
    assert _bookings(daemon) == sorted(cents)
    with closing(sqlite3.connect(_ledger(daemon))) as database:
        assert database.execute("select name, cents from account").fetchall() == [("a", sum(cents.values()))]
    with eoq.connect(daemon.socket) as client:
        assert all((result := client.result("payments", id)) and result.outcome == "done" for id in cents)


@pytest.mark.slow
def test_a_message_that_is_no_payment_is_rolled_back_and_stops_no_other(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("payments", {"account": "a"}, id="bad")
        client.send("payments", {"account": "a", "cents": 5}, id="good")
        _finish(daemon)
        assert _bookings(daemon) == ["good"]
        assert client.ask("show", queue="payments", id="bad")["message"]["state"] in ("ready", "delayed")
