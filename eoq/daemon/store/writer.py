"""Group commit: every write that arrives while a commit runs shares the next transaction and its one fsync.

Verbs go to the store in the order in which they were submitted, and each is answered only when the transaction
that holds it is on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from .sqlite.database import Verb
from .sqlite.store import Store

Done = Callable[[Any], None]

MOST_VERBS: Final = 2000
"""Verbs in one transaction, so that none of them waits long for the others."""


class Submitted(Struct, frozen=True):
    """A verb that waits for its transaction."""

    verb: Verb
    done: Done
    durable: bool


class Writer:
    """The only one who asks the store to change anything."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._pending: list[Submitted] = []
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, verb: Verb, done: Done, durable: bool = True) -> None:
        """Runs ``verb`` in the next transaction; then calls ``done`` with what it returned, or its `EoqError`.

        One that need not be ``durable`` may be lost with the power, and does not wait for the disk by itself.
        """
        self._pending.append(Submitted(verb, done, durable))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            # Not at once: what other connections have sent by now comes along.
            self._loop.call_soon(self._commit)

    async def drain(self) -> None:
        """Waits until all that was submitted is on disk and answered."""
        await self._idle.wait()

    def _commit(self) -> None:
        batch, self._pending = self._pending[:MOST_VERBS], self._pending[MOST_VERBS:]
        verbs = [submitted.verb for submitted in batch]
        durable = any(submitted.durable for submitted in batch)
        if self._store.quick:
            self._finish(batch, self._store.transact(verbs, durable))
        else:
            task = self._loop.create_task(self._commit_in_thread(batch, verbs, durable))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _commit_in_thread(self, batch: list[Submitted], verbs: list[Verb], durable: bool) -> None:
        self._finish(batch, await self._store.transact_in_thread(verbs, durable))

    def _finish(self, batch: list[Submitted], outcomes: list[object]) -> None:
        try:
            for submitted, outcome in zip(batch, outcomes, strict=True):
                submitted.done(outcome)
        finally:
            if self._pending:
                self._loop.call_soon(self._commit)
            else:
                self._busy = False
                self._idle.set()
