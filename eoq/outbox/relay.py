"""The relay: sends what the outbox of an application's file holds, each message once (G6).

    read → mark → send → remove

Each arrow is a place to be killed at. The mark is on disk before the first try, the removal comes after the daemon's
confirmation; killed between the two, the relay sends again under the same ids, which the daemon answers as
duplicates. Several relays on one file do no harm for the same reason.

The daemon forgets the ids of settled messages after its retention. So a row whose first try is nearly that long ago
(`RESEND_WITHIN`), because the relay was killed at just that moment and not started again for days, is not sent again
by itself: it is set aside for a person, who can find out whether it arrived.

It is woken by writes to the file. A wake-up is a hint that may be lost, so it also looks every half a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ..backoff import FIRST_PAUSE, LONGEST_PAUSE, NEVER, NOBODY, Backoff
from ..client.aio import AsyncClient
from ..errors import EoqError, Unavailable
from ..message import Outgoing
from ..system.watch import watch_database
from .file import FileBusy, NoOutbox, OutboxFile, Row

T = TypeVar("T")

log = logging.getLogger("eoq.outbox.relay")

BATCH_ROWS: Final = 250
BATCH_BYTES: Final = 1024 * 1024
SWEEP_SECONDS: Final = 30.0
"""How often to look without having been woken."""
BUSY_SECONDS: Final = 30.0
"""How long another writer of the application's file is waited for in silence."""
BUSY_PAUSE: Final = 1.0
"""Seconds until a transaction is looked for again that is being written for so long."""
RESEND_WITHIN: Final = 6 * 86400.0
"""Seconds after its first try within which a row is sent again: less than the daemon's retention (7 days)."""


