"""The relay: sends the messages of the outbox in an application's file, each once (guarantee G6).

    read → mark → send → remove

The relay may be killed at each arrow. The mark is on disk before the first try, and the row is removed after the daemon
has confirmed the message. If the relay is killed between the two, it sends the message again under the same id, and the
daemon answers it as a duplicate. For the same reason several relays may work on one file.

The daemon forgets the id of a settled message after its retention. So a row that was first tried nearly that long ago
(`RESEND_WITHIN`) is not sent again: the relay sets it aside, and the operator finds out whether it arrived. There is
such a row if the relay was killed at just that moment and then not started for days.

A write to the file wakes the relay. A wake-up may be lost, so the relay also reads the file every 30 seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ..backoff import Backoff, pauses
from ..client.aio import AsyncClient
from ..client.batch_sender import BatchSender
from ..errors import EoqError
from ..message import Outgoing
from ..protocol.features import stored_until
from ..system.aio_thread import in_thread
from .file import OutboxFile
from .rows import FileBusy, NoOutbox, OutboxStore, Row

T = TypeVar("T")

log = logging.getLogger("eoq.relay")

BATCH_ROWS: Final = 250
"""Rows in one transaction of the daemon."""
BATCH_BYTES: Final = 1024 * 1024
"""Bytes of their bodies and headers."""
SWEEP_SECONDS: Final = 30.0
"""How often the relay reads the file without being woken."""
BUSY_SECONDS: Final = 30.0
"""How long the relay waits for another writer of the file before it logs that the file is locked."""
BUSY_PAUSE: Final = 1.0
"""Seconds before the relay reads the file again while another program is writing a transaction."""
RESEND_WITHIN: Final = 6 * 86400.0
"""Seconds after its first try within which a row is sent again: less than the daemon's retention (7 days)."""


