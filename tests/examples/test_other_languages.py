"""The workers in Node.js and in the shell as real processes: each payment is booked once, whatever is killed."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import eoq
from tests.examples.conftest import EXAMPLES
from tests.examples.node import needs_node
from tests.examples.pages import PATIENT
from tests.support import Daemon, Shell, clean_environment, eventually

NODE: Final = EXAMPLES / "ledger_worker.mjs"
SHELL: Final = EXAMPLES / "book-payment.sh"

needs_sqlite3 = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the example needs the program sqlite3")


@contextmanager
def _worker(daemon: Daemon, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the worker in Node.js on the ledger of the daemon's folder. Kill it at the end."""
    command = ["node", str(NODE), "--db", str(_ledger(daemon)), "--socket", str(daemon.socket), *options]
    with (daemon.folder / "worker.out").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=clean_environment())
    with process:
        try:
            yield process
        finally:
            process.kill()


def _ledger(daemon: Daemon) -> Path:
    return daemon.folder / "ledger.db"


def _said(daemon: Daemon) -> str:
    return (daemon.folder / "worker.out").read_text()


def _finish(daemon: Daemon) -> None:
    with _worker(daemon, "--until-empty") as process:
        assert process.wait(PATIENT) == 0, _said(daemon)


def _rows(daemon: Daemon, sql: str) -> list[tuple[Any, ...]]:
    """Return rows of the ledger; none while the worker has not made its tables."""
    if not _ledger(daemon).exists():
        return []
    with closing(sqlite3.connect(_ledger(daemon), timeout=30)) as database:
        if not database.execute("select 1 from sqlite_schema where name = 'booking'").fetchone():
            return []
        return database.execute(sql).fetchall()


def _wait_until_booked(daemon: Daemon, wanted: int) -> None:
    eventually(
        lambda: len(_rows(daemon, "select 1 from booking")) >= wanted, PATIENT, what=f"{wanted} payments are booked"
    )


def _send(daemon: Daemon, count: int) -> dict[str, int]:
    rng = random.Random(count)
    cents = {f"order-{number:03}": rng.randint(-500, 1000) for number in range(count)}
    with eoq.connect(daemon.socket) as client:
        client.send_many("payments", [eoq.Outgoing({"account": "a", "cents": c}, id=id) for id, c in cents.items()])
    return cents


def _check(daemon: Daemon, cents: dict[str, int]) -> None:
    """Check that each payment is booked once, that the balance is their sum, and that all are done."""
    assert sorted(_rows(daemon, "select payment, cents from booking")) == sorted(cents.items())
    assert _rows(daemon, "select name, cents from account") == [("a", sum(cents.values()))]
    with eoq.connect(daemon.socket) as client:
        assert all((result := client.result("payments", id)) and result.outcome == "done" for id in cents)


# ── Node.js ─────────────────────────────────────────────────────────────────────────────────────────────────


@needs_node
@pytest.mark.slow
def test_node_books_each_payment_once_though_it_and_the_daemon_are_killed(daemon: Daemon) -> None:
    cents = _send(daemon, 300)
    for wanted in (30, 90, 150):
        with _worker(daemon) as worker:
            _wait_until_booked(daemon, wanted)
            worker.kill()
        daemon.restart()
    with _worker(daemon) as worker:  # this one stays, and reconnects
        _wait_until_booked(daemon, 180)
        daemon.restart()
        _wait_until_booked(daemon, len(cents))
        assert worker.poll() is None, _said(daemon)
    _finish(daemon)
    _check(daemon, cents)


@needs_node
@pytest.mark.slow
def test_node_finds_the_id_of_a_payment_whose_ack_was_lost(daemon: Daemon) -> None:
    """Make the worst moment of a kill certain: after the commit, and before the ack. Python shares the table."""
    cents = _send(daemon, 2)
    _finish(daemon)
    daemon.kill()
    for file in daemon.folder.glob("eoq.db*"):
        if file.is_file():
            file.unlink()
    daemon.start()
    _send(daemon, 2)
    with eoq.connect(daemon.socket) as client, eoq.Inbox(_ledger(daemon)) as inbox:
        (message,) = client.receive("payments")
        assert (
            inbox.process(message, lambda _tx, _message: pytest.fail("it ran again"))
            == f"a has {cents['order-000']} cents".encode()
        )
        _finish(daemon)
        _check(daemon, cents)
        # The same id with other content is never acked with the old result.
        client.send("payments", "x", id="order-000-b")
        with closing(sqlite3.connect(_ledger(daemon))) as database, database:
            database.execute("update eoq_processed set id = 'order-000-b' where id = 'order-000'")
        _finish(daemon)
        result = client.result("payments", "order-000-b")
    assert result is not None and result.outcome == "dead" and "other content" in str(result.error)


