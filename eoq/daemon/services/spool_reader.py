"""The spool: files that are renamed into a folder become messages, each once.

    SPOOL/QUEUE/NAME               a message for QUEUE; its body is the file, to the byte
    SPOOL/QUEUE/NAME.eoq           the same, with options: its first line is a JSON object of any of
                                   id headers priority group delay at ttl, and its body is what follows that line
    SPOOL/QUEUE/.NAME, NAME.tmp    not ready: left alone
    SPOOL/QUEUE/.taking/           what is being stored, as TOKEN.NAME
    SPOOL/QUEUE/.rejected/NAME     what cannot be stored, and beside it the reason in NAME.reason
    SPOOL/.daemon.lock             one daemon a spool

Whoever leaves a message writes it under a name that is not ready, in the same folder, syncs the file if it has to
survive a loss of power, and renames it. A queue's folder may be made at any time, and is found as it appears. Files
that stand there together are taken in the order of their names. A message without an ``id`` gets a new one, whatever
its name. ``delay`` and ``ttl`` count from when it is stored. An option that is not known is refused, and so are links,
also hard ones, and all else that is no regular file. `eoq.Spool` and `eoq send --spool` leave files like that; they add
``left_at`` (seconds since the epoch), from which ``ttl`` counts, and ``tried_at`` to what has been sent before and may
have arrived.

    rename to .taking, sync the folders → store under the token's id → remove

Each arrow is a place to be killed at, or to lose power at. The token, a UUIDv7, is the id of a message that brings
none. What is found in ``.taking`` is stored again under the same id, which the daemon answers as a duplicate. It is
ours alone before the first try, also after a loss of power, since otherwise it could come back under its old name and
be taken under a second id.

The daemon forgets the ids of settled messages after their queue's retention. So what may have been stored nearly that
long ago, because the daemon was killed at just that moment and not started again for days, is rejected for a person
to look at, instead of being doubled. The token's time tells.

Files wait where they are while the daemon refuses them for now (a full disk, a full queue), without holding up other
queues. Woken by renames (``watch.py``); since a wake-up may be lost, it also looks every half a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from ...backoff import NEVER, NOBODY, Backoff
from ...client.aio import AsyncClient
from ...errors import EoqError, Unavailable
from ...message import Outgoing
from ...protocol import calls
from ...spool.format import is_ready, is_visible
from ...system.watch import watch_subfolders
from .spool_folder import LINK_SECONDS, QueueFolder, SpoolFolder, Taken

T = TypeVar("T")

log = logging.getLogger("eoq.spool.sender")

SWEEP_SECONDS: Final = 30.0
"""How often to look without having been woken."""


class SpoolReader:
    """Stores what stands in a spool, over ``client``.

    ``resend_within`` says of a queue for how many seconds what may have been stored can be sent again: less than its
    retention.
    """

    def __init__(self, folder: SpoolFolder, resend_within: Callable[[str], float]) -> None:
        self.taken = 0
        """Files stored and removed, duplicates included."""
        self.rejected = 0
        self._folder = folder
        self._resend_within = resend_within
        self._queues: dict[str, QueueFolder] = {}
        self._holds = Backoff(str(folder.path), log)
        self._woken = asyncio.Event()

    def describe(self) -> dict[str, Any]:
        """What ``status`` says of it."""
        return {"spool": str(self._folder.path), "spool_taken": self.taken, "spool_rejected": self.rejected}

    async def run(self, client: AsyncClient) -> None:
        """Takes what is there, and what comes, until it is cancelled. Troubles are logged, and outlived."""
        self._client = client
        watching = asyncio.create_task(
            watch_subfolders(self._folder.path, self._woken.set, SWEEP_SECONDS, is_folder=is_visible, is_file=is_ready)
        )
        try:
            swept = -SWEEP_SECONDS
            while True:
                self._woken.clear()
                anew = time.monotonic() >= swept + SWEEP_SECONDS
                swept = time.monotonic() if anew else swept
                wait = await self._pass(anew)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._holds.seconds(wait)):
                        await self._woken.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _pass(self, anew: bool) -> float:
        """Takes from each queue what can be taken now; the seconds until the next look, if nothing wakes us."""
        if self._holds.waits(None):
            return SWEEP_SECONDS
        try:
            names = await _in_thread(self._folder.queues)
        except EoqError as error:
            self._holds.hold(None, error)
            return SWEEP_SECONDS
        self._queues = {name: self._queues.get(name) or QueueFolder(self._folder, name) for name in names}
        wait = SWEEP_SECONDS
        for queue in await _in_thread(partial(self._look, anew)):
            try:
                await self._take_from(queue)
            except EoqError as error:
                self._holds.hold(queue.queue, error)
            else:
                wait = wait if queue.complete else 0.0
        self._holds.forget_due()
        return min(wait, *(LINK_SECONDS for queue in self._queues.values() if queue.settling), SWEEP_SECONDS)

    def _look(self, anew: bool) -> list[QueueFolder]:
        """The queues that have something to take. In one go for all of them: most have nothing."""
        found = []
        for queue in self._queues.values():
            try:
                if self._may_go(queue) and queue.look(anew):
                    found.append(queue)
            except EoqError as error:
                self._holds.hold(queue.queue, error)
        return found

    async def _take_from(self, folder: QueueFolder) -> None:
        while self._may_go(folder):
            batch = await _in_thread(partial(folder.take, self._resend_within(folder.queue)))
            if not batch:
                break
            for file, message in batch:
                if isinstance(message, EoqError):
                    await self._reject(folder, file, message)
            await self._send(folder, [taken for taken in batch if isinstance(taken.message, Outgoing)])

    async def _send(self, folder: QueueFolder, batch: Sequence[Taken]) -> None:
        """Stores files in one transaction of the daemon's, and where it refuses them, half of them at a time.

        So the one that is refused is found, and those before and behind it are stored in their order.
        """
        if not batch or not self._may_go(folder):
            return
        files = [taken.file for taken in batch]
        take_back = folder.sending(files)
        try:
            await self._client._run(calls.settle((), [_message(taken) for taken in batch]))
        except Unavailable as error:
            self._holds.hold(None, error)  # they may have arrived
        except EoqError as error:
            take_back()
            if isinstance(error, NOBODY):
                self._holds.hold(None, error)
            elif len(batch) > 1:
                middle = len(batch) // 2
                await self._send(folder, batch[:middle])
                await self._send(folder, batch[middle:])
            elif isinstance(error, NEVER):
                await self._reject(folder, files[0], error)
            else:
                self._holds.hold(folder.queue, error)
        else:
            await _in_thread(partial(folder.remove, files))
            self.taken += len(files)
            self._holds.release((None, folder.queue))

    async def _reject(self, folder: QueueFolder, file: str, error: EoqError) -> None:
        self.rejected += await _in_thread(partial(folder.reject, file, error))

    def _may_go(self, folder: QueueFolder) -> bool:
        return not self._holds.waits(None) and not self._holds.waits(folder.queue)


async def _in_thread(work: Callable[[], T]) -> T:
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        # The folder's lock is given back right behind.
        await asyncio.gather(task, return_exceptions=True)
        raise


def _message(taken: Taken) -> Outgoing:
    assert isinstance(taken.message, Outgoing)  # noqa: S101 # others are rejected as they are read
    return taken.message