class Relay:
    """Sends the outbox in the SQLite file ``path`` over ``client``.

    ``resend_within`` is in seconds, and must be less than the retention of every queue that is sent to.
    """

    def __init__(self, path: Path, client: AsyncClient, *, resend_within: float = RESEND_WITHIN) -> None:
        self.path = path
        self.sent = 0
        """Messages sent and removed, duplicates included."""
        self.set_aside = 0
        """Messages marked because they cannot be sent."""
        self.resend_within = resend_within
        """May be changed while it runs."""
        self._client = client
        self._file = OutboxFile(path)
        self._holds = Backoff(str(path), log)
        self._woken = asyncio.Event()

    async def check(self) -> None:
        """Raises `Unavailable` without a daemon, and what is wrong with the file: `FileGone`, `InvalidRequest` where
        it is no database, `Forbidden`. That the table is not there yet is not wrong.
        """
        await self._client.ask("status")
        with suppress(NoOutbox, FileBusy):
            await self._in_thread(self._file.count_set_aside)

    async def run(self) -> None:
        """Sends what is there, and what comes, until it is cancelled. Troubles are logged, and outlived."""
        watching = asyncio.create_task(watch_database(self.path, self._woken.set, SWEEP_SECONDS))
        try:
            await self._serve()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._file.close()

    async def flush(self) -> int:
        """Sends what is there, and returns how many rows are set aside.

        Waits for nobody for longer than the client does: raises what keeps it from sending all (`Unavailable`,
        `QueueFull`, …), after it has sent what could be sent.
        """
        await self.check()
        try:
            try:
                await self._pass(anew=True)
            except NoOutbox as error:
                log.warning("%s", error)
                return 0
            for held in self._holds.errors():
                raise held
            return await self._in_thread(self._file.count_set_aside)
        finally:
            self._file.close()

    async def _serve(self) -> None:
        pause = FIRST_PAUSE
        said = ""
        swept = -SWEEP_SECONDS
        while True:
            self._woken.clear()
            anew = time.monotonic() >= swept + SWEEP_SECONDS
            swept = time.monotonic() if anew else swept
            wait = SWEEP_SECONDS
            try:
                if not await self._pass(anew):
                    wait = BUSY_PAUSE
            except EoqError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("%s; waiting", error)
                # A wake-up may mean that it has passed; if not, the pauses grow.
                wait, pause = pause, min(pause * 2, LONGEST_PAUSE)
            else:
                if said:
                    log.info("%s: goes on", self.path)
                pause, said = FIRST_PAUSE, ""
            with suppress(TimeoutError):
                async with asyncio.timeout(self._holds.seconds(wait)):
                    await self._woken.wait()

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    async def _pass(self, anew: bool) -> bool:
        """Sends all that can be sent now. Returns False if a writer may be about to commit more.

        Raises what is wrong with the file.
        """
        behind_writers = False
        while not self._holds.waits(None):
            without = self._holds.waiting()
            read = partial(
                self._file.read,
                BATCH_ROWS,
                BATCH_BYTES,
                without=without,
                resend_within=self.resend_within,
                behind_writers=behind_writers,
                anew=anew,
            )
            try:
                rows = await self._in_thread(read, 0.0 if behind_writers else BUSY_SECONDS)
            except FileBusy:
                if behind_writers:
                    return False
                raise
            if rows:
                anew = behind_writers = False
                await self._send_batch(rows)
            elif not behind_writers:
                # What woke us may be a commit that is written but not synced yet: it cannot be seen before that, and
                # nothing wakes us again. Its lock is held until it can.
                behind_writers = True
            else:
                self._holds.forget_due(without)
                break
        return True

    async def _send_batch(self, rows: list[Row]) -> None:
        stuck: set[object] = set()
        sendable = []
        for row in rows:
            if row.stream is not None and row.stream in stuck:
                continue
            if isinstance(row.message, EoqError):
                await self._set_aside(row, row.message, stuck)
            else:
                sendable.append(row)
        await self._send(sendable, stuck)

    async def _send(self, rows: list[Row], stuck: set[object]) -> None:
        """Sends rows in one transaction of the daemon's, and where it refuses them, half of them at a time.

        So the one that is refused is found, and those before and behind it are stored in their order.
        """
        rows = [row for row in rows if self._may_go(row, stuck)]
        if not rows:
            return
        await self._in_thread(partial(self._file.mark, rows))
        try:
            async with self._client.transaction() as tx:
                tx.send_many(_message(row) for row in rows)
        except Unavailable as error:
            self._holds.hold(None, error)  # they may have arrived, so the marks stay
        except EoqError as error:
            await self._in_thread(partial(self._file.unmark, rows))
            if isinstance(error, NOBODY):
                self._holds.hold(None, error)
            elif len(rows) > 1:
                middle = len(rows) // 2
                await self._send(rows[:middle], stuck)
                await self._send(rows[middle:], stuck)
            elif isinstance(error, NEVER):
                await self._set_aside(rows[0], error, stuck)
            else:
                self._holds.hold(_message(rows[0]).queue, error)
                # Also when its pause ends before the rest of the batch is sent: a group keeps its order.
                stuck.add(_message(rows[0]).queue)
        else:
            await self._in_thread(partial(self._file.remove, rows))
            self.sent += len(rows)
            self._holds.release({None, *(_message(row).queue for row in rows)})

    def _may_go(self, row: Row, stuck: set[object]) -> bool:
        queue = _message(row).queue
        behind = queue in stuck or (row.stream is not None and row.stream in stuck)
        return not behind and not self._holds.waits(None) and not self._holds.waits(queue)

    async def _set_aside(self, row: Row, error: EoqError, stuck: set[object]) -> None:
        await self._in_thread(partial(self._file.set_aside, row, str(error)))
        log.error("%s: row %d of the outbox is set aside: %s", self.path, row.seq, error)
        self.set_aside += 1
        if row.stream is not None:
            stuck.add(row.stream)

    # ── the file ────────────────────────────────────────────────────────────────────────────────────────

    async def _in_thread(self, work: Callable[[], T], patience: float = BUSY_SECONDS) -> T:
        """Runs one transaction of the file; raises `FileBusy` if another writer held it for ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while True:
            task = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(task)
            except FileBusy:
                if time.monotonic() > deadline:
                    raise
            except asyncio.CancelledError:
                # The connection it uses is closed right behind.
                await asyncio.gather(task, return_exceptions=True)
                raise


def _message(row: Row) -> Outgoing:
    assert isinstance(row.message, Outgoing)  # noqa: S101 # others are set aside as they are read
    return row.message
