"""Spools for the tests: files put into them as a shell would, what is left there, and a taker on any socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import eoq
from eoq.daemon.services.spool_folder import SpoolFolder
from eoq.daemon.services.spool_reader import SWEEP_SECONDS, SpoolReader
from tests.support import PATIENCE, eventually

_count = itertools.count()


def put(spool: Path, queue: str, name: str, content: bytes | str = b"") -> None:
    """Renames a file into place; makes the queue's folder if it is not there."""
    here = spool / queue
    here.mkdir(parents=True, exist_ok=True)
    unfinished = here / f".{next(_count)}.tmp"
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.rename(here / name)


def waiting(spool: Path, queue: str) -> list[str]:
    """Files that are neither stored nor rejected."""
    here = spool / queue
    return sorted(path.name for place in (here, here / ".taking") for path in place.glob("[!.]*"))


def rejected(spool: Path, queue: str, name: str) -> str:
    """The reason of what was rejected, waited for."""
    folder = spool / queue / ".rejected"
    # Where a folder changed just as it was looked into, the sweep comes back to it.
    eventually(
        lambda: folder.exists() and name in [path.name for path in folder.iterdir()],
        SWEEP_SECONDS + PATIENCE,
        what=f"{name} is rejected",
    )
    return (folder / f"{name}.reason").read_text()


def arrivals(client: eoq.Client, queue: str, count: int) -> list[eoq.Message]:
    """The next ``count`` messages, acked; and there are no more."""
    found: list[eoq.Message] = []
    while len(found) < count:
        messages = client.receive(queue, count - len(found), PATIENCE)
        assert messages, f"only {[message.text for message in found]} came"
        client.ack_many([(message, None) for message in messages])
        found.extend(messages)
    assert client.receive(queue) == []
    return found


def texts(messages: Iterable[eoq.Message]) -> list[str]:
    """Their bodies."""
    return [message.text for message in messages]


@asynccontextmanager
async def taking(
    spool: Path, socket: Path, resend_within: Callable[[str], float] = lambda _: 86400.0
) -> AsyncIterator[SpoolReader]:
    """A taker of the spool that runs, over a socket that need not be its own daemon's."""
    folder = SpoolFolder(spool, {})
    try:
        async with eoq.connect_async(socket) as client:
            taker = SpoolReader(folder, resend_within)
            task = asyncio.create_task(taker.run(client))
            try:
                yield taker
                assert not task.done(), task.exception()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        folder.close()


async def within(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """`eventually` for a coroutine."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 # no event tells of the folder
            await asyncio.sleep(0.005)