@needs_node
@pytest.mark.slow
def test_node_rejects_what_is_no_payment_and_takes_every_text(daemon: Daemon) -> None:
    bodies = ["no JSON", "[]", "null", '{"account": "", "cents": 1}', '{"account": "a", "cents": 0.5}']
    for number, body in enumerate(bodies):
        daemon.ask(op="send", queue="payments", id=f"bad-{number}", body=body)
    daemon.ask(op="send", queue="payments", id="bytes", body_base64="AP8=")
    account = "a\u2028b\u0085\U0001f680\x00'\""  # some end a line for programs that read lines of text
    for number in range(3):
        daemon.ask(
            op="send",
            queue="payments",
            id=f"m-\U0001f680{number}",
            body=json.dumps({"account": account, "cents": 1}, ensure_ascii=False),
        )
    _finish(daemon)
    assert _rows(daemon, "select cents from account") == [(3,)]
    with eoq.connect(daemon.socket) as client:
        for id in [f"bad-{number}" for number in range(len(bodies))] + ["bytes"]:
            result = client.result("payments", id)
            assert result is not None and result.outcome == "dead" and "no payment" in str(result.error), id
    assert daemon.ask(op="result", queue="payments", id="m-\U0001f6800")["result"] == f"{account} has 1 cents"


@needs_node
@pytest.mark.slow
def test_node_uses_no_attempt_where_the_ledger_cannot_be_used(daemon: Daemon) -> None:
    daemon.ask(op="send", queue="payments", id="first", body='{"account": "a", "cents": 1}')
    _finish(daemon)
    (page,), (size,) = (
        _rows(daemon, "select rootpage from sqlite_schema where name = 'booking'"),
        _rows(daemon, "select page_size from pragma_page_size"),
    )
    with _ledger(daemon).open("r+b") as file:
        file.seek((page[0] - 1) * size[0])
        file.write(b"\xff" * size[0])
    daemon.ask(op="send", queue="payments", id="second", body='{"account": "a", "cents": 1}')
    with _worker(daemon, "--until-empty") as process:
        assert process.wait(PATIENT) == 74
    assert "malformed" in _said(daemon)
    assert daemon.ask(op="show", queue="payments", id="second")["message"]["attempts"] == 0


@needs_node
@pytest.mark.slow
def test_node_says_that_there_is_no_daemon(folder: Path) -> None:
    command = ["node", str(NODE), "--db", str(folder / "ledger.db"), "--socket", str(folder / "missing")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=False)
    assert ran.returncode == 69
    assert ran.stderr.startswith("ledger_worker: ") and "missing" in ran.stderr


# ── the shell ───────────────────────────────────────────────────────────────────────────────────────────────


def _work(shell: Shell) -> None:
    ran = shell.run(f'eoq work payments --until-empty -- "{SHELL}" ledger.db')
    assert ran.status == 0, ran.errors


@needs_sqlite3
@pytest.mark.slow
def test_the_script_books_once_whatever_the_id_and_the_body_are(daemon: Daemon) -> None:
    shell = daemon.shell()
    account = "O'Neill\"); drop table booked; -- $(id) `id` \u2028"
    for id in ("it's; --", '"$(id)"', "ünïcode"):
        daemon.ask(op="send", queue="payments", id=id, body=json.dumps({"account": account, "cents": 5}))
    for number, body in enumerate(("x", "[]", '{"account": 1, "cents": 1}', '{"account": "a", "cents": "1"}', "")):
        daemon.ask(op="send", queue="payments", id=f"bad-{number}", body=body)
    _work(shell)
    rows = _query(daemon, "select payment from booked order by 1")
    assert rows == sorted([("it's; --",), ('"$(id)"',), ("ünïcode",)])
    assert _query(daemon, "select * from balance") == [(account, 15)]
    with eoq.connect(daemon.socket) as client:
        assert len(client.peek("payments", state="dead")) == 5
    # As if the ack had been lost: the script finds the id.
    body = json.dumps({"account": account, "cents": 5})
    ran = shell.run(f'"{SHELL}" ledger.db', body.encode(), EOQ_ID="it's; --")
    assert (ran.status, ran.text) == (0, f"{account} has 15 cents\n")
    assert _query(daemon, "select * from balance") == [(account, 15)]


def _query(daemon: Daemon, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(_ledger(daemon))) as database:
        return database.execute(sql).fetchall()


@needs_sqlite3
@pytest.mark.slow
def test_the_script_that_is_killed_at_each_write_books_once(daemon: Daemon) -> None:
    shell = daemon.shell()
    _ledger(daemon).touch()
    body = '{"account": "dave", "cents": 300}'
    ran = shell.run(f"eoq prove payments --db ledger.db --body '{body}' -- \"{SHELL}\" ledger.db")
    assert ran.status == 0, ran.text + ran.errors
    assert " 0 differences" in ran.lines[0]
