"""Storing the entries of an export: messages in their states, settled ids with their outcomes, and keys of `once`."""

from __future__ import annotations

from typing import Final

from .....errors import EoqError, IdConflict, StorageFull
from ....portable import EndedMessage, Key, LiveMessage, body_of, digest_of, headers_of, output_of, result_of
from ....store.commands import Import
from ..database import Database
from ..deliveries.leased import Leased
from ..deliveries.record_retention import RecordRetention
from ..space import Space
from ..tables.clock import ClockNotes
from ..tables.contents import Contents
from ..tables.groups import Groups
from ..tables.queues import Queues
from .puts import ROW_BYTES
from .seqs import Seqs
from .setups import Setups

_DIGEST: Final = "select digest from known_id where queue = ? and id = ?"


class Imports:
    """The storing of imported entries."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        groups: Groups,
        contents: Contents,
        leased: Leased,
        seqs: Seqs,
        space: Space,
        clock_notes: ClockNotes,
        retention: RecordRetention,
        setups: Setups,
    ) -> None:
        self._database = database
        self._queues = queues
        self._groups = groups
        self._contents = contents
        self._leased = leased
        self._seqs = seqs
        self._space = space
        self._clock_notes = clock_notes
        self._retention = retention
        self._setups = setups

    def store(self, command: Import) -> int:
        """See `Import`."""
        first = self._seqs.next
        new = 0
        with self._database.savepoint():
            for number, entry in command.entries:
                try:
                    if isinstance(entry, LiveMessage | EndedMessage | Key):
                        new += self._store(command.now, entry)
                    else:
                        new += self._setups.store(number, entry)
                except EoqError as error:
                    raise type(error)(f"line {number}: {error}") from error
            self._setups.check()
            self._groups.block_new(first)
        return new

    def _store(self, now: float, entry: LiveMessage | EndedMessage | Key) -> bool:
        """Store one entry, unless it is known. Return whether it is new."""
        if isinstance(entry, Key):
            return self._put_key(entry)
        if not self._is_new(entry):
            return False
        size = ROW_BYTES + len(body_of(entry) if isinstance(entry, LiveMessage) else result_of(entry) or b"")
        if (lacking := self._space.lacking(size)) is not None:
            raise StorageFull(lacking)
        seq = self._seqs.take(1)
        self._database.execute(
            "insert into known_id (queue, id, seq, digest) values (?, ?, ?, ?)",
            (self._queues.make(entry.queue), entry.id, seq, digest_of(entry)),
        )
        if isinstance(entry, LiveMessage):
            self._put_message(now, seq, entry)
        else:
            self._put_settled(seq, entry)
        for failure in entry.failures:
            self._database.execute(
                """
                insert or ignore into failure (seq, delivery, delivered_at, consumer, failed_at, error)
                values (?, ?, ?, ?, ?, ?)
                """,
                (seq, failure.delivery, failure.delivered_at, failure.consumer, failure.failed_at, failure.error),
            )
        return True

    def _is_new(self, entry: LiveMessage | EndedMessage) -> bool:
        """Return whether an id is not known. Raises `IdConflict` where it is known with other content."""
        queue_id = self._queues.make(entry.queue)
        row = self._database.execute(_DIGEST, (queue_id, entry.id)).fetchone()
        if row is None:
            return True
        if row[0] != digest_of(entry):
            raise IdConflict(
                f"the id {entry.id!r} is stored in the queue {entry.queue!r} with other content; find out which of the "
                "two is right, and remove the line or the message"
            )
        return False

    def _put_message(self, now: float, seq: int, entry: LiveMessage) -> None:
        queue_id = self._queues.make(entry.queue)
        unset = self._clock_notes.unset
        due_at = None if entry.due_at is None or entry.due_at <= now else entry.due_at
        waits = "ready" if due_at is None else "delayed"
        state = "dead" if entry.state == "dead" else waits
        expires_at = unset(entry.expires_at)
        body = body_of(entry)
        self._database.execute(
            """
            insert into message
              (seq, queue, id, state, priority, enqueued_at, due_at, fixed, expires_at, digest, "group", headers, body,
               attempts, deliveries, delivered_at, consumer, failed_at, error, cancelled_at)
            values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            (
                *(seq, queue_id, entry.id, state, entry.priority, entry.enqueued_at),
                *(due_at if entry.fixed else unset(due_at), entry.fixed, expires_at, digest_of(entry)),
                *(entry.group, headers_of(entry), body, entry.attempts, entry.deliveries, entry.delivered_at),
                *(entry.consumer, entry.failed_at, entry.error, entry.cancelled_at),
            ),
        )
        if state == "ready":
            self._leased.ready(queue_id, entry.priority, seq)
        if state != "dead":
            self._contents.add(queue_id, 1, len(body))
        if expires_at is not None:
            self._leased.may_expire(expires_at)

    def _put_settled(self, seq: int, entry: EndedMessage) -> None:
        self._retention.may_be_older(self._queues.make(entry.queue), entry.settled_at)
        self._database.execute(
            """
            insert into outcome (seq, queue, outcome, settled_at, life, delivery)
            values (?, ?, ?, ?, null, ?)
            """,
            (seq, self._queues.make(entry.queue), entry.outcome, entry.settled_at, 0 if entry.delivered else None),
        )
        result = result_of(entry)
        row = (result, entry.error, entry.far_outcome, entry.far_error)
        if any(value is not None for value in row):
            self._database.execute(
                """
                insert into result (seq, result, error, far_outcome, far_error)
                values (?, ?, ?, ?, ?)
                """,
                (seq, *row),
            )

    def _put_key(self, entry: Key) -> bool:
        row = (
            *(entry.key, entry.fingerprint, entry.status, output_of(entry), entry.output_bytes),
            self._clock_notes.unset(entry.expires_at),
        )
        return (
            self._database.execute(
                """
                insert or ignore into once (key, token, fingerprint, state, status, output, output_bytes, expires_at)
                values (?, 'import', ?, 'done', ?, ?, ?, ?)
                """,
                row,
            ).rowcount
            > 0
        )