class Relay:
    """The relay of one outbox: it sends the messages of ``outbox`` over ``client``, each once.

    ``outbox`` is the path of a SQLite file, or an outbox in another database (`eoq.postgres.outbox_table`).
    A row that was first sent more than ``resend_within`` seconds ago, and never confirmed, is set aside instead of sent
    again. That must be less than the retention of every queue in the outbox. By default it is 6 days.
    """

    def __init__(
        self, outbox: Path | OutboxStore, client: AsyncClient, *, resend_within: float = RESEND_WITHIN
    ) -> None:
        self.resend_within = resend_within
        """Seconds. It may be changed while the relay runs."""
        self._client = client
        self._file = OutboxFile(outbox) if isinstance(outbox, Path) else outbox
        self._source = _Source(self._file, self._until)
        self._backoff = Backoff(self._file.name, log)
        self._sender = BatchSender(client, self._source, self._backoff)
        self._woken = asyncio.Event()
        self._failure = ""
        """Why the outbox could not be read or written last, or nothing."""

    @property
    def error(self) -> str | None:
        """Why the relay waits and sends nothing now, or sends nothing to some queue. None while all is well."""
        refusals = [str(error) for error in self._backoff.errors()]
        return self._failure or (refusals[0] if refusals else None)

    @property
    def sent(self) -> int:
        """How many messages were sent and removed, duplicates included."""
        return self._source.sent

    @property
    def set_aside(self) -> int:
        """How many rows were marked because their message cannot be sent."""
        return self._source.set_aside

    async def check(self) -> None:
        """Raise `Unavailable` without a daemon, and an error that says what is wrong if the file cannot be used.

        A file in which the application has not made the table yet is not an error.
        """
        await self._client.ask("status")
        with suppress(NoOutbox, FileBusy):
            await _run(self._file.count_set_aside)

    def wake(self) -> None:
        """Read the outbox now."""
        self._woken.set()

    async def run(self) -> None:
        """Send what is in the outbox and what is added to it, until this task is cancelled.

        An error of the file or of the daemon does not end it. It logs the error, waits, and goes on.
        """
        watching = asyncio.create_task(self._file.watch(self._woken.set, SWEEP_SECONDS))
        try:
            await self._serve()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._file.close()

    async def flush(self) -> int:
        """Send what is in the outbox now. Return how many rows are set aside.

        Send what can be sent, then raise the first error that kept the rest from being sent (`Unavailable`,
        `QueueFull`, …). Do not wait until the daemon accepts the rest.
        """
        await self.check()
        try:
            try:
                await self._send_all(reread=True)
            except NoOutbox as error:
                log.warning("%s", error)
                return 0
            for refusal in self._backoff.errors():
                raise refusal
            return await _run(self._file.count_set_aside)
        finally:
            self._file.close()

    async def _serve(self) -> None:
        waits = pauses()
        swept_at = -SWEEP_SECONDS
        while True:
            self._woken.clear()
            sweep = time.monotonic() >= swept_at + SWEEP_SECONDS
            swept_at = time.monotonic() if sweep else swept_at
            wait = SWEEP_SECONDS
            try:
                if not await self._send_all(reread=sweep):
                    wait = BUSY_PAUSE
            except EoqError as error:
                if str(error) != self._failure:
                    self._failure = str(error)
                    log.warning("%s; waiting", error)
                # A wake-up ends the pause early: the reason for the error may be gone. If not, the next pause is
                # longer.
                wait = next(waits)
            except Exception:
                log.exception("%s: a fault in eoq; waiting", self._file.name)
                self._failure, wait = "a fault in eoq", next(waits)
            else:
                if self._failure:
                    log.info("%s: goes on", self._file.name)
                waits, self._failure = pauses(), ""
            with suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.seconds_left(wait)):
                    await self._woken.wait()

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    async def _send_all(self, *, reread: bool) -> bool:
        """Send all that can be sent now. Return False if another writer may be about to commit more.

        ``reread`` also finds rows that were changed while they waited. Raises the errors of `OutboxFile`.
        """
        behind_writers = False
        while not self._backoff.is_waiting(None):
            left_out = self._backoff.waiting_queues()
            read = partial(
                self._file.read,
                BATCH_ROWS,
                BATCH_BYTES,
                without=left_out,
                resend_within=self.resend_within,
                behind_writers=behind_writers,
                reread=reread,
            )
            try:
                rows = await _run(read, 0.0 if behind_writers else BUSY_SECONDS)
            except FileBusy:
                if behind_writers:
                    return False
                raise
            if rows:
                reread = behind_writers = False
                await self._send_batch(rows)
            elif not behind_writers:
                # The wake-up may come from a commit that is written but not synced yet. It cannot be seen before the
                # sync, and nothing wakes the relay then. But its writer holds the lock of the file until it can be
                # seen: so read once more, behind that lock.
                behind_writers = True
            else:
                self._backoff.forget_retried(left_out)
                break
        return True

    async def _until(self, sent_at: float) -> float | None:
        """Return until when rows may be stored that were first sent at ``sent_at``, or None for an older daemon."""
        remembers = await self._client.channel.remembers()
        return None if remembers is None else stored_until(sent_at, min(remembers, self.resend_within))

    async def _send_batch(self, rows: Sequence[Row]) -> None:
        self._source.stuck.clear()
        sendable = []
        for row in rows:
            if isinstance(row.message, Outgoing):
                sendable.append((row, row.message))
            elif self._source.may_send(row):
                await self._source.reject(row, row.message)
        await self._sender.send(sendable)


class _Source:
    """The rows of an outbox, for the batch sender."""

    def __init__(self, file: OutboxStore, until: Callable[[float], Awaitable[float | None]]) -> None:
        self.sent = 0
        self.set_aside = 0
        self.stuck: set[object] = set()
        """The queues and groups of this batch that wait for a row that was set aside."""
        self._file = file
        self._until = until

    def may_send(self, key: Row) -> bool:
        return key.stream is None or key.stream not in self.stuck

    async def begin(self, keys: Sequence[Row]) -> tuple[Collection[object], float | None]:
        left, first_try = await _run(partial(self._file.mark, keys))  # a row is gone if another relay has sent it
        return left, await self._until(first_try) if left else None

    async def undo_begin(self, keys: Sequence[Row]) -> None:
        await _run(partial(self._file.unmark, keys))

    async def remove(self, keys: Sequence[Row]) -> None:
        await _run(partial(self._file.remove, keys))
        self.sent += len(keys)

    async def reject(self, key: Row, error: EoqError) -> None:
        await _run(partial(self._file.set_aside, key, str(error)))
        log.error("%s: row %d of the outbox is set aside: %s", self._file.name, key.seq, error)
        self.set_aside += 1
        if key.stream is not None:
            self.stuck.add(key.stream)


async def _run(work: Callable[[], T], patience: float = BUSY_SECONDS) -> T:
    """Run one transaction of the file. Raises `FileBusy` if another writer held the lock for ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return await in_thread(work)
        except FileBusy:
            if time.monotonic() > deadline:
                raise
