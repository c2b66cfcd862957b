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
from typing import Self

from ....errors import EoqError
from ...config.settings import SettingsOf, StorageSettings, defaults
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
