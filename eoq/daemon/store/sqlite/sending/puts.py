"""Storing messages: each id once in its queue (G2), behind its group (G8), within its queue's limits (G10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .....errors import IdConflict, QueueFull, StorageFull
from ....config.settings import QueueSettings, SettingsOf
from ....records import End, NewMessage, Stored, counted
from ....store.commands import Put
from ..database import MANY, Database
from ..deliveries.leased import Leased
from ..deliveries.unleased import Unleased
from ..space import Space
from ..tables.clock import ClockNotes
from ..tables.contents import Content, Contents
from ..tables.groups import Groups
from ..tables.messages import ENDING_COLUMNS, Ending, Messages
from ..tables.queues import Queues
from ..totals import Totals
from .seqs import Seqs

MOST_DROPPED: Final = 1000
"""How many messages one send drops at most. A queue whose limit was lowered reaches it in steps."""

_PUT: Final = """
    insert into message
      (seq, queue, id, state, priority, enqueued_at, due_at, fixed, expires_at, digest, "group", headers, body)
    values {rows}
    """
_PUT_DELAYED: Final = _PUT.format(rows="(?, ?, ?, 'delayed', ?, ?, ?, ?, ?, ?, ?, ?, ?)")
_KNOW: Final = """
    insert or ignore into known_id (queue, id, seq, digest)
    values {rows}
    """


class _Statements(dict[int, str]):
    """Statements by their number of rows. Each is made when it is first needed.

    A row has its index, then its ``own`` values, behind those that all rows share. Shared values are bound once, since
    binding takes half of the time of a row.
    """

    def __init__(self, statement: str, row: str, *, shared: int, own: int) -> None:
        self._statement = statement
        self._row = row
        self._shared = shared
        self._own = own

    def __missing__(self, count: int) -> str:
        firsts = range(self._shared + 1, self._shared + 1 + self._own * count, self._own)
        rows = [self._row.format(index, *range(first, first + self._own)) for index, first in enumerate(firsts)]
        self[count] = statement = self._statement.format(rows=", ".join(rows))
        return statement


ROW_BYTES: Final = 400
"""What a message takes in the file beside its body and headers, with its entries in the indexes, at most about."""
_KNOW_ALL: Final = _Statements(_KNOW, "(?2, ?{1}, ?1 + {0}, ?{2})", shared=2, own=2)
# Messages of one queue that are ready now and expire together.
_PUT_PLAIN: Final = _Statements(
    _PUT, "(?1 + {}, ?2, ?{}, 'ready', ?{}, ?{}, null, 0, ?3, ?{}, null, null, ?{})", shared=3, own=5
)
_PUT_MORE: Final = _Statements(
    _PUT, "(?1 + {}, ?2, ?{}, 'ready', ?{}, ?{}, null, 0, ?3, ?{}, ?{}, ?{}, ?{})", shared=3, own=7
)
"""The statements for messages of which at least one has a group or headers."""
_FIND: Final = "select seq, digest from known_id where queue = ? and id = ?"
_STORED_SINCE: Final = "select queue, id from message where seq >= ?"
_OLDEST_LATER: Final = f"""
    select {ENDING_COLUMNS}
    from message
    where queue = ? and state in ('delayed', 'blocked')
    order by seq
    limit 1
    """  # noqa: S608 # a constant


def bytes_of(message: NewMessage) -> int:
    """Return how many bytes a message takes in the file, at most about."""
    return len(message.body) + ROW_BYTES + (0 if message.headers is None else 4 * len(message.headers))


class Puts:
    """The storing of messages."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        messages: Messages,
        groups: Groups,
        contents: Contents,
        leased: Leased,
        seqs: Seqs,
        space: Space,
        clock_notes: ClockNotes,
        totals: Totals,
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._groups = groups
        self._contents = contents
        self._leased = leased
        self._unleased = Unleased(database, leased)
        self._seqs = seqs
        self._space = space
        self._clock_notes = clock_notes
        self._totals = totals

    @property
    def next_seq(self) -> int:
        """The seq of the next message."""
        return self._seqs.next

    def put(self, command: Put) -> Stored:
        """See `Put`."""
        return self.store(command.now, command.messages, command.settings)

    def store(self, now: float, messages: Sequence[NewMessage], settings: SettingsOf) -> Stored:
        """Store messages, all or none; raise what `Put` raises."""
        names = {message.queue for message in messages}
        limited = sorted(name for name in names if settings(name).limited) if names else []
        known = self._queues.known_id
        # A refusal in the middle must undo what was done before it. With one known queue, nothing was done before.
        if limited or len(names) > 1 or None in map(known, names):
            with self._database.savepoint():
                return self._store(now, messages, settings, limited)
        return self._store(now, messages, settings, limited)

    def _store(
        self, now: float, messages: Sequence[NewMessage], settings: SettingsOf, limited: Sequence[str]
    ) -> Stored:
        first = self._seqs.next
        for queue in limited:
            self._contents.of(self._queues.make(queue))  # counted from now on
        inserted = self._insert_all(now, messages)
        duplicates = [] if inserted == len(messages) else self._duplicates(first, messages)
        if inserted:
            self._require_space(first, messages)
        for message in messages:
            if message.group is not None:
                self._groups.block_new(first)
                break
        self._count(messages, duplicates)
        ended = self._limit(now, limited, first, messages, duplicates, settings) if limited else ()
        return Stored(duplicates, ended)

    # ── sends that share a statement ────────────────────────────────────────────────────────────────────

    def store_alike(self, sends: Sequence[tuple[float, NewMessage]]) -> bool:
        """Store messages of one known queue without limits that are ready now, each at its own moment.

        Return False, and change nothing, where one of them is stored already. Raises `StorageFull`.
        """
        first = self._seqs.next
        if self._insert_ready(sends) < len(sends):
            self._delete_from(first)
            self._seqs.next = first
            return False
        messages = [message for _, message in sends]
        self._require_space(first, messages)
        self._count_new(self._queues.make(messages[0].queue), messages)
        return True

    def store_one(self, now: float, message: NewMessage) -> int | None:
        """Store a message of a known queue without limits that is ready now and has no group; return its seq.

        Return None, and change nothing, where it is stored already or there is no space.
        """
        seq = self._seqs.next
        if not self._insert_ready([(now, message)]):
            self._seqs.next = seq
            return None
        if self._space.lacking(bytes_of(message)) is not None:
            self._delete_from(seq)
            self._seqs.next = seq
            return None
        self._count_new(self._queues.make(message.queue), [message])
        return seq

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────

    def _insert_all(self, now: float, messages: Sequence[NewMessage]) -> int:
        """Insert the messages whose ids are new; return how many."""
        if len(messages) == 1:
            return self._insert_one(now, messages[0])
        inserted = start = 0
        while start < len(messages):
            run = _alike(messages, start)
            if messages[start].due_at is None:
                inserted += self._insert_ready([(now, message) for message in run])
            else:
                inserted += self._insert_one(now, messages[start])
            start += len(run)
        return inserted

    def _insert_ready(self, sends: Sequence[tuple[float, NewMessage]]) -> int:
        """Insert up to `MANY` messages of one queue that expire together and are not delayed; return how many."""
        first_seq = self._seqs.take(len(sends))
        queue_id = self._queues.make(sends[0][1].queue)
        known: list[object] = [first_seq, queue_id]
        for _, m in sends:
            known += (m.id, m.digest)
        if self._database.execute(_KNOW_ALL[len(sends)], known).rowcount == len(sends):
            self._insert_new(first_seq, queue_id, sends)
            return len(sends)
        inserted = 0
        for seq, send in enumerate(sends, first_seq):
            if self._find(send[1])[0] == seq:  # it is not that of an earlier message with this id
                self._insert_new(seq, queue_id, [send])
                inserted += 1
        return inserted

    def _insert_new(self, first_seq: int, queue_id: int, sends: Sequence[tuple[float, NewMessage]]) -> None:
        """Insert messages as `_insert_ready` does, whose ids are new."""
        expires_at = sends[0][1].expires_at
        if expires_at is not None:
            expires_at -= self._clock_notes.set_by
            self._leased.may_expire(expires_at)
        values: list[object] = [first_seq, queue_id, expires_at]
        if [m for _, m in sends if m.group is not None or m.headers is not None]:
            statements = _PUT_MORE
            for now, m in sends:
                values += (m.id, m.priority, now, m.digest, m.group, m.headers, m.body)
        else:
            statements = _PUT_PLAIN
            for now, m in sends:
                values += (m.id, m.priority, now, m.digest, m.body)
        self._leased.stored(queue_id, first_seq, sends)
        self._database.execute(statements[len(sends)], values)

    def _insert_one(self, now: float, message: NewMessage) -> int:
        if message.due_at is None or message.due_at <= now:
            return self._insert_ready([(now, message)])
        seq = self._seqs.take(1)
        queue_id = self._queues.make(message.queue)
        if not self._database.execute(_KNOW_ALL[1], (seq, queue_id, message.id, message.digest)).rowcount:
            return 0
        unset = self._clock_notes.unset
        expires_at = unset(message.expires_at)
        if expires_at is not None:
            self._leased.may_expire(expires_at)
        row = (
            seq,
            queue_id,
            message.id,
            message.priority,
            now,
            message.due_at if message.fixed else unset(message.due_at),
            message.fixed,
            expires_at,
            message.digest,
            message.group,
            message.headers,
            message.body,
        )
        self._database.execute(_PUT_DELAYED, row)
        return 1

    def _duplicates(self, first: int, messages: Sequence[NewMessage]) -> list[int]:
        """Return the indexes of the messages that were not inserted. Raises `IdConflict`."""
        duplicates = []
        for index, message in enumerate(messages):
            seq, digest = self._find(message)
            if seq == first + index:
                continue
            if digest != message.digest:
                self._delete_from(first)
                raise IdConflict(
                    f"the id {message.id!r} is stored in the queue {message.queue!r} with other content; "
                    "a new message needs a new id"
                )
            duplicates.append(index)
        return duplicates

    def seq_of(self, message: NewMessage) -> int:
        """Return the seq under which a message is stored, or was, if it is settled."""
        seq, _ = self._find(message)
        return seq

    def _find(self, message: NewMessage) -> tuple[int, bytes]:
        seq, digest = self._database.execute(_FIND, (self._queues.make(message.queue), message.id)).fetchone()
        return seq, digest

    def _delete_from(self, first: int) -> None:
        """Delete the messages from the seq ``first`` on, as if they had not been sent."""
        for queue_id, id in self._database.execute(_STORED_SINCE, (first,)).fetchall():
            self._database.execute("delete from known_id where queue = ? and id = ?", (queue_id, id))
        self._database.execute("delete from message where seq >= ?", (first,))

    def _require_space(self, first: int, messages: Sequence[NewMessage]) -> None:
        """Raise `StorageFull` where the rest of the disk or the file is kept for settling what is stored."""
        lacking = self._space.lacking(sum(map(bytes_of, messages)))
        if lacking is not None:
            self._delete_from(first)
            raise StorageFull(lacking)

    def _count(self, messages: Sequence[NewMessage], duplicates: Sequence[int]) -> None:
        """Count messages that were stored, but for ``duplicates``, in the totals and contents of their queues."""
        new = messages
        if duplicates:
            known = set(duplicates)
            new = [message for index, message in enumerate(messages) if index not in known]
            for queue, count in counted([messages[index].queue for index in duplicates]).items():
                self._totals.add(self._queues.make(queue), "duplicates", count)
        by_queue: dict[str, list[NewMessage]] = {}
        for message in new:
            by_queue.setdefault(message.queue, []).append(message)
        for queue, stored in by_queue.items():
            self._count_new(self._queues.make(queue), stored)

    def _count_new(self, queue_id: int, messages: Sequence[NewMessage]) -> None:
        """Count new messages of a queue."""
        self._totals.add(queue_id, "sent", len(messages))
        if self._contents:
            for message in messages:
                self._contents.add(queue_id, 1, len(message.body))

    # ── limits ──────────────────────────────────────────────────────────────────────────────────────────

    def _limit(
        self,
        now: float,
        queues: Sequence[str],
        first: int,
        messages: Sequence[NewMessage],
        duplicates: Sequence[int],
        settings: SettingsOf,
    ) -> list[End]:
        """Enforce the limits of queues, after ``messages`` were stored from the seq ``first`` on."""
        known = set(duplicates)
        newest = {message.queue: first + index for index, message in enumerate(messages) if index not in known}
        # A repeated send stores nothing new. It is answered, however full the queue is.
        return [
            end
            for queue in queues
            if queue in newest
            for end in self._limit_one(now, queue, newest[queue], settings(queue))
        ]

    def _limit_one(self, now: float, queue: str, newest: int, settings: QueueSettings) -> list[End]:
        queue_id = self._queues.make(queue)
        ended: list[End] = []
        while len(ended) < MOST_DROPPED and (excess := _excess(self._contents.of(queue_id), settings)) is not None:
            if settings.when_full == "refuse":
                raise QueueFull(f"the queue {queue!r} {excess}; try again when some are settled")
            oldest = self._oldest(queue_id)
            if oldest is None or oldest.seq == newest:
                raise QueueFull(f"the queue {queue!r} {excess}, and nothing older can be dropped; try again later")
            ended.append(self._messages.discard(now, oldest, "dropped", "the queue was full, and it was the oldest"))
        return ended

    def _oldest(self, queue_id: int) -> Ending | None:
        """Return the oldest message that can make room: it is not leased, and no dead letter."""
        ready = self._unleased.oldest(queue_id, self._seqs.next - 1, 1)
        later = self._database.execute(_OLDEST_LATER, (queue_id,)).fetchall()
        return min([*ready, *map(Ending._make, later)], default=None)


def _alike(messages: Sequence[NewMessage], start: int) -> Sequence[NewMessage]:
    """Return the messages from ``start`` on that one statement can insert."""
    first = messages[start]
    queue, expires_at = first.queue, first.expires_at
    end = start + 1
    if first.due_at is None:
        for message in messages[end : start + MANY]:
            if message.queue != queue or message.expires_at != expires_at or message.due_at is not None:
                break
            end += 1
    return messages[start:end]


def _excess(content: Content, settings: QueueSettings) -> str | None:
    """Return the limit that a queue exceeds, as a part of a sentence, or None."""
    if settings.max_depth is not None and content.messages > settings.max_depth:
        return f"has {settings.max_depth:,} messages at most (max_depth)"
    if settings.max_bytes is not None and content.size > settings.max_bytes:
        return f"has {settings.max_bytes:,} bytes of bodies at most (max_bytes)"
    return None
