"""The asyncio inbox with a real daemon: it gives the guarantees of `Inbox`, also when tasks are cancelled."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import aiosqlite
import pytest

import eoq
from tests.support import PATIENCE, Daemon


class World:
    """A client, its queue, and the application's file."""

    def __init__(self, client: eoq.AsyncClient, queue: str, file: Path) -> None:
        self.client = client
        self.queue = queue
        self.file = file

    async def receive(self, limit: int = 1, lease: float | None = None) -> list[eoq.AsyncMessage]:
        messages = await self.client.receive(self.queue, limit, wait=PATIENCE, lease=lease)
        assert messages
        return messages

    async def delivered(self, id: str = "m", lease: float | None = None) -> eoq.AsyncMessage:
        await self.client.send(self.queue, {"amount": 5}, id=id)
        return (await self.receive(lease=lease))[0]

    async def deliver_many(self, count: int) -> list[eoq.AsyncMessage]:
        await self.client.send_many(self.queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(count)])
        return await self.receive(count)

    async def state(self, id: str = "m") -> str:
        shown = await self.client.ask("show", queue=self.queue, id=id)
        return str(shown["message"]["state"])

    def payments(self) -> list[str]:
        with closing(sqlite3.connect(self.file)) as database:
            return [id for (id,) in database.execute("select id from payment order by rowid")]


@pytest.fixture
def file(folder: Path) -> Path:
    """Return the application's file, with its table."""
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text, amount integer)")
    return folder / "app.db"


@pytest.fixture
def world(shared_daemon: Daemon, queue: str, file: Path, at_end: AsyncExitStack) -> World:
    client = eoq.connect_async(shared_daemon.socket)
    at_end.push_async_callback(client.close)
    return World(client, queue, file)


@pytest.fixture
def inbox(file: Path, at_end: AsyncExitStack) -> eoq.AsyncInbox:
    """Return an inbox of the file's path, not opened yet."""
    inbox = eoq.AsyncInbox(file)
    at_end.push_async_callback(inbox.close)
    return inbox


