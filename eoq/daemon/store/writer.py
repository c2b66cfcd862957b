"""Group commit: every command that arrives while a commit runs shares the next transaction and its one sync.

Commands run in the order in which they were submitted. Each outcome is reported only after its transaction is
committed, and on disk if the command is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct

from ...errors import EoqError
from .commands import Command, R
from .weights import weight_of

MOST_WEIGHT: Final = 2000
"""The weight of one transaction, so that none of its commands waits long for the others. One command may have more."""


class Store(Protocol):
    """What the writer needs of a store; see `SqliteStore`."""

    @property
    def quick(self) -> bool: ...
    @property
    def lost(self) -> EoqError | None: ...

    # Each of these may run only the first commands of the batch, where they take long.
    def transact_at_once(self, batch: Sequence[Command[Any]], durable: bool) -> list[object] | None: ...
    async def transact_in_thread(self, batch: Sequence[Command[Any]], durable: bool) -> list[object]: ...


class Submitted(Struct, frozen=True):
    """A command that waits for its transaction."""

    command: Command[Any]
    done: Callable[[Any], None]
    durable: bool
    weight: int


class Writer:
    """The only part of the daemon through which the store is changed."""

    def __init__(self, store: Store, lost: Callable[[EoqError], None]) -> None:
        """``lost`` is told, after the replies, that the store can run no command any more."""
        self._store = store
        self._lost = lost
        self.backlog = 0
        """The weight of all commands that are not finished."""
        self.finished: Callable[[], None] = _nothing
        """Called after the replies of each transaction: there is room for more commands."""
        self._loop = asyncio.get_running_loop()
        self._pending: list[Submitted] = []
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, command: Command[R], done: Callable[[R | EoqError], None], durable: bool = True) -> None:
        """Run ``command`` in the next transaction, then call ``done`` with its outcome or its `EoqError`.

        If a command is not ``durable``, a loss of power may undo it, and it does not wait for the disk by itself.
        """
        weight = weight_of(command)
        self.backlog += weight
        self._pending.append(Submitted(command, done, durable, weight))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            # Not at once: commands that other connections have sent by now share the transaction.
            self._loop.call_soon(self._commit)

    async def drain(self) -> None:
        """Wait until every submitted command is on disk and answered."""
        await self._idle.wait()

    def _commit(self) -> None:
        batch = self._take()
        commands = [submitted.command for submitted in batch]
        durable = any(submitted.durable for submitted in batch)
        outcomes = self._store.transact_at_once(commands, durable) if self._store.quick else None
        if outcomes is not None:
            self._finish(batch, outcomes)
        else:
            task = self._loop.create_task(self._commit_in_thread(batch, commands, durable))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[Submitted]:
        """Return the commands of the next transaction."""
        pending, weight, count = self._pending, 0, 0
        if self.backlog > MOST_WEIGHT:
            for submitted in pending:
                weight += submitted.weight
                if weight > MOST_WEIGHT and count:
                    break
                count += 1
            self._pending = pending[count:]
            return pending[:count]
        self._pending = []
        return pending

    async def _commit_in_thread(self, batch: list[Submitted], commands: list[Command[Any]], durable: bool) -> None:
        self._finish(batch, await self._store.transact_in_thread(commands, durable))

    def _finish(self, batch: list[Submitted], outcomes: list[object]) -> None:
        if len(outcomes) < len(batch):  # they took long, and the others begin the next transaction
            self._pending = batch[len(outcomes) :] + self._pending
            del batch[len(outcomes) :]
        self.backlog -= sum([submitted.weight for submitted in batch])
        try:
            for submitted, outcome in zip(batch, outcomes, strict=True):
                submitted.done(outcome)
        finally:
            if self._store.lost is not None:
                self._lost(self._store.lost)
            if self._pending:
                self._loop.call_soon(self._commit)
            else:
                self._busy = False
                self._idle.set()
            self.finished()


def _nothing() -> None:
    """Do nothing."""
