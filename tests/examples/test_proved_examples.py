"""`eoq prove` and `eoq.testing.prove` pass each example of a consumer: killed anywhere, it has its effect once.

The tests of each example kill it as a whole at some moments. These kill it at each write and statement.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import pytest

import eoq
from eoq.testing import Report, make_message, prove
from examples import ledger_worker, sqlalchemy_worker
from tests.examples.conftest import EXAMPLES
from tests.examples.node import needs_node
from tests.examples.pages import PATIENT, Page
from tests.support import Daemon, eventually

PROVED: Final = {
    "book-payment.sh",
    "four-ways.md",
    "ledger_worker.mjs",
    "ledger_worker.py",
    "sqlalchemy_worker.py",
}
NO_CONSUMERS: Final = {
    # They send messages. A message that is sent again has the same id, and is stored once: their own tests send twice.
    "cron-enqueue.sh",
    "spool-from-cron.sh",
    "webhook_receiver.py",
    # It stores an order and its message in one transaction, and handles no message: each call is a new order.
    "outbox_shop.py",
    # It runs any command for each message, as `eoq work` does, and has no effect of its own: prove the command.
    "receive-and-ack.sh",
    # No programs.
    "README.md",
    "eoq.toml",
}
PAYMENT: Final = {"account": "alice", "cents": 500}
NO_PAYMENT: Final = {"account": "alice"}
FEW: Final = 15
"""More crash points than this show that the kills reach into the transaction, and not only before and after it."""
SECOND_KILLS: Final = 5
"""Enough for the redelivery's commit and ack; the proof itself is tested with more."""

needs_sqlite3 = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the example needs the program sqlite3")


def test_each_example_is_proved_or_is_no_consumer() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == PROVED | NO_CONSUMERS


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Path]:
    """Return an empty file, as it is before the first run of a worker. Check that it is as empty at the end."""
    path = tmp_path / "ledger.db"
    path.touch()
    yield path
    assert path.read_bytes() == b""


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────


def _prove_command(daemon: Daemon, ledger: Path, command: str) -> dict[str, Any]:
    """Prove a command with a payment and with a message that is none. Return the report."""
    bodies = " ".join(f"--body '{json.dumps(body)}'" for body in (PAYMENT, NO_PAYMENT))
    options = f"--second-kills {SECOND_KILLS} --ignore 'connect to {daemon.socket}' --json"
    ran = daemon.shell().run(f'eoq prove payments --db "{ledger}" {bodies} {options} -- {command}', timeout=PATIENT)
    assert ran.status == 0, ran.text + ran.errors
    report: dict[str, Any] = json.loads(ran.text)
    assert (report["messages"], report["differences"]) == (2, 0)
    return report


@needs_sqlite3
@pytest.mark.slow
def test_the_shell_script_passes(shared_daemon: Daemon, ledger: Path) -> None:
    report = _prove_command(shared_daemon, ledger, f'"{EXAMPLES}/book-payment.sh" {{db}}')
    assert report["points"] > FEW
    assert report["not_compared"] == []


@needs_node
@pytest.mark.slow
def test_the_worker_in_node_passes(shared_daemon: Daemon, ledger: Path) -> None:
    """Prove the whole worker: it receives from a real daemon, and acks there."""
    deliver = Path(__file__).with_name("deliver.mjs")
    options = f'--db {{db}} --queue payments --socket "{shared_daemon.socket}"'
    command = f'node --no-warnings --import "{deliver}" "{EXAMPLES}/ledger_worker.mjs" {options}'
    report = _prove_command(shared_daemon, ledger, command)
    assert report["points"] > FEW
    assert set(report["not_compared"]) <= {"eoq_processed.seq"}, "each run sends its message anew"


# ── programs in Python ──────────────────────────────────────────────────────────────────────────────────────


def _whole_worker(work: Callable[[str, str, str | None, bool], None], daemon: Daemon) -> Callable[..., object]:
    """Return a handler that sends its message to a real daemon, and lets the worker receive, book and ack it there."""

    def handle(path: Path, message: eoq.Message) -> bytes | None:
        with eoq.connect(daemon.socket) as client:
            eventually(lambda: _is_emptied(client, message.queue), what="the queue is empty")
            client.send(message.queue, message.body, id=message.id)
            work(str(path), message.queue, str(daemon.socket), True)
            result = client.result(message.queue, message.id)
        assert result is not None, "the worker has not settled the message"
        if result.outcome != "done":
            message.reject(result.error)
        return result.body

    return handle


def _is_emptied(client: eoq.Client, queue: str) -> bool:
    """Remove the message of the run before. What a killed worker had waits again once the daemon has seen it."""
    with suppress(eoq.NotFound):
        client.purge(queue)
        client.drop(queue, everything=True)
    with suppress(eoq.InvalidRequest):
        client.delete_queue(queue, forget_ids=True)
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("worker", [ledger_worker, sqlalchemy_worker])
def test_the_whole_worker_in_python_passes(
    shared_daemon: Daemon, ledger: Path, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.01)
    handler = _whole_worker(worker.work, shared_daemon)
    ignore = [f"connect to {shared_daemon.socket}"]
    messages = [make_message(PAYMENT, queue="payments")]
    if worker is ledger_worker:  # the other one gives back what is no payment, until it is a dead letter
        messages.append(make_message(NO_PAYMENT, queue="payments"))
    # Not at each write by ptrace: their handlers are proved so elsewhere, and that takes far longer.
    report = prove(handler, messages, ledger, inbox=None, ignore=ignore, traced=False, second_kills=SECOND_KILLS)
    _check(report, len(messages))
    assert set(report.not_compared) <= {"eoq_processed.seq"}, "each run sends its message anew"


@pytest.mark.slow
def test_the_handler_on_the_page_of_the_four_ways_passes(tmp_path: Path) -> None:
    block = Page("examples/four-ways.md").blocks("1 Idempotency keys in a database", "python")[0]
    names: dict[str, Any] = {}
    exec(block.partition("\nwith eoq.connect")[0], names)  # noqa: S102 # the page's own code
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.execute("create table booking (payment text, account text, cents integer)")
    _check(prove(names["book"], [PAYMENT], tmp_path / "ledger.db", second_kills=SECOND_KILLS), 1)


def _check(report: Report, messages: int) -> None:
    assert (report.ok, report.messages) == (True, messages)
    assert report.points > FEW
