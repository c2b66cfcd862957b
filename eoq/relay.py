"""The relay: sends what the outbox of an application's file holds, each message once.

Read, send, remove when confirmed. Killed between the last two, it sends again under the same ids, which the daemon
answers as duplicates. Several relays on one file do no harm for the same reason.

It is woken by writes to the file: watched is its directory, since a process that opened and closed the file itself
would lose SQLite's locks on it. A wake-up is a hint that may be lost, so it also looks every half a minute.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, cast

from watchfiles import Change, awatch

from . import calls, outbox
from .aio import AsyncClient
from .errors import EoqError, IdConflict, InvalidRequest, MessageTooLarge, QueueFull
from .message import Outgoing
from .outbox import Row

T = TypeVar("T")

log = logging.getLogger("eoq.relay")

BATCH_ROWS: Final = 250
BATCH_BYTES: Final = 1024 * 1024
SWEEP_SECONDS: Final = 30.0
"""How often to look without having been woken."""
BUSY_SECONDS: Final = 30.0
"""How long to wait for another writer of the application's file."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries while the daemon cannot take more; they double from the first to the longest."""
DEBOUNCE_MS: Final = 5
NEVER: Final = (IdConflict, InvalidRequest, MessageTooLarge)
"""Refusals that trying again does not change."""


class Relay:
    """Sends the outbox in the SQLite file ``path`` over ``client``."""

    def __init__(self, path: Path, client: AsyncClient) -> None:
        self.path = path
        self.sent = 0
        """Messages sent and removed, duplicates included."""
        self.set_aside = 0
        """Messages marked because they can never be sent."""
        self._client = client
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Sends what is there, and what comes, until it is cancelled. Raises `InvalidRequest` without a file."""
        self.check()
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.sleep(0)  # so that it watches before the first look
            while not watching.done():
                self._woken.clear()
                await self._send_all()
                await self._woken.wait()
            await watching
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self.close()

    async def flush(self) -> None:
        """Sends what is there, and returns. Waits for a daemon that is gone or full. Raises as `run`."""
        self.check()
        try:
            await self._send_all()
        finally:
            self.close()

    def check(self) -> None:
        """Raises `InvalidRequest` where the file is none."""
        if not self.path.is_file():
            raise InvalidRequest(f"{self.path} is not there; name the application's SQLite file that has the outbox")

    def close(self) -> None:
        """Closes the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ── waking ──────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        try:
            names = {self.path.name + suffix for suffix in ("", "-wal", "-journal")}

            def ours(_change: Change, path: str) -> bool:
                return Path(path).name in names

            async for _ in awatch(
                self.path.parent,
                watch_filter=ours,
                recursive=False,
                step=1,
                debounce=DEBOUNCE_MS,
                rust_timeout=int(SWEEP_SECONDS * 1000),
                yield_on_timeout=True,
            ):
                self._woken.set()
        finally:
            self._woken.set()

    # ── one round ───────────────────────────────────────────────────────────────────────────────────────

    async def _send_all(self) -> None:
        pause = FIRST_PAUSE
        full: set[str] = set()
        while True:
            try:
                rows = await self._in_thread(partial(self._read, full))
                if not rows and not full:
                    return
                if rows:
                    await self._send(rows, full)
                    pause = FIRST_PAUSE
                    continue
                log.warning("%s: the queues %s are full; trying again", self.path, ", ".join(sorted(full)))
                full.clear()
            except sqlite3.Error as error:
                log.warning("%s: %s; trying again", self.path, error)
                self.close()
            except EoqError as error:
                if isinstance(error, NEVER):
                    raise
                log.warning("%s: %s; trying again", self.path, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _send(self, rows: list[Row], full: set[str]) -> None:
        messages = [row.message for row in rows if isinstance(row.message, Outgoing)]
        if len(messages) == len(rows):
            try:
                await self._client._run(calls.settle((), messages))
            except (*NEVER, QueueFull):
                if len(rows) == 1:
                    await self._send_one(rows[0], full)
                    return
            else:
                await self._remove(rows)
                return
        # One by one, so that the bad ones are found; those that wait for one of them are left out.
        stopped: set[tuple[str, str]] = set()
        for row in rows:
            message = row.message
            if isinstance(message, Outgoing):
                queue = str(message.queue)
                group = None if message.group is None else (queue, message.group)
                if queue in full or group in stopped:
                    continue
                if not await self._send_one(row, full) and group is not None:
                    stopped.add(group)
            else:
                await self._set_aside(row, message)
                # Its group is not known here; the next look leaves out who waits for it.
                return

    async def _send_one(self, row: Row, full: set[str]) -> bool:
        message = cast(Outgoing, row.message)
        try:
            await self._client._run(calls.settle((), [message]))
        except QueueFull:
            full.add(str(message.queue))
            return False
        except NEVER as error:
            await self._set_aside(row, error)
            return False
        await self._remove([row])
        return True

    async def _remove(self, rows: list[Row]) -> None:
        await self._in_thread(lambda: outbox.remove(self._open(), rows))
        self.sent += len(rows)

    async def _set_aside(self, row: Row, error: EoqError) -> None:
        log.error("%s: row %d of the outbox can never be sent, and is set aside: %s", self.path, row.seq, error)
        await self._in_thread(lambda: outbox.set_aside(self._open(), row, str(error)))
        self.set_aside += 1

    # ── the file ────────────────────────────────────────────────────────────────────────────────────────

    async def _in_thread(self, work: Callable[[], T]) -> T:
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])  # the connection it uses is closed right behind
            raise

    def _read(self, full: set[str]) -> list[Row]:
        try:
            return outbox.read(self._open(), BATCH_ROWS, BATCH_BYTES, full)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []  # the application makes it when it first sends
            raise

    def _open(self) -> sqlite3.Connection:
        """The connection; a new one where the file was replaced (a restore)."""
        inode = self.path.stat().st_ino if self.path.exists() else 0
        if self._connection is not None and inode == self._inode:
            return self._connection
        self.close()
        if not inode:
            raise sqlite3.OperationalError("the file is gone")
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        # Another program may have written what is no UTF-8; it is set aside like all that cannot be sent.
        connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        connection.execute("pragma synchronous = full")
        self._connection = connection
        self._inode = inode
        return connection
