"""What `eoq.testing` gives to the tests of applications: a private daemon, its clock, draining, messages by hand."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import eoq
from eoq.testing import (
    PrivateDaemon,
    Settlement,
    assert_processed,
    make_async_message,
    make_message,
    private_daemon,
    settlements,
)
from tests.support import eventually

CONFIG = """
[queues."few.*"]
max_attempts = 3
[queues."short.*"]
retention = 3600
"""


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateDaemon]:
    """Run one private daemon for the tests of this file. Each uses its own queue."""
    with private_daemon(config=CONFIG) as daemon:
        yield daemon


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table booking (payment text, cents integer)")
        database.commit()
    return path


def book(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into booking values (?, ?)", (message.id, message.json()["cents"]))
    return "booked"


def test_the_fixture_is_a_daemon_that_commands_and_clients_reach(eoq_daemon: PrivateDaemon) -> None:
    eoq_daemon.client.send("q", "hello", id="a")
    with eoq.connect(eoq_daemon.socket) as other:
        (message,) = other.receive("q")
    assert message.text == "hello"
    eoq_daemon.restart()
    eoq_daemon.assert_waiting("q", "a")
    with closing(sqlite3.connect(f"file:{eoq_daemon.db}?mode=ro", uri=True)) as database:
        assert database.execute("select count(*) from message").fetchone() == (1,)


def test_the_clock_brings_delays_leases_and_times_to_live(private: PrivateDaemon, queue: str) -> None:
    client, clock = private.client, private.clock
    client.send(queue, "later", id="later", delay=3600)
    client.send(queue, "short", id="short", ttl=60)
    client.send(queue, "leased", id="leased", priority=1)
    (message,) = client.receive(queue, lease=30)
    clock.move(15)  # real time passes as well
    private.assert_waiting(queue, "later", "short")
    clock.move(16)
    private.assert_waiting(queue, "later", "short", "leased")
    with pytest.raises(eoq.LeaseLost):
        message.ack()
    clock.move(60)
    found = client.result(queue, "short")
    assert found is not None and found.outcome == "expired"
    assert [message.id for message in client.receive(queue, 10)] == ["leased"]
    clock.move_to(clock.now() + 3600)
    assert "later" in [message.id for message in client.receive(queue, 10)]


def test_each_occurrence_of_a_schedule_comes_at_its_moment(private: PrivateDaemon, queue: str) -> None:
    start = private.clock.now()
    private.client.ask("schedule_add", name=queue, queue=queue, every=600, body="tick")
    private.clock.move(3601)
    moments = [message.enqueued_at - start for message in private.client.receive(queue, 100)]
    assert len(moments) == 6
    assert all(abs(later - earlier - 600) < 60 for earlier, later in pairwise(moments))
    private.client.ask("schedule_remove", name=queue)


def test_a_settled_id_is_forgotten_when_its_retention_has_passed(private: PrivateDaemon) -> None:
    client = private.client
    client.send("short.q", "x", id="a")
    client.receive("short.q")[0].ack()
    assert client.send("short.q", "x", id="a").duplicate
    private.clock.move(2 * 3600)
    assert client.result("short.q", "a") is None
    assert not client.send("short.q", "x", id="a").duplicate


def test_a_wait_of_a_client_takes_its_real_time(private: PrivateDaemon, queue: str) -> None:
    began = time.monotonic()
    assert private.client.receive(queue, wait=0.05) == []
    assert time.monotonic() - began < 20


def test_draining_with_an_inbox_books_each_message_once(private: PrivateDaemon, queue: str, ledger: Path) -> None:
    for number in range(3):
        private.client.send(queue, {"cents": number}, id=f"p-{number}")
    with eoq.Inbox(ledger) as inbox:
        drained = private.drain(queue, book, inbox=inbox)
    assert drained.done == ["p-0", "p-1", "p-2"]
    assert [run.result for run in drained.runs] == [b"booked"] * 3
    private.assert_done(queue, "p-2", "p-1", "p-0")
    private.assert_empty(queue)
    assert_processed(ledger, queue, "p-0", "p-1", "p-2")
    with pytest.raises(AssertionError, match=r"not expected: \['p-2'\]"):
        assert_processed(ledger, queue, "p-0", "p-1")


def test_draining_moves_the_clock_through_all_retries(private: PrivateDaemon) -> None:
    def fail(message: eoq.Message) -> None:
        raise ValueError(f"no account in attempt {message.attempt}")

    private.client.send("few.q", "x", id="a")
    private.client.send("few.q", "y", id="b", delay=7200)
    first = private.drain("few.q", fail)
    assert set(first.retried) == {"a"}
    rest = private.drain("few.q", fail, move_clock=True)
    assert sorted((*first.retried, *rest.retried)) == ["a"] * 3 + ["b"] * 3
    assert private.dead_letters("few.q").keys() == {"a", "b"}
    private.assert_dead("few.q", "b", r"ValueError: no account in attempt \d")
    with pytest.raises(AssertionError, match="does not match"):
        private.assert_dead("few.q", "b", "another error")
    with pytest.raises(AssertionError, match="is no dead letter"):
        private.assert_dead("few.q", "c")


def test_draining_notes_what_the_handler_did(private: PrivateDaemon, queue: str) -> None:
    def handle(message: eoq.Message) -> bytes | None:
        if message.id == "own":
            message.ack(b"by itself", send=[eoq.Outgoing("next", id="next", queue=f"{queue}-next")])
            return None
        if message.id == "never":
            raise eoq.Reject("no such account")
        raise eoq.Retry(3600, "the bank is closed")

    for id in ("own", "never", "late"):
        private.client.send(queue, id, id=id)
    drained = private.drain(queue, handle)
    assert (drained.done, drained.rejected, drained.retried) == (["own"], ["never"], ["late"])
    assert [type(error) for error in drained.errors] == [eoq.Reject, eoq.Retry]
    private.assert_dead(queue, "never", "no such account")
    private.assert_waiting(queue, "late")
    private.assert_waiting(f"{queue}-next", "next")
    private.clock.move(3600)
    with pytest.raises(eoq.Retry):
        private.drain(queue, handle, reraise=True)


def test_an_asyncio_handler_is_drained_as_well(private: PrivateDaemon, queue: str, ledger: Path) -> None:
    async def book_async(tx: Any, message: eoq.AsyncMessage) -> str:
        await tx.execute("insert into booking values (?, ?)", (message.id, message.json()["cents"]))
        return "booked"

    async def run() -> None:
        async with eoq.AsyncInbox(ledger) as inbox:
            drained = await private.drain_async(queue, book_async, inbox=inbox, move_clock=True)
        assert drained.done == ["a", "b"]

    private.client.send(queue, {"cents": 1}, id="a")
    private.client.send(queue, {"cents": 2}, id="b", delay=60)
    asyncio.run(run())
    assert_processed(ledger, queue, "a", "b")


def test_a_message_made_by_hand_is_like_a_delivered_one(private: PrivateDaemon, queue: str, ledger: Path) -> None:
    private.client.send(queue, {"cents": 5}, id="a", headers={"k": "v"}, group="g")
    (delivered,) = private.client.receive(queue)
    made = make_message({"cents": 5}, queue=queue, id="a", headers={"k": "v"}, group="g")
    assert (made.body, made.headers, made.digest) == (delivered.body, delivered.headers, delivered.digest)
    with eoq.Inbox(ledger) as inbox:
        assert inbox.process(made, book) == b"booked"
        again = make_message({"cents": 5}, queue=queue, id="a", headers={"k": "v"}, group="g", attempt=2)
        assert inbox.process(again, book) == b"booked"
    assert settlements(made) == settlements(again) == [Settlement("done", b"booked")]
    with pytest.raises(eoq.InvalidRequest):
        settlements(delivered)


def test_a_message_made_by_hand_records_what_is_done_to_it() -> None:
    message = make_message("x")
    message.extend(60)
    message.nack(5, "later")
    assert settlements(message) == [Settlement("extended", delay=60), Settlement("retried", error="later", delay=5)]
    other = make_async_message("y", attempt=3, cancelled=True)
    assert (other.attempt, other.cancelled) == (3, True)
    asyncio.run(other.reject("no"))
    assert settlements(other) == [Settlement("rejected", error="no")]
    with pytest.raises(eoq.InvalidRequest):
        make_message("x", id="a\nb")


def test_a_configuration_that_is_wrong_is_refused() -> None:
    with pytest.raises(eoq.EoqError, match="max_attempts"), private_daemon(config='[queues."*"]\nmax_attempts = -1'):
        pass


def test_the_clock_only_moves_forward_and_with_a_daemon(private: PrivateDaemon) -> None:
    with pytest.raises(eoq.InvalidRequest, match="forward"):
        private.clock.move(-1)
    with private_daemon() as other:
        clock = other.clock
    with pytest.raises(eoq.InvalidRequest, match="no daemon"):
        clock.move(1)


def test_the_plugin_imports_nothing_but_itself() -> None:
    code = "import sys, pytest; before = set(sys.modules); import eoq.testing.plugin; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(done.stdout) == {"eoq", "eoq.testing", "eoq.testing.plugin"}  # noqa: S307 # a set of names, printed above


@pytest.mark.slow
def test_it_has_a_spool_only_where_it_is_asked_for() -> None:
    with private_daemon() as daemon:
        assert daemon.spool is None
        assert not [path for path in daemon.folder.iterdir() if path.is_dir()]
    with private_daemon(spool=True) as daemon:
        assert daemon.spool is not None
        eoq.Spool(daemon.spool).send("q", "left in a file", id="m")
        (message,) = daemon.client.receive("q", wait=60)
        assert (message.id, message.body) == ("m", b"left in a file")
        daemon.restart()
        eoq.Spool(daemon.spool).send("q", "after a restart")
        eventually(lambda: daemon.client.peek("q", limit=2)[1:])
