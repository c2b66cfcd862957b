"""The spool reader: files that are renamed into a folder become messages, each once.

    SPOOL/QUEUE/NAME               a message for QUEUE; its body is the content of the file
    SPOOL/QUEUE/NAME.eoq           the same with options: its first line is a JSON object with any of
                                   id headers priority group delay at ttl, and its body is what follows that line
    SPOOL/QUEUE/.NAME, NAME.tmp    not ready: the reader leaves it alone
    SPOOL/QUEUE/.N-X.eoq.tmp       left by a sender that was killed; the reader removes it after a day
    SPOOL/QUEUE/.taking/           files that are claimed, as TOKEN.NAME
    SPOOL/QUEUE/.rejected/NAME     a file that cannot be stored; the reason is in NAME.reason
    SPOOL/.daemon.lock             the lock: one daemon reads a spool
    SPOOL/.bell                    a named pipe: a sender that opens and closes it wakes the reader at once

A sender writes a file under a name that is not ready, in the same folder. If the message must survive a loss of power,
the sender syncs the file. Then it renames the file. A sender may create the folder of a queue at any time, and the
reader finds it at once. Files of a folder are stored in the order of their names. A message without an ``id`` gets a
new one, whatever the name of its file. ``delay`` and ``ttl`` count from when it is stored. The reader rejects a file
with an unknown option, a link (also a hard one), and everything else that is not a regular file.

`eoq.Spool`, `eoq send --spool` and the shell function of `eoq shell-init` write such files. The first two add
``left_at`` (in seconds since the epoch), from which ``ttl`` counts, and ``tried_at`` if the message was sent before and
may have arrived.

    rename to .taking, sync the folders → store under the token's id → remove

The daemon may be killed, or lose power, at each arrow. The token is a UUIDv7, and the id of a message that has none.
Files found in ``.taking`` are stored again under the same id, and the daemon answers them as duplicates. The rename is
on disk before the first try. Otherwise a file could be back under its former name after a loss of power, and be stored
under a second id.

The daemon forgets the ids of settled messages after the retention of their queue. If it was killed at just that moment
and then not started for days, a file may have been stored nearly that long ago; the time in its token tells. Such a
file is rejected, not stored twice, and the operator decides.

While the daemon refuses files for now (a full disk, a full queue), they stay where they are, and other queues go on.
Renames wake the reader (``system/watch.py``). A wake-up may be lost, so it also scans the folders every 30 seconds.
The default spool, which nobody has asked for, costs nothing until it is used: while no queue has a folder in it, only
the bell wakes the reader. Later it is watched as well, but slowly, since most of its senders ring.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ....backoff import Backoff
from ....client.aio import AsyncClient, connect_async
from ....client.batch_sender import BatchSender
from ....errors import EoqError
from ....message import Outgoing
from ....protocol.features import NOT_AFTER, stored_until
from ....spool.format import is_ready, is_visible
from ....system.aio_thread import in_thread
from ....system.bell import Bell
from ....system.watch import watch_subfolders
from .spool_folder import SpoolFolder
from .spool_queue import LINK_SECONDS, QueueFolder, WhyNot, allow_all

log = logging.getLogger("eoq.spool")

SWEEP_SECONDS: Final = 30.0
"""How often the reader scans all folders without being woken."""


@dataclass(slots=True)
class Counts:
    """How many files were stored and removed, duplicates included, and how many were rejected."""

    stored: int = 0
    rejected: int = 0


class SpoolReader:
    """The reader of a spool: it stores the files as messages.

    ``resend_within`` takes the name of a queue. It returns for how many seconds after the first try a file is sent
    again: less than the queue's retention. ``why_not`` takes a user and the name of a queue. It returns why a file of
    this user may not become a message there, or None.
    """

    def __init__(
        self,
        folder: SpoolFolder,
        resend_within: Callable[[str], float],
        why_not: WhyNot = allow_all,
    ) -> None:
        self.counts = Counts()
        self._folder = folder
        self._resend_within = resend_within
        self._why_not = why_not
        self._queues: dict[str, QueueFolder] = {}
        self._backoff = Backoff(str(folder.path), log)
        self._woken = asyncio.Event()
        self._is_used = asyncio.Event()
        """Set once the spool has the folder of a queue."""
        self._bell = Bell(lambda: folder.descriptor, self._woken.set)

    def describe(self) -> dict[str, Any]:
        """Return what ``status`` says of the spool."""
        return {
            "spool": str(self._folder.path),
            "spool_taken": self.counts.stored,
            "spool_rejected": self.counts.rejected,
        }

    async def run_over(self, socket: Path) -> None:
        """Do as `run`, with a client of the daemon's own socket, where the daemon checks every request."""
        async with connect_async(socket) as client:
            await self.run(client)

    async def run(self, client: AsyncClient) -> None:
        """Store what is in the spool and what is added to it, until this task is cancelled.

        An error of the spool or of the daemon does not end it. It logs the error, waits, and goes on.
        """
        watching = asyncio.create_task(self._watch())
        try:
            swept_at = -SWEEP_SECONDS
            while True:
                self._woken.clear()
                sweep = time.monotonic() >= swept_at + SWEEP_SECONDS
                if sweep:
                    swept_at = time.monotonic()
                    self._bell.listen()
                wait = await self._read_all(client, sweep)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._backoff.seconds_left(wait)):
                        await self._woken.wait()
        finally:
            self._bell.close()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        if self._folder.is_default:
            await self._is_used.wait()
        await watch_subfolders(
            self._folder.path,
            self._woken.set,
            SWEEP_SECONDS,
            is_folder=is_visible,
            is_file=is_ready,
            is_urgent=not self._folder.is_default,
        )

    async def _read_all(self, client: AsyncClient, sweep: bool) -> float:
        """Store what can be stored now. Return after how many seconds to read again without a wake-up."""
        if self._backoff.is_waiting(None):
            return SWEEP_SECONDS
        try:
            names = await in_thread(self._folder.queues)
        except Exception as error:  # noqa: BLE001 # `_failed` logs it
            self._failed(None, error)
            return SWEEP_SECONDS
        if names:
            self._is_used.set()
        known = self._queues
        self._queues = {name: known.get(name) or QueueFolder(self._folder, name, self._why_not) for name in names}
        wait = SWEEP_SECONDS
        for folder in await in_thread(partial(self._scan, sweep)):
            try:
                await self._read_queue(client, folder)
            except Exception as error:  # noqa: BLE001 # `_failed` logs it
                self._failed(folder.queue, error)
            else:
                wait = wait if folder.complete else 0.0
        self._backoff.forget_retried()
        return min(wait, *(LINK_SECONDS for folder in self._queues.values() if folder.has_new_links), SWEEP_SECONDS)

    def _scan(self, sweep: bool) -> list[QueueFolder]:
        """Return the queues that have files. One call scans all queues, since most of them have none."""
        found = []
        for folder in self._queues.values():
            try:
                if self._may_send(folder) and folder.scan(sweep):
                    found.append(folder)
            except Exception as error:  # noqa: BLE001 # `_failed` logs it
                self._failed(folder.queue, error)
        return found

    def _failed(self, queue: str | None, error: Exception) -> None:
        """Let a queue, or the whole spool, wait after an error. A fault in eoq does not end the daemon either."""
        if not isinstance(error, EoqError):
            log.error("%s: a fault in eoq", self._folder.path, exc_info=error)
            error = EoqError(f"eoq failed at {queue or 'the spool'!r}: {error!r}")
        self._backoff.failed(queue, error)

    async def _read_queue(self, client: AsyncClient, folder: QueueFolder) -> None:
        source = _Source(folder, self.counts, client, self._resend_within)
        sender = BatchSender(client, source, self._backoff)
        while self._may_send(folder):
            batch = await in_thread(partial(folder.claim, self._resend_within(folder.queue)))
            if not batch:
                break
            sendable = []
            for file, message in batch:
                if isinstance(message, Outgoing):
                    sendable.append((file, message))
                else:
                    await source.reject(file, message)
            await sender.send(sendable)

    def _may_send(self, folder: QueueFolder) -> bool:
        return not self._backoff.is_waiting(None) and not self._backoff.is_waiting(folder.queue)


class _Source:
    """The files of one queue, for the batch sender."""

    def __init__(
        self, folder: QueueFolder, counts: Counts, client: AsyncClient, resend_within: Callable[[str], float]
    ) -> None:
        self._client = client
        self._resend_within = resend_within
        self._folder = folder
        self._counts = counts
        self._unsent: set[str] = set()
        """The files of the batch that the daemon had certainly not stored before."""

    def may_send(self, key: str) -> bool:
        return True

    async def begin(self, keys: Sequence[str]) -> tuple[Collection[object], float | None]:
        self._unsent, tried_at = self._folder.note_sent(keys)
        if tried_at is None or not await self._client.channel.knows(NOT_AFTER):
            return keys, None
        return keys, stored_until(tried_at, self._resend_within(self._folder.queue))

    async def undo_begin(self, keys: Sequence[str]) -> None:
        self._folder.note_unsent(self._unsent)

    async def remove(self, keys: Sequence[str]) -> None:
        await in_thread(partial(self._folder.remove, keys))
        self._counts.stored += len(keys)

    async def reject(self, key: str, error: EoqError) -> None:
        self._counts.rejected += await in_thread(partial(self._folder.reject, key, error))
