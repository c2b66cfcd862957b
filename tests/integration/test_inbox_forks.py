"""An inbox or outbox made before a fork: the child opens anew or is refused, and the parent loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import aiosqlite
import pytest

import eoq
from tests.support import PATIENCE, Daemon


@pytest.fixture(params=["wal", "delete"])
def file(folder: Path, request: pytest.FixtureRequest) -> Path:
    """Return the application's file in each journal mode."""
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute(f"pragma journal_mode = {request.param}")
        database.execute("create table payment (id text)")
    return folder / "app.db"


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment order by id")]


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into payment values (?)", (message.id,))
    return "paid"


async def _apply_async(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> str:
    await tx.execute("insert into payment values (?)", (message.id,))
    return "paid"


def _refused(call: Callable[[], object]) -> None:
    with pytest.raises(eoq.InvalidRequest, match="forked"):
        call()


class _Child:
    """A forked child that runs a function, which may wait for the parent with ``pause``."""

    def __init__(self, function: Callable[[Callable[[], None]], object]) -> None:
        from_parent, self._to_child = os.pipe()
        self._from_child, to_parent = os.pipe()

        def pause() -> None:
            os.write(to_parent, b"1")
            os.read(from_parent, 1)

        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            signal.alarm(int(PATIENCE))
            try:
                function(pause)
                status = 0
            finally:
                os._exit(status)

    def wait_for_pause(self) -> None:
        assert os.read(self._from_child, 1)

    def go_on(self) -> None:
        os.write(self._to_child, b"1")

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_what_a_child_commits_stays_although_the_parent_closes_its_inbox(
    shared_daemon: Daemon, queue: str, file: Path
) -> None:
    inbox = eoq.Inbox(file)
    with eoq.connect(shared_daemon.socket) as client:
        client.send_many(queue, [eoq.Outgoing("x", id=f"{number}") for number in range(4)])

        def child(pause: Callable[[], None]) -> None:
            with eoq.connect(shared_daemon.socket) as own:
                for message in own.receive(queue, 2):
                    inbox.process(message, _apply)
                pause()
                for message in own.receive(queue, 2):
                    inbox.process(message, _apply)

        forked = _Child(child)
        forked.wait_for_pause()
        inbox.close()
        forked.go_on()
        assert forked.status() == 0
        assert [client.result(queue, f"{number}") for number in range(4)] == [eoq.Result("done", b"paid")] * 4
    assert _payments(file) == ["0", "1", "2", "3"]


def test_parent_and_children_process_with_one_inbox_at_once(shared_daemon: Daemon, queue: str, file: Path) -> None:
    with eoq.Inbox(file) as inbox, eoq.connect(shared_daemon.socket) as client:
        client.send_many(queue, [eoq.Outgoing("x", id=f"{number:02}") for number in range(60)])

        def child(_pause: Callable[[], None]) -> None:
            with eoq.connect(shared_daemon.socket) as own:
                own.work(queue, _apply, inbox=inbox, until_empty=True)

        children = [_Child(child), _Child(child)]
        client.work(queue, _apply, inbox=inbox, until_empty=True)
        assert [one.status() for one in children] == [0, 0]
    assert _payments(file) == [f"{number:02}" for number in range(60)]


def test_a_fork_waits_for_the_transaction_of_another_thread(
    blocking: eoq.Client, shared_daemon: Daemon, queue: str, file: Path
) -> None:
    began = threading.Event()

    def slow(tx: sqlite3.Connection, message: eoq.Message) -> None:
        began.set()
        threading.Event().wait(0.1)  # how long the handler takes
        _apply(tx, message)

    def child(_pause: Callable[[], None]) -> None:
        with eoq.connect(shared_daemon.socket) as own:
            inbox.process(own.receive(queue)[0], _apply)

    with eoq.Inbox(file) as inbox:
        blocking.send_many(queue, [eoq.Outgoing("x", id="a"), eoq.Outgoing("x", id="b")])
        (message,) = blocking.receive(queue)
        thread = threading.Thread(target=inbox.process, args=(message, slow))
        thread.start()
        assert began.wait(PATIENCE)
        assert _Child(child).status() == 0
        thread.join()
    assert _payments(file) == ["a", "b"]


@pytest.mark.parametrize("where", ["handler", "thread"])
@pytest.mark.first_by_default
def test_a_fork_within_a_transaction_is_refused_in_the_child_and_the_parent_goes_on(
    blocking: eoq.Client, queue: str, file: Path, where: str
) -> None:
    def child(_pause: Callable[[], None]) -> None:
        _refused(lambda: inbox.seen(queue, "m"))
        _refused(inbox.prune)
        inbox.close()

    def fork(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        if where == "handler":
            assert _Child(child).status() == 0
        else:
            began.set()
            assert forked.wait(PATIENCE)

    began, forked = threading.Event(), threading.Event()
    with eoq.Inbox(file) as inbox:
        blocking.send(queue, "x", id="m")
        (message,) = blocking.receive(queue)
        thread = threading.Thread(target=inbox.process, args=(message, fork))
        thread.start()
        if where == "thread":
            assert began.wait(PATIENCE)
            assert _Child(child).status() == 0
            forked.set()
        thread.join()
    assert _payments(file) == ["m"]
    assert blocking.result(queue, "m") is not None


def test_an_inbox_of_a_connection_is_refused_in_the_child(blocking: eoq.Client, queue: str, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        inbox = eoq.Inbox(database)
        assert _Child(lambda _pause: _refused(lambda: inbox.seen(queue, "m"))).status() == 0
        blocking.send(queue, "x", id="m")
        inbox.process(blocking.receive(queue)[0], _apply)
    assert _payments(file) == ["m"]


def test_an_outbox_is_refused_in_the_child(queue: str, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        outbox = eoq.Outbox(database)
        assert _Child(lambda _pause: _refused(lambda: outbox.send(queue, "x"))).status() == 0
        outbox.send(queue, "x", id="m")
        database.commit()
        assert database.execute("select id from eoq_outbox").fetchall() == [("m",)]


async def test_an_asyncio_outbox_is_refused_in_the_child(queue: str, file: Path) -> None:
    async with aiosqlite.connect(file) as database:
        outbox = await eoq.AsyncOutbox.open(database)

        def child(_pause: Callable[[], None]) -> None:
            with pytest.raises(eoq.InvalidRequest, match="forked"):
                outbox.send(queue, "x").send(None)

        assert _Child(child).status() == 0
        await outbox.send(queue, "x", id="m")
        await database.commit()


def test_an_asyncio_inbox_of_a_path_is_opened_anew_in_the_child(shared_daemon: Daemon, queue: str, file: Path) -> None:
    inbox = eoq.AsyncInbox(file)

    async def process() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            (message,) = await client.receive(queue)
            await inbox.process(message, _apply_async)

    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            await client.send_many(queue, [eoq.Outgoing("x", id=id) for id in "abc"])
        await process()

        def child(pause: Callable[[], None]) -> None:
            _in_another_thread(lambda: asyncio.run(process()))
            pause()

        forked = _Child(child)
        await asyncio.to_thread(forked.wait_for_pause)
        await process()
        await inbox.close()
        forked.go_on()
        assert await asyncio.to_thread(forked.status) == 0

    asyncio.run(main())
    assert _payments(file) == ["a", "b", "c"]


def _in_another_thread(function: Callable[[], object]) -> None:
    """Run a function where no event loop runs: the child of a coroutine is inside the loop of its parent."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


async def test_an_asyncio_inbox_is_refused_in_a_child_that_is_forked_in_a_handler(
    shared_daemon: Daemon, queue: str, file: Path
) -> None:
    async def fork(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await _apply_async(tx, message)

        def child(_pause: Callable[[], None]) -> None:
            with pytest.raises(eoq.InvalidRequest, match="forked"):
                inbox.seen(queue, "m").send(None)

        assert _Child(child).status() == 0

    inbox = eoq.AsyncInbox(file)
    async with inbox, eoq.connect_async(shared_daemon.socket) as client:
        await client.send(queue, "x", id="m")
        await inbox.process((await client.receive(queue))[0], fork)
    assert _payments(file) == ["m"]


def test_a_guest_inbox_is_refused_until_the_library_has_closed_the_connection_of_the_parent(
    blocking: eoq.Client, shared_daemon: Daemon, queue: str, file: Path
) -> None:
    connections = [sqlite3.connect(file)]

    @contextmanager
    def begin() -> Iterator[sqlite3.Connection]:
        with connections[-1] as connection:
            yield connection

    inbox = eoq.GuestInbox(begin, lambda connection: connection)
    blocking.send_many(queue, [eoq.Outgoing("x", id="a"), eoq.Outgoing("x", id="b")])
    inbox.process(blocking.receive(queue)[0], _apply)

    def child(_pause: Callable[[], None]) -> None:
        with eoq.connect(shared_daemon.socket) as own:
            (message,) = own.receive(queue)
            _refused(lambda: inbox.process(message, _apply))
            connections[0].close()
            connections.append(sqlite3.connect(file))
            inbox.process(message, _apply)

    assert _Child(child).status() == 0
    assert inbox.seen(queue, "b")
    connections[0].close()
    assert _payments(file) == ["a", "b"]