async def _apply(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> object:
    await tx.execute("insert into payment (id, amount) values (?, ?)", (message.id, message.json()["amount"]))
    return {"paid": message.json()["amount"]}


async def _nothing(_tx: aiosqlite.Connection, _message: eoq.AsyncMessage) -> None:
    return None


async def test_a_message_is_applied_and_acked_with_its_result(world: World, inbox: eoq.AsyncInbox) -> None:
    assert not await inbox.seen(world.queue, "m")
    assert await inbox.process(await world.delivered(), _apply) == b'{"paid":5}'
    assert await inbox.seen(world.queue, "m")
    assert world.payments() == ["m"]
    assert await world.client.result(world.queue, "m") == eoq.Result("done", b'{"paid":5}')


async def test_a_redelivered_message_runs_nothing(world: World, inbox: eoq.AsyncInbox) -> None:
    message = await world.delivered(lease=0.02)
    (again,) = await world.receive()
    with pytest.raises(eoq.LeaseLost):
        await inbox.process(message, _apply)
    assert await inbox.process(again, _nothing) == b'{"paid":5}'
    assert world.payments() == ["m"]


@pytest.mark.parametrize("many", [False, True])
async def test_the_handler_does_not_run_for_a_delivery_that_is_older_than_keep(world: World, many: bool) -> None:
    async with eoq.AsyncInbox(world.file, keep=100) as inbox:
        first, second = await world.deliver_many(2)
        late = replace(first, received_at=first.received_at - 101)
        assert await inbox.process(second, _apply)
        if many:
            (outcome,) = await inbox.process_many([late], _apply)
            assert isinstance(outcome, eoq.LeaseLost)
        else:
            with pytest.raises(eoq.LeaseLost, match="may have been processed and pruned"):
                await inbox.process(late, _apply)
        assert world.payments() == ["1"]
        assert await world.state("0") == "ready", "its lease was alive, so it is delivered again"
        assert await inbox.process((await world.receive())[0], _apply)


async def test_both_inboxes_use_one_table(world: World, inbox: eoq.AsyncInbox, blocking: eoq.Client) -> None:
    message = await world.delivered(lease=0.02)
    (again,) = blocking.receive(world.queue, wait=PATIENCE)
    with pytest.raises(eoq.LeaseLost):
        await inbox.process(message, _apply)
    with eoq.Inbox(world.file) as other:
        assert other.seen(world.queue, "m")
        assert other.process(again, lambda *_: b"other") == b'{"paid":5}'
    assert world.payments() == ["m"]


async def test_a_handler_that_raises_is_rolled_back(world: World, inbox: eoq.AsyncInbox) -> None:
    async def fail(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await _apply(tx, message)
        raise OSError("the bank is closed")

    with pytest.raises(OSError, match="closed"):
        await inbox.process(await world.delivered(), fail)
    assert world.payments() == []
    assert await world.state() == "ready"
    await inbox.process((await world.receive())[0], _apply)
    assert world.payments() == ["m"]


@pytest.mark.parametrize("returned", [object(), b"x" * (1024 * 1024 + 1)])
async def test_a_result_that_cannot_be_stored_undoes_the_effect(
    world: World, inbox: eoq.AsyncInbox, returned: object
) -> None:
    async def handler(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> object:
        await _apply(tx, message)
        return returned

    with pytest.raises((eoq.InvalidRequest, eoq.MessageTooLarge)):
        await inbox.process(await world.delivered(), handler)
    assert world.payments() == []
    assert await world.state() == "dead"


# ── handlers that would end the transaction ─────────────────────────────────────────────────────────────────

ENDINGS: dict[str, Callable[[aiosqlite.Connection], Awaitable[object]]] = {
    "commit()": lambda tx: tx.commit(),
    "rollback()": lambda tx: tx.rollback(),
    "execute": lambda tx: tx.execute("commit"),
    "executescript": lambda tx: tx.executescript("insert into payment (id) values ('script');"),
    "attach": lambda tx: tx.execute("attach ':memory:' as other"),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
@pytest.mark.first_by_default
async def test_a_handler_cannot_end_the_transaction(
    world: World, ending: Callable[[aiosqlite.Connection], Awaitable[object]], kind: str, at_end: AsyncExitStack
) -> None:
    async def handler(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await _apply(tx, message)
        await ending(tx)

    inbox = await _open(world.file, kind, at_end)
    for id in ("a", "b"):
        with pytest.raises(sqlite3.DatabaseError):
            await inbox.process(await world.delivered(id), handler)
        assert world.payments() == []
        await (await world.receive())[0].reject()
    await inbox.process(await world.delivered(), _apply)
    assert world.payments() == ["m"]


async def _open(file: Path, kind: str, at_end: AsyncExitStack) -> eoq.AsyncInbox:
    if kind == "path":
        return await at_end.enter_async_context(eoq.AsyncInbox(file))
    database = await at_end.enter_async_context(
        aiosqlite.connect(file, isolation_level=None if kind == "autocommit" else "")
    )
    return eoq.AsyncInbox(database)


@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
async def test_nothing_is_committed_after_a_statement_has_rolled_back_the_transaction(
    world: World, kind: str, at_end: AsyncExitStack
) -> None:
    async def handler(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await tx.execute("create unique index if not exists one on payment (id)")
        await tx.execute("insert into payment (id) values ('same')")
        with suppress(sqlite3.IntegrityError):
            await tx.execute("insert or rollback into payment (id) values ('same')")
        await tx.execute("insert into payment (id) values ('by itself')")

    inbox = await _open(world.file, kind, at_end)
    with pytest.raises(sqlite3.DatabaseError):
        await inbox.process(await world.delivered(), handler)
    assert world.payments() == []


async def test_an_open_connection_remains_the_applications(world: World, at_end: AsyncExitStack) -> None:
    database = await at_end.enter_async_context(aiosqlite.connect(world.file))
    database.row_factory = aiosqlite.Row
    inbox = eoq.AsyncInbox(database)
    await database.execute("insert into payment (id) values ('own')")
    with pytest.raises(eoq.InvalidRequest, match="transaction open"):
        await inbox.process(await world.delivered(), _apply)
    assert database.in_transaction
    await database.commit()
    await inbox.process((await world.receive())[0], _apply)
    await inbox.close()
    await database.execute("insert into payment (id) values ('more')")
    await database.commit()
    assert world.payments() == ["own", "m", "more"]


async def test_a_handler_cannot_process_another_message_with_the_same_inbox(
    world: World, inbox: eoq.AsyncInbox
) -> None:
    async def handler(_tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        assert not await inbox.seen(message.queue, message.id)
        await inbox.process(message, _apply)

    with pytest.raises(eoq.InvalidRequest, match="inside the inbox's transaction"):
        await inbox.process(await world.delivered(), handler)


# ── cancellation ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.first_by_default
@pytest.mark.parametrize("kind", ["path", "legacy", "autocommit"])
@pytest.mark.parametrize("how", ["one", "many"])
async def test_a_task_may_be_cancelled_at_any_of_its_steps(
    world: World, kind: str, how: str, at_end: AsyncExitStack
) -> None:
    """Cancel after 0, 1, 2, … turns of the loop: no transaction remains open, and the effect is there once."""
    inbox = await _open(world.file, kind, at_end)
    await inbox.seen(world.queue, "m")
    messages = await world.deliver_many(1)
    turns = 0
    cancelled = True
    while cancelled:
        step = inbox.process(messages[0], _apply) if how == "one" else inbox.process_many(messages, _apply)
        task = asyncio.ensure_future(step)
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = task.cancel()
        with suppress(asyncio.CancelledError, eoq.LeaseLost):
            await task
        assert _can_write(world.file), f"a transaction is open after {turns} turns"
        assert len(world.payments()) == await inbox.seen(world.queue, "0") <= 1
        turns += 1
    assert turns > 10
    assert world.payments() == ["0"]


def _can_write(file: Path) -> bool:
    """Return whether no other connection has a transaction that writes open."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as database:
        try:
            database.execute("begin immediate")
        except sqlite3.OperationalError:
            return False
        return True


async def test_a_task_cancelled_while_the_file_is_busy_leaves_no_transaction(
    world: World, inbox: eoq.AsyncInbox
) -> None:
    message = await world.delivered()
    await inbox.seen(world.queue, "m")
    with closing(sqlite3.connect(world.file, isolation_level=None)) as other:
        other.execute("begin immediate")
        task = asyncio.ensure_future(inbox.process(message, _apply))
        await asyncio.sleep(0.05)  # it waits for the file on its thread, which no event shows
        task.cancel()
        task.cancel()
        await asyncio.sleep(0)
        other.execute("commit")
        with pytest.raises(asyncio.CancelledError):
            await task
        other.execute("begin immediate")
        other.execute("commit")
    await inbox.process(message, _apply)
    assert world.payments() == ["m"]


async def test_a_handler_may_have_a_time_limit(world: World, inbox: eoq.AsyncInbox) -> None:
    async def forever(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await _apply(tx, message)
        await asyncio.Event().wait()

    message = await world.delivered()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(inbox.process(message, forever), 0.05)
    assert world.payments() == []
    await inbox.process(message, _apply)
    assert world.payments() == ["m"]


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_many_a_bad_one_undoes_only_itself(world: World, inbox: eoq.AsyncInbox) -> None:
    async def picky(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> object:
        result = await _apply(tx, message)
        if message.id == "1":
            raise ValueError("no such account")
        return result

    messages = await world.deliver_many(120)
    outcomes = await inbox.process_many(messages, picky)
    assert [type(outcome) for outcome in outcomes[:3]] == [bytes, ValueError, bytes]
    assert world.payments() == ["0", *(f"{n}" for n in range(2, 120))]
    assert [await world.state(id) for id in ("0", "1", "119")] == ["done", "ready", "done"]
    assert not await inbox.seen(world.queue, "1")
    assert await inbox.seen(world.queue, "119")


@pytest.mark.parametrize("how", ["or rollback", "rollback"])
async def test_of_many_one_that_rejects_after_a_rollback_decides_only_for_itself(
    world: World, inbox: eoq.AsyncInbox, how: str
) -> None:
    """`or rollback` undoes the whole transaction, so each is processed alone. `rollback` is refused."""
    with closing(sqlite3.connect(world.file)) as database, database:
        database.execute("create table single (n integer primary key)")
        database.execute("insert into single values (1)")

    async def handler(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await _apply(tx, message)
        if message.id == "1":
            with suppress(sqlite3.DatabaseError):
                await tx.execute("rollback" if how == "rollback" else "insert or rollback into single values (1)")
            raise eoq.Reject("no such account")

    messages = await world.deliver_many(3)
    results = await inbox.process_many(messages, handler)
    assert [type(result) for result in results] == [type(None), eoq.Reject, type(None)]
    assert world.payments() == ["0", "2"]
    assert [await world.state(id) for id in ("0", "1", "2")] == ["done", "dead", "done"]


async def test_of_many_one_that_is_delivered_twice_takes_effect_once(world: World, inbox: eoq.AsyncInbox) -> None:
    message = await world.delivered(lease=0.02)
    (again,) = await world.receive()
    with pytest.raises(eoq.LeaseLost):
        await inbox.process_many([message, again, message], _apply)
    assert world.payments() == ["m"]
    assert await world.state() == "done"


async def test_of_many_a_lost_lease_stops_no_other_ack(world: World, inbox: eoq.AsyncInbox) -> None:
    messages = await world.deliver_many(3)
    await messages[1].nack()
    with pytest.raises(eoq.LeaseLost):
        await inbox.process_many(messages, _apply)
    assert [await world.state(id) for id in ("0", "1", "2")] == ["done", "ready", "done"]
    await inbox.process((await world.receive())[0], _apply)
    assert world.payments() == ["0", "1", "2"]


async def test_tasks_share_an_inbox(world: World, inbox: eoq.AsyncInbox) -> None:
    messages = await world.deliver_many(50)
    await asyncio.gather(*(inbox.process(message, _apply) for message in messages))
    assert sorted(world.payments(), key=int) == [f"{n}" for n in range(50)]


async def test_prune_deletes_what_is_below_the_watermark(world: World, file: Path) -> None:
    async with eoq.AsyncInbox(file, keep=0) as inbox:
        for id in "abc":
            await inbox.process(await world.delivered(id), _apply)
        assert await inbox.prune() == 2
        assert [await inbox.seen(world.queue, id) for id in "abc"] == [False, False, True]


# ── opening and closing ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_file_that_cannot_be_opened_is_an_error_each_time(folder: Path) -> None:
    inbox = eoq.AsyncInbox(folder / "missing" / "app.db")
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError):
            await inbox.seen("q", "m")
    (folder / "missing").mkdir()
    assert not await inbox.seen("q", "m")
    await inbox.close()


async def test_a_file_that_is_no_database_is_an_error(folder: Path) -> None:
    (folder / "app.db").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        await eoq.AsyncInbox(folder / "app.db").seen("q", "m")


async def test_a_connection_that_is_not_open_is_refused(file: Path) -> None:
    with pytest.raises(eoq.InvalidRequest, match="not open"):
        await eoq.AsyncInbox(aiosqlite.connect(file)).seen("q", "m")


async def test_a_closed_inbox_is_an_error(world: World, inbox: eoq.AsyncInbox) -> None:
    await inbox.process(await world.delivered(), _apply)
    await inbox.close()
    await inbox.close()
    with pytest.raises(eoq.InvalidRequest, match="closed"):
        await inbox.seen(world.queue, "m")


async def test_a_handler_cannot_wait_for_the_same_inbox_in_another_task(world: World) -> None:
    first, second = await world.deliver_many(2)

    async def nested(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(inbox.process(second, plain))

    async def plain(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await tx.execute("insert into payment values (?, 1)", (message.id,))

    async with eoq.AsyncInbox(world.file) as inbox:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(PATIENCE):
                await inbox.process(first, nested)
        assert caught.group_contains(eoq.InvalidRequest, match="inside the inbox's transaction")
        (again, *_) = await world.receive(2)
        await inbox.process(again, plain)


@pytest.mark.parametrize("steps", range(1, 6))
async def test_an_inbox_that_is_cancelled_while_it_opens_leaves_no_thread(world: World, steps: int) -> None:
    before = threading.active_count()
    opening = asyncio.create_task(eoq.AsyncInbox(world.file).__aenter__())
    for _ in range(steps):
        await asyncio.sleep(0)
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await (await opening).close()
    async with asyncio.timeout(PATIENCE):
        while threading.active_count() > before:  # noqa: ASYNC110 # the end of a thread is no event of the loop
            await asyncio.sleep(0.01)
