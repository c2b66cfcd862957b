"""The tables ``outcome`` and ``result``: what is remembered of messages that have left the table ``message``.

Their ids stay in the table ``known_id``, where each send has put its own. The view ``settled`` has both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from ..database import MANY, Database

_DONE: Final = """
    insert into outcome (seq, queue, outcome, settled_at, life, delivery)
    select seq, queue, ?, ?, ?, ?
    from message
    where {seqs}
    """
_GIVEN_UP: Final = """
    insert into outcome (seq, queue, outcome, settled_at, life, delivery)
    select seq, queue, ?, ?, life, iif(deliveries > 0, coalesce(delivery, 0), null)
    from message
    where seq = ?
    returning delivery
    """
DELIVERED_BEFORE: Final = "; it was delivered before, so it may have taken effect"
"""Ends the reason why a message was given up. Its ack may have been lost with its consumer."""
_RESULT: Final = "insert into result (seq, result) values {rows}"
_RESULT_ONE: Final = _RESULT.format(rows="(?, ?)")
_RESULT_MANY: Final = _RESULT.format(rows=", ".join(["(?, ?)"] * MANY))

_PLACE: Final = "insert into result (seq, error, far_outcome) values {rows}"
_PLACE_ONE: Final = _PLACE.format(rows="(?, ?, ?)")
_PLACE_MANY: Final = _PLACE.format(rows=", ".join(["(?, ?, ?)"] * MANY))
AWAITED: Final = "awaited"
"""The ``far_outcome`` of a forwarded message whose result is to come back."""


_FORGET: Final = (
    "delete from outcome where seq in (select value from json_each(?))",
    "delete from failure where seq in (select value from json_each(?))",
    "delete from result where seq in (select value from json_each(?))",
)
_IN_RANGE: Final = "seq between ? and ?"
_IN_LIST: Final = "seq in (select value from json_each(?))"
_DONE_AT: Final = {condition: _DONE.format(seqs=condition) for condition in (_IN_RANGE, _IN_LIST)}
_DELETE_AT: Final = {
    condition: f"delete from message where {condition}"  # noqa: S608 # a constant
    for condition in (_IN_RANGE, _IN_LIST)
}


def at_seqs(seqs: list[int]) -> tuple[str, tuple[object, ...]]:
    """Return a condition for exactly the rows with these seqs, and the values it binds.

    Usually the seqs follow one another. SQLite passes the rows of a range at once, but it first looks up the rows of a
    list.
    """
    if seqs and seqs == list(range(seqs[0], seqs[0] + len(seqs))):
        return _IN_RANGE, (seqs[0], seqs[-1])
    return _IN_LIST, (json.dumps(seqs),)


class Settled:
    """The records of settled messages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def done(self, now: float, life: int, delivery: int, seqs: list[int], outcome: str = "done") -> None:
        """Settle messages that one delivery has leased, as done or forwarded."""
        condition, values = at_seqs(seqs)
        self._database.execute(_DONE_AT[condition], (outcome, now, life, delivery, *values))
        self._database.execute(_DELETE_AT[condition], values)

    def store_results(self, results: Sequence[tuple[int, bytes]]) -> None:
        """Store the results of done messages, by their seqs."""
        self._database.execute_rows(_RESULT_ONE, _RESULT_MANY, results)

    def store_places(self, seqs: Sequence[int], place: str, awaits: bool) -> None:
        """Store where forwarded messages went, and whether their results are to come back."""
        far = AWAITED if awaits else None
        self._database.execute_rows(_PLACE_ONE, _PLACE_MANY, [(seq, place, far) for seq in seqs])

    def give_up(self, now: float, seq: int, outcome: str, error: str) -> str:
        """Settle a message that no consumer has settled. Return ``error``, which says if it was delivered before."""
        (delivery,) = self._database.execute(_GIVEN_UP, (outcome, now, seq)).fetchone()
        self._database.execute("delete from message where seq = ?", (seq,))
        reason = error if delivery is None else error + DELIVERED_BEFORE
        self._database.execute("insert into result (seq, error) values (?, ?)", (seq, reason))
        return reason

    def delivery_of(self, queue_id: int, id: str) -> tuple[int | None, int | None] | None:
        """Return the life and the delivery that have acked or forwarded a message; None where none has."""
        row = self._database.execute(
            """
            select life, delivery
            from settled
            where queue = ? and id = ? and outcome in ('done', 'forwarded')
            """,
            (queue_id, id),
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def outcome_of(self, queue_id: int, id: str) -> str | None:
        """Return how a message was settled; None where its id is not known."""
        row = self._database.execute(
            "select outcome from settled where queue = ? and id = ?", (queue_id, id)
        ).fetchone()
        return None if row is None else str(row[0])

    def first(self, queue_id: int, limit: int) -> list[tuple[str, int]]:
        """Return id and seq of the first records of a queue that has no messages."""
        rows = self._database.execute("select id, seq from settled where queue = ? limit ?", (queue_id, limit))
        return [(id, seq) for id, seq in rows]

    def forget(self, queue_id: int, records: Sequence[tuple[str, int]]) -> None:
        """Delete records of a queue, by their ids and seqs, with all that belongs to them."""
        ids, seqs = (json.dumps([record[part] for record in records]) for part in (0, 1))
        self._database.execute(
            "delete from known_id where queue = ? and id in (select value from json_each(?))", (queue_id, ids)
        )
        for statement in _FORGET:
            self._database.execute(statement, (seqs,))

    # ── messages that were sent with an ack ─────────────────────────────────────────────────────────────

    def remember_sent(self, seq: int, sent: int) -> None:
        """Store that the messages from the seq ``sent`` on were sent with the ack of the message ``seq``."""
        self._database.execute(
            """
            insert into result (seq, sent)
            values (?, ?)
            on conflict (seq) do update set sent = excluded.sent
            """,
            (seq, sent),
        )

    def sent_with(self, seqs: Sequence[int]) -> list[int]:
        """Return the first seqs of the messages that were sent with the acks of these messages."""
        rows = self._database.execute(
            """
            select sent
            from result
            where seq in (select value from json_each(?)) and sent is not null
            """,
            (json.dumps(seqs),),
        ).fetchall()
        return [sent for (sent,) in rows]
