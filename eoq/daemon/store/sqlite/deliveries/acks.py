"""Acks: deliveries are settled with their results, and messages leave with them, in one transaction (G4, G7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec.structs import replace

from ....measures import Histogram
from ....records import DeliveryLost, DeliveryRef, NewMessage, Stored
from ....store.commands import Settle
from ..database import Database
from ..sending.puts import Puts
from ..tables.contents import Contents
from ..tables.groups import Groups
from ..tables.queues import Queues
from ..totals import Totals
from .leased import Leased
from .lives import Lives
from .settled import Settled

Acked: TypeAlias = Sequence[tuple[DeliveryRef, "bytes | None"]]
"""Deliveries with their results."""


class Acks:
    """The acks of deliveries."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        groups: Groups,
        contents: Contents,
        leased: Leased,
        lives: Lives,
        settled: Settled,
        puts: Puts,
        totals: Totals,
        handling: Histogram,
    ) -> None:
        """``handling`` gets the seconds from each delivery until its ack."""
        self._database = database
        self._queues = queues
        self._groups = groups
        self._contents = contents
        self._leased = leased
        self._lives = lives
        self._settled = settled
        self._puts = puts
        self._totals = totals
        self._handling = handling

    def settle(self, command: Settle) -> Stored:
        """See `Settle`."""
        now, acks, messages = command.now, command.acks, command.messages
        live, repeated = self._sorted(acks)
        if not repeated and not messages:
            self._ack(now, live, command.forwarded, command.awaits)
            return Stored([], [])
        with self._database.savepoint():
            self._ack(now, live, command.forwarded, command.awaits)
            for delivery in repeated:
                self._require_done(delivery)
            if not messages:
                return Stored([], [])
            sent = self._puts.next_seq
            stored = self._puts.store(now, messages, command.settings)
            if live and len(stored.duplicates) < len(messages):
                self._settled.remember_sent(live[0][0].seq, sent)
            if stored.duplicates and repeated:
                duplicates = self._duplicates_at_first(acks, messages, stored.duplicates)
                stored = replace(stored, duplicates=duplicates)
            return stored

    def _sorted(self, acks: Acked) -> tuple[Acked, list[DeliveryRef]]:
        """Return the acks of leased messages, and the other deliveries: they may only repeat what they did before."""
        live: dict[int, tuple[DeliveryRef, bytes | None]] = {}
        repeated = []
        get = self._leased.get
        for ack in acks:
            delivery = ack[0]
            seq = delivery.seq
            leased = None if delivery.ended or seq in live else get(seq)
            if leased is not None and leased.number == delivery.number:
                live[seq] = ack
            else:
                repeated.append(delivery)
        return list(live.values()), repeated

    def _require_done(self, delivery: DeliveryRef) -> None:
        """Raise `DeliveryLost` unless this very delivery has settled its message."""
        found = self._settled.delivery_of(delivery.queue_id, delivery.id)
        if found is None or found != (self._lives.find(delivery.life), delivery.number):
            raise DeliveryLost(delivery)

    def _duplicates_at_first(self, acks: Acked, messages: Sequence[NewMessage], duplicates: Sequence[int]) -> list[int]:
        """Return the duplicates that the first try of a repeated settle reported.

        A message that was stored with one of the acks is no duplicate: the first try stored it. If an id occurs twice
        in ``messages``, the second one was a duplicate at the first try, too.
        """
        firsts: dict[tuple[str, str], int] = {}
        for index, message in enumerate(messages):
            firsts.setdefault((message.queue, message.id), index)
        sent = self._settled.sent_with([delivery.seq for delivery, _ in acks])

        def is_repeated(index: int) -> bool:
            seq = self._puts.seq_of(messages[index])
            return any(first <= seq < first + len(messages) for first in sent)

        return [
            index
            for index in duplicates
            if firsts[messages[index].queue, messages[index].id] != index or not is_repeated(index)
        ]

    def _ack(self, now: float, acks: Acked, forwarded: str | None, awaits: bool) -> None:
        """Settle leased messages, as done or as ``forwarded`` to a place."""
        if not acks:
            return
        number = acks[0][0].number
        if all(delivery.number == number for delivery, _ in acks):
            self._done(now, [delivery.seq for delivery, _ in acks], forwarded, awaits)
        else:
            for one in sorted({delivery.number for delivery, _ in acks}):
                seqs = [delivery.seq for delivery, _ in acks if delivery.number == one]
                self._done(now, seqs, forwarded, awaits)
        results = [(delivery.seq, result) for delivery, result in acks if result is not None]
        if results:
            self._settled.store_results(results)
        if self._contents:
            for delivery, _ in acks:
                self._contents.add(self._queues.make(delivery.queue), -1, -delivery.size)
        for delivery, _ in acks:
            if delivery.group is not None:
                self._groups.unblock(now, self._queues.make(delivery.queue), delivery.group)

    def _done(self, now: float, seqs: list[int], forwarded: str | None, awaits: bool) -> None:
        """Settle messages that one delivery has leased, as done or as ``forwarded`` to a place."""
        outcome: Literal["done", "forwarded"] = "done" if forwarded is None else "forwarded"
        lease = self._leased.get(seqs[0])
        assert lease is not None  # noqa: S101 # the caller has looked it up
        self._leased.end(seqs)
        self._settled.done(now, self._lives.number, lease.number, seqs, outcome)
        if forwarded is not None:
            self._settled.store_places(seqs, forwarded, awaits)
        self._totals.add(lease.queue_id, outcome, len(seqs))
        self._handling.add(max(0.0, now - lease.delivered_at), len(seqs))
