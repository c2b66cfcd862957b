"""Group commit: every write that arrives while a commit runs shares the next transaction and its one fsync.

Verbs go to the store in the order in which they were submitted, and each is answered only when the transaction
that holds it is on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from .store import Store, Verb

Done = Callable[[Any], None]

MOST_VERBS: Final = 2000
"""Verbs in one transaction, so that none of them waits long for the others."""


class Writer:
    """The only one who asks the store to change anything."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._pending: list[tuple[Verb, Done]] = []
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, verb: Verb, done: Done) -> None:
        """Runs ``verb`` in the next transaction; then calls ``done`` with what it returned, or its `EoqError`."""
        self._pending.append((verb, done))
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
        verbs = [verb for verb, _ in batch]
        if self._store.quick:
            self._finish(batch, self._store.transact(verbs))
        else:
            task = self._loop.create_task(self._commit_in_thread(batch, verbs))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _commit_in_thread(self, batch: list[tuple[Verb, Done]], verbs: list[Verb]) -> None:
        self._finish(batch, await self._store.transact_in_thread(verbs))

    def _finish(self, batch: list[tuple[Verb, Done]], outcomes: list[object]) -> None:
        try:
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                done(outcome)
        finally:
            if self._pending:
                self._loop.call_soon(self._commit)
            else:
                self._busy = False
                self._idle.set()
