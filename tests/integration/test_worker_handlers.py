"""A handler or an inbox that cannot work is refused by its type and at the start, and no message is touched."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite
import pytest

import eoq
from tests.support import Daemon


class _Async:
    async def __call__(self, message: eoq.Message) -> None: ...


async def _coroutine(message: eoq.Message) -> None: ...


def _generator(message: eoq.Message) -> Iterator[None]:
    yield


HANDLERS = [lambda: None, lambda tx, message: None, lambda message, *, needed: None, _generator, "no function"]


def _attempts(client: eoq.Client, queue: str) -> int:
    return int(client.ask("show", queue=queue, id="m")["message"]["attempts"])


@pytest.mark.parametrize("handler", [*HANDLERS, _coroutine, partial(_coroutine), _Async()])
def test_a_handler_of_the_wrong_shape_is_refused(blocking: eoq.Client, queue: str, handler: Any) -> None:
    blocking.send(queue, "x", id="m")
    with pytest.raises(eoq.InvalidRequest, match="handler"):
        blocking.work(queue, handler, until_empty=True)
    assert _attempts(blocking, queue) == 0


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_handler_of_the_wrong_shape_is_refused_by_the_asyncio_client(
    shared_daemon: Daemon, blocking: eoq.Client, queue: str, handler: Any
) -> None:
    async def work() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            await client.work(queue, handler, until_empty=True)

    blocking.send(queue, "x", id="m")
    with pytest.raises(eoq.InvalidRequest, match="handler"):
        asyncio.run(work())
    assert _attempts(blocking, queue) == 0


@pytest.mark.parametrize(
    "handler", [lambda *arguments: None, lambda message, more=1: None, partial(lambda a, b: None, 1), id]
)
def test_a_handler_may_be_any_callable_that_takes_a_message(blocking: eoq.Client, queue: str, handler: Any) -> None:
    blocking.send(queue, "x", id="m")
    assert blocking.work(queue, handler, until_empty=True) == eoq.Summary(done=1)


def test_types_refuse_what_the_loop_refuses_at_its_start(blocking: eoq.Client, queue: str, folder: Path) -> None:
    """mypy demands each of these comments: it fails where an overload accepts the call."""

    async def coroutine(message: eoq.Message) -> None: ...
    def booking(tx: sqlite3.Connection, message: eoq.Message) -> str:
        return "booked"

    def alone(message: eoq.Message) -> dict[str, object]:
        return {"paid": message.id}

    with eoq.Inbox(folder / "app.db") as inbox:
        calls: list[Callable[[], object]] = [
            lambda: blocking.work(queue, booking),  # type: ignore[arg-type] # a handler for an inbox
            lambda: blocking.work(queue, alone, inbox=inbox),  # type: ignore[arg-type] # no handler for one
            lambda: blocking.work(queue, coroutine),  # type: ignore[arg-type] # this client cannot await
            lambda: blocking.work(queue, alone, batch=2),  # type: ignore[call-overload] # no transaction to share
        ]
        blocking.send(queue, "x", id="m")
        for call in calls:
            with pytest.raises(eoq.InvalidRequest):
                call()
        assert _attempts(blocking, queue) == 0
        assert blocking.work(queue, booking, inbox=inbox, batch=2, until_empty=True) == eoq.Summary(done=1)


async def test_types_refuse_the_same_of_the_asyncio_client(shared_daemon: Daemon, queue: str, folder: Path) -> None:
    def function(message: eoq.AsyncMessage) -> None: ...
    async def booking(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> str:
        return "booked"

    async def alone(message: eoq.AsyncMessage) -> None: ...

    async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncInbox(folder / "app.db") as inbox:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: client.work(queue, booking),  # type: ignore[arg-type] # a handler for an inbox
            lambda: client.work(queue, alone, inbox=inbox),  # type: ignore[arg-type] # no handler for one
            lambda: client.work(queue, alone, batch=2),  # type: ignore[call-overload] # no transaction to share
        ]
        await client.send(queue, "x", id="m")
        for call in calls:
            with pytest.raises(eoq.InvalidRequest):
                await call()
        if TYPE_CHECKING:  # what such a function returns is known only when it has run
            await client.work(queue, function)  # type: ignore[arg-type] # no coroutine
        assert await client.work(queue, booking, inbox=inbox, batch=2, until_empty=True) == eoq.Summary(done=1)


def test_a_connection_of_one_thread_is_refused_for_several(blocking: eoq.Client, queue: str, folder: Path) -> None:
    blocking.send(queue, "x", id="m")
    with closing(sqlite3.connect(folder / "app.db")) as database:
        inbox = eoq.Inbox(database)
        with pytest.raises(eoq.InvalidRequest, match="thread"):
            blocking.work(queue, lambda tx, message: None, inbox=inbox, concurrency=4, until_empty=True)
        assert _attempts(blocking, queue) == 0
        assert blocking.work(queue, lambda tx, message: None, inbox=inbox, until_empty=True) == eoq.Summary(done=1)


def test_a_guest_inbox_is_an_inbox_of_a_worker(blocking: eoq.Client, queue: str, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "app.db")) as database:

        @contextmanager
        def begin() -> Iterator[sqlite3.Connection]:
            with database:
                yield database

        inbox = eoq.GuestInbox(begin, lambda connection: connection)
        blocking.send(queue, "x")
        assert blocking.work(queue, lambda tx, message: None, inbox=inbox, until_empty=True) == eoq.Summary(done=1)
