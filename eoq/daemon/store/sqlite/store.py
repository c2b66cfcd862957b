"""The daemon's file, behind verbs (put, claim, settle, retry, …): every statement that changes it.

A verb runs inside the transaction that `transact` opens for all verbs of the moment. It either does all of its
work, or raises an `EoqError` having changed nothing, so that one refusal harms no other verb of the batch.

    file.py           opening, transactions
    queue_table.py    queues: names, pause, what is in them
    message_table.py  what the verbs about messages share: groups, failures, ends
    sending.py        put
    delivering.py     claim, settle, retry, reject
    handing_over.py   a put and a claim as one
    timing.py         advance, forget
    steering.py       purge, redrive, drop
    topic_table.py    bind, unbind
    once_table.py     the dedup service
    schedule_table.py schedules
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from ....errors import EoqError
from ...config.settings import SettingsOf, StorageSettings, defaults
from ...records import Forgotten
from .. import commands
from .batching import HandingOver
from .database import QUICK_COMMIT
from .tables.dead_letters import DeadLetters
from .tables.once import OnceTable
from .tables.schedules import ScheduleTable
from .tables.timers import Timing
from .tables.topics import TopicTable


class Store(HandingOver, Timing, DeadLetters, TopicTable, OnceTable, ScheduleTable):
    """All that the daemon keeps. Open it with `Store.open`."""

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        quick_commit: float = QUICK_COMMIT,
        settings: SettingsOf = defaults,
        storage: Callable[[], StorageSettings] = StorageSettings,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """As `File.open`; then ends the leases of the daemon before.

        Where such a lease was the last of its queue's ``max_attempts``, its message is dead.
        """
        store = await super().open(path, quick_commit=quick_commit)
        store._settings = settings
        store._storage = storage
        (failure,) = await store.transact_in_thread([partial(store._recover, clock())])
        if isinstance(failure, EoqError):
            await store.close()
            raise failure
        return store

    def _attempt(self, verb: Any) -> object:
        run = _RUN.get(type(verb))
        return super()._attempt(verb if run is None else partial(run, self, verb))


_RUN: dict[type, Callable[[Store, Any], object]] = {
    commands.Put: lambda s, c: s.put(c.now, c.messages),
    commands.Claim: lambda s, c: s.claim(c.now, c.queue, c.limit, c.most_bytes, c.consumer),
    commands.Settle: lambda s, c: s.settle(c.now, c.acks, c.messages),
    commands.RetryDeliveries: lambda s, c: s.retry(
        c.now, c.deliveries, due_at=c.due_at, error=c.error, counts=c.counts
    ),
    commands.RejectDelivery: lambda s, c: s.reject(c.now, c.delivery, c.error),
    commands.Advance: lambda s, c: s.advance(c.now, c.limit),
    commands.ShiftTimes: lambda s, c: s.shift(c.seconds),
    commands.Forget: lambda s, c: Forgotten(*s.forget(c.after, lambda q: c.now - c.settings(q).retention, c.limit)),
    commands.Pause: lambda s, c: s.pause(c.queue, c.paused),
    commands.Purge: lambda s, c: s.purge(c.now, c.queue, c.upto),
    commands.Redrive: lambda s, c: s.redrive(c.now, c.queue, ids=c.ids, failed_before=c.failed_before, after=c.after),
    commands.Drop: lambda s, c: s.drop(c.now, c.queue, ids=c.ids, failed_before=c.failed_before, after=c.after),
    commands.Bind: lambda s, c: s.bind(c.binding, c.configured),
    commands.Unbind: lambda s, c: s.unbind(c.topic, c.queue),
    commands.ListBindings: lambda s, c: s.bindings(),
    commands.OnceBegin: lambda s, c: s.once_begin(c.now, c.key, c.token, c.fingerprint),
    commands.OnceFinish: lambda s, c: s.once_finish(c.key, c.token, c.status, c.output, c.output_bytes, c.expires_at),
    commands.OnceRelease: lambda s, c: s.once_release(c.key, c.token),
    commands.OnceRunning: lambda s, c: s.once_running(),
    commands.OnceForget: lambda s, c: s.once_forget(c.now, c.limit),
}
