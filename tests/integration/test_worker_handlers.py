"""A handler or an inbox that cannot work is refused at the start, and no message is touched."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
