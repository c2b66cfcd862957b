"""Storing messages: each id once in its queue (G2), behind those of its group (G8), within its queue's limits (G10)."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from .....errors import IdConflict, QueueFull, StorageFull
from ....config.settings import QueueSettings, StorageSettings
from ....records import End, NewMessage, Stored
from ...commands import Put
from ..database import MANY, DatabaseConnection, Verb
from .messages import ENDING_COLUMNS, Ending, MessageTable
from .queues import Tally

SPACE_SECONDS: Final = 0.1
"""How long to rely on the disk having had room."""

MOST_DROPPED: Final = 1000
"""Messages that make room for one send; a queue whose limit was lowered comes down in steps."""

_PUT: Final = """
    insert or ignore into message
      (seq, queue, id, state, priority, enqueued_at, due_at, fixed, expires_at, digest, "group", headers, body)
    values {rows}
    """
_PUT_DELAYED: Final = _PUT.format(rows="(?, ?, ?, 'delayed', ?, ?, ?, ?, ?, ?, ?, ?, ?)")


def _put_ready(row: str, values: int) -> list[str]:
    """Statements for so many messages of one queue that are ready now and expire together, by their number.

    What they share is bound once: half of the time of a row is binding.
    """
    return [
        _PUT.format(
            rows=", ".join(
                row.format(place, *range(4 + values * place, 4 + values * (place + 1))) for place in range(count)
            )
        )
        for count in range(MANY + 1)
    ]


_PUT_PLAIN: Final = _put_ready("(?1 + {}, ?2, ?{}, 'ready', ?{}, ?{}, null, 0, ?3, ?{}, null, null, ?{})", 5)
_PUT_MORE: Final = _put_ready("(?1 + {}, ?2, ?{}, 'ready', ?{}, ?{}, null, 0, ?3, ?{}, ?{}, ?{}, ?{})", 7)
"""Where any of them has a group or headers."""
# The oldest that can make room. Each part is answered by the first entry of an index.
_OLDEST: Final = f"""
    select {ENDING_COLUMNS}
    from message
    where seq = (
      select min(seq)
      from (
        select min(seq) as seq from message where queue = ?1 and state = 'ready' and priority = 0
        union all
        select min(seq) from message where queue = ?1 and state = 'ready' and priority <> 0
        union all
        select min(seq) from message where queue = ?1 and state in ('delayed', 'blocked')
      )
    )
    """  # noqa: S608 # a constant


class Sending(MessageTable):
    """The verb `put`."""

    def __init__(
        self, connection: DatabaseConnection, database: sqlite3.Connection, path: Path, quick_commit: float
    ) -> None:
        super().__init__(connection, database, path, quick_commit)
        self._storage: Callable[[], StorageSettings] = StorageSettings
        self._space_known_at = float("-inf")
        self._no_space: str | None = None

    def put(self, now: float, messages: Sequence[NewMessage]) -> Stored:
        """Stores messages.

        Raises `IdConflict` where an id is stored with other content, `QueueFull` where a queue's limit would be
        exceeded or there are too many queues, `StorageFull` where the disk or the file has no more room for sends;
        then none of ``messages`` is stored.
        """
        queues = {message.queue for message in messages}
        limited = []
        for queue in sorted(queues):
            if self._settings(queue).limited:
                limited.append(queue)
        # A refusal in the middle undoes what was done by then. Of one queue that is known, nothing is.
        if limited or len(queues) > 1 or not queues <= self._queues.keys():
            with self._all_or_nothing():
                return self._put(now, messages, limited)
        return self._put(now, messages, limited)

    def _put(self, now: float, messages: Sequence[NewMessage], limited: Sequence[str]) -> Stored:
        first = self._next_seq
        for queue in limited:
            self._content(self._queue_number(queue))  # counted from now on
        stored = self._put_all(now, messages)
        duplicates = [] if stored == len(messages) else self._duplicates(first, messages)
        if stored:
            self._require_space(first)
        for message in messages:
            if message.group is not None:
                self._block_behind_their_group(first)
                break
        if self._contents:
            self._count_stored(messages, duplicates)
        ended = self._limit(now, limited, first, messages, duplicates) if limited else ()
        return Stored(duplicates, ended)

    # ── sends that share a statement ────────────────────────────────────────────────────────────────────

    def _attempt_all(self, verbs: Sequence[Verb]) -> list[object]:
        outcomes: list[object] = []
        while len(outcomes) < len(verbs):
            outcomes += self._attempt_next(verbs, len(outcomes))
        return outcomes

    def _attempt_next(self, verbs: Sequence[Verb], start: int) -> list[object]:
        """What came of the verb at ``start``, and of those behind it that it was done together with."""
        sends = self._alike(verbs, start)
        if sends:
            return self._put_together(verbs[start : start + len(sends)], sends)
        return [self._attempt(verbs[start])]

    def _alike(self, verbs: Sequence[Verb], start: int) -> list[tuple[float, NewMessage]]:
        """What the verbs from ``start`` on put: one message each, which nothing but its id can hold back."""
        sends: list[tuple[float, NewMessage]] = []
        for verb in verbs[start : start + MANY]:
            if not isinstance(verb, Put) or len(verb.messages) != 1:
                break
            message = verb.messages[0]
            if message.due_at is not None or message.group is not None:
                break
            if not sends:
                queue, expires_at = message.queue, message.expires_at
                if queue not in self._queues or self._settings(queue).limited:
                    break
            elif message.queue != queue or message.expires_at != expires_at:
                break
            sends.append((verb.now, message))
        return sends

    def _put_together(self, verbs: Sequence[Verb], sends: Sequence[tuple[float, NewMessage]]) -> list[object]:
        first = self._next_seq
        if self._put_ready(sends) < len(sends):
            # Not all are new. Which of them is for each to find out.
            self._take_back(first)
            self._next_seq = first
            return [self._attempt(verb) for verb in verbs]
        try:
            self._require_space(first)
        except StorageFull as full:
            return [full] * len(sends)
        if self._contents:
            self._count_stored([message for _, message in sends], ())
        return [Stored([], ())] * len(sends)

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────

    def _put_all(self, now: float, messages: Sequence[NewMessage]) -> int:
        """Returns how many were not there."""
        if len(messages) == 1:
            return self._put_one(now, messages[0])
        together = len({(message.queue, message.expires_at, message.due_at) for message in messages}) == 1
        if not together or messages[0].due_at is not None:
            return sum(self._put_one(now, message) for message in messages)
        sends = [(now, message) for message in messages]
        return sum(self._put_ready(sends[start : start + MANY]) for start in range(0, len(sends), MANY))

    def _put_ready(self, sends: Sequence[tuple[float, NewMessage]]) -> int:
        """Stores up to `MANY` messages of one queue that expire together, each at its time, none of them delayed."""
        _, first = sends[0]
        values: list[object] = [self._next_seq, self._queue_number(first.queue), first.expires_at]
        if [m for _, m in sends if m.group is not None or m.headers is not None]:
            statements = _PUT_MORE
            for now, m in sends:
                values += (m.id, m.priority, now, m.digest, m.group, m.headers, m.body)
        else:
            statements = _PUT_PLAIN
            for now, m in sends:
                values += (m.id, m.priority, now, m.digest, m.body)
        self._next_seq += len(sends)
        return self._database.execute(statements[len(sends)], values).rowcount

    def _put_one(self, now: float, message: NewMessage) -> int:
        if message.due_at is None or message.due_at <= now:
            return self._put_ready([(now, message)])
        row = (
            self._next_seq,
            self._queue_number(message.queue),
            message.id,
            message.priority,
            now,
            message.due_at,
            message.fixed,
            message.expires_at,
            message.digest,
            message.group,
            message.headers,
            message.body,
        )
        self._next_seq += 1
        return self._database.execute(_PUT_DELAYED, row).rowcount

    def _duplicates(self, first: int, messages: Sequence[NewMessage]) -> list[int]:
        duplicates = []
        for index, message in enumerate(messages):
            seq, digest = self._database.execute(
                """
                select seq, digest
                from message
                where queue = ? and id = ?
                """,
                (self._queue_number(message.queue), message.id),
            ).fetchone()
            if seq == first + index:
                continue
            if digest != message.digest:
                self._take_back(first)
                raise IdConflict(
                    f"the id {message.id!r} is stored in the queue {message.queue!r} with other content; "
                    "a new message needs a new id"
                )
            duplicates.append(index)
        return duplicates

    def _take_back(self, first: int) -> None:
        self._database.execute("delete from message where seq >= ?", (first,))

    def _count_stored(self, messages: Sequence[NewMessage], duplicates: Sequence[int]) -> None:
        known = set(duplicates)
        for index, message in enumerate(messages):
            if index not in known:
                self._count(self._queue_number(message.queue), 1, len(message.body))

    # ── limits ──────────────────────────────────────────────────────────────────────────────────────────

    def _limit(
        self, now: float, queues: Sequence[str], first: int, messages: Sequence[NewMessage], duplicates: Sequence[int]
    ) -> list[End]:
        """Backoff queues to their settings, after ``messages`` were stored from place ``first`` on."""
        known = set(duplicates)
        newest = {message.queue: first + index for index, message in enumerate(messages) if index not in known}
        # Where nothing is new, a repeated send is answered, however full the queue is.
        return [end for queue in queues if queue in newest for end in self._limit_one(now, queue, newest[queue])]

    def _limit_one(self, now: float, queue: str, newest: int) -> list[End]:
        number = self._queue_number(queue)
        settings = self._settings(queue)
        ended: list[End] = []
        while len(ended) < MOST_DROPPED and (excess := _excess(self._content(number), settings)) is not None:
            if settings.when_full == "refuse":
                raise QueueFull(f"the queue {queue!r} {excess}; try again when some are settled")
            row = self._database.execute(_OLDEST, (number,)).fetchone()
            if row is None or row[0] == newest:
                raise QueueFull(f"the queue {queue!r} {excess}, and nothing older can be dropped; try again later")
            ended.append(self._discard(now, Ending._make(row), "dropped", "the queue was full, and it was the oldest"))
        return ended

    def _require_space(self, first: int) -> None:
        """Raises `StorageFull` where what is left of the disk or the file is kept for settling what is there."""
        moment = time.monotonic()
        if self._no_space is not None or moment >= self._space_known_at + SPACE_SECONDS:
            self._no_space = self._lacking_space()
            self._space_known_at = moment
        if self._no_space is not None:
            self._take_back(first)
            raise StorageFull(self._no_space)

    def _lacking_space(self) -> str | None:
        storage = self._storage()
        disk = os.statvfs(self.path)
        free = disk.f_bavail * disk.f_frsize
        least = storage.least_free(disk.f_blocks * disk.f_frsize)
        if free < least:
            return (
                f"the disk of {self.path} is full: {free:,} bytes are free, and the last {least:,} are kept for "
                "settling what is there (min_free_bytes); free some space and try again"
            )
        if storage.max_file_bytes is not None:
            (pages,) = self._database.execute("pragma page_count").fetchone()
            (unused,) = self._database.execute("pragma freelist_count").fetchone()
            (size,) = self._database.execute("pragma page_size").fetchone()
            if (pages - unused) * size > storage.max_file_bytes:
                return (
                    f"{self.path} holds {(pages - unused) * size:,} bytes and {storage.max_file_bytes:,} is its limit "
                    "(max_file_bytes); settle messages, drop dead letters, or raise it"
                )
        return None


def _excess(content: Tally, settings: QueueSettings) -> str | None:
    """What is too much in a queue, in words; None while nothing is."""
    if settings.max_depth is not None and content.messages > settings.max_depth:
        return f"has {settings.max_depth:,} messages at most (max_depth)"
    if settings.max_bytes is not None and content.size > settings.max_bytes:
        return f"has {settings.max_bytes:,} bytes of bodies at most (max_bytes)"
    return None
