"""Spools for the tests: put files into them as a shell does, list what is left, and run a reader on any socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import eoq
from eoq.daemon.services.spool.spool_folder import SpoolFolder
from eoq.daemon.services.spool.spool_reader import SWEEP_SECONDS, SpoolReader
from tests.support import PATIENCE, eventually

_count = itertools.count()


def put(spool: Path, queue: str, name: str, content: bytes | str = b"") -> None:
    """Rename a file into place. Creates the queue's folder if it does not exist."""
    here = spool / queue
    here.mkdir(parents=True, exist_ok=True)
    unfinished = here / f".{next(_count)}.tmp"
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.rename(here / name)


def waiting(spool: Path, queue: str) -> list[str]:
    """Return the files that are neither stored nor rejected."""
    here = spool / queue
    return sorted(path.name for place in (here, here / ".taking") for path in place.glob("[!.]*"))


def rejected(spool: Path, queue: str, name: str) -> str:
    """Wait until a file is rejected, and return the reason."""
    folder = spool / queue / ".rejected"
    # If a folder changed just while it was scanned, the sweep comes back to it.
    eventually(
        lambda: folder.exists() and name in [path.name for path in folder.iterdir()],
        SWEEP_SECONDS + PATIENCE,
        what=f"{name} is rejected",
    )
    return (folder / f"{name}.reason").read_text()


def arrivals(client: eoq.Client, queue: str, count: int) -> list[eoq.Message]:
    """Receive and ack ``count`` messages, and check that there are no more."""
    found: list[eoq.Message] = []
    while len(found) < count:
        messages = client.receive(queue, count - len(found), PATIENCE)
        assert messages, f"only {[message.text for message in found]} came"
        client.ack_many([(message, None) for message in messages])
        found.extend(messages)
    assert client.receive(queue) == []
    return found


def texts(messages: Iterable[eoq.Message]) -> list[str]:
    """Return their bodies."""
    return [message.text for message in messages]


@asynccontextmanager
async def reading(
    spool: Path, socket: Path, resend_within: Callable[[str], float] = lambda _: 86400.0
) -> AsyncIterator[SpoolReader]:
    """Run a reader of the spool over a socket, which may be another daemon's, or a test's."""
    folder = SpoolFolder(spool, {})
    try:
        async with eoq.connect_async(socket) as client:
            reader = SpoolReader(folder, resend_within)
            task = asyncio.create_task(reader.run(client))
            try:
                yield reader
                assert not task.done(), task.exception()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        folder.close()


async def within(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Do as `eventually`, in a coroutine."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 # no event tells of the folder
            await asyncio.sleep(0.005)
