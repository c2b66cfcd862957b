"""The real broker and store, and the model beside them: every committed command is done in both, and compared.

The pair replaces the writer (`Pair.submit`). So the test chooses which commands share a transaction, and what happens
between a commit and its answers. It never looks into a command. What the model has to do follows from the reason of
the command: a request, or leases that are known to have ended. Where the broker acts by itself, it follows from the
type of the outcome.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from eoq.daemon import records, requests
from eoq.daemon.broker.broker import Broker
from eoq.daemon.broker.due_times import LONGEST_TIMER
from eoq.daemon.broker.events import Events
from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.records import Advanced, Claimed, Shifted
from eoq.daemon.services.admin import AdminService
from eoq.daemon.services.changes import MessageChangeService
from eoq.daemon.services.topics import Topics
from eoq.daemon.session import Fields, Session
from eoq.daemon.store.commands import Claim, Command, EndLife, ListBindings
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.errors import EoqError
from eoq.protocol.codec import encode, get_bytes
from tests.model.hands import Dice, ManualClock
from tests.model.reference import FINISHED, Delivery, End, Key, Message, Model, Refused, Row

PATIENCE: Final = 1000
"""Steps after which the daemon is taken to be in an endless loop."""

Effect = Callable[[], Fields]
"""Does to the model what a request does, and returns the reply that it must get. Or it raises `Refused`."""

_ROWS: Final = """
    select
      message.seq, queue.name, id,
      iif(
        state = 'ready' and message.seq in (select value from delivery, json_each(delivery.seqs)),
        'leased',
        state
      ) as state,
      attempts, priority, "group",
      iif(message.state = 'delayed', due_at + iif(fixed, 0.0, coalesce((select set_by from clock), 0.0)), null),
      expires_at + coalesce((select set_by from clock), 0.0), enqueued_at, failed_at,
      (select count(*) from failure where failure.seq = message.seq), body, null
    from message
    join queue on queue.number = message.queue
    union all
    select
      settled.seq, queue.name, id, outcome, null, null, null, null, null, null, null,
      (select count(*) from failure where failure.seq = settled.seq), null, result
    from settled
    join queue on queue.number = settled.queue
    left join result on result.seq = settled.seq
    order by 1
    """


@dataclass(eq=False)
class Peer:
    """A connection, with the deliveries that are bound to it."""

    session: Session = field(default_factory=Session)
    bound: list[Delivery] = field(default_factory=list)


@dataclass(eq=False)
class Asked:
    """A request and its reply."""

    peer: Peer
    fields: Fields
    effect: Effect | None
    about: Sequence[Delivery]
    at_once: frozenset[str]
    """The replies that it may get before any commit: codes of errors, or ``ok``."""
    stores: Sequence[Key]
    """The messages that it stores."""
    then: Callable[[], None]
    """What the model does when it is confirmed."""
    until: float
    """When it must have been answered, in monotonic seconds."""
    expected: Fields | str | None = None
    outcome: str | None = None
    """The code of its reply, or ``ok``."""

    @property
    def is_receive(self) -> bool:
        return self.fields.get("op") == "receive"


@dataclass(eq=False)
class Submitted:
    """A command that was submitted, and the reason."""

    command: Command[Any]
    done: Callable[[Any], None]
    durable: bool
    wall: float
    asked: Asked | None
    lost: Sequence[Delivery]
    """The deliveries that it gives back, if it does that."""
    counts: bool
    claimed: list[Delivery] = field(default_factory=list)
    delivered: bool = False
    """Whether a client got what it claimed."""
    ready: dict[str, int] = field(default_factory=dict)
    """How many messages were ready for a claim, by queue."""
    lowest: dict[str, Message | None] = field(default_factory=dict)
    """The message at the watermark of each queue, after a claim."""


class Pair:
    """A daemon without a socket, and its model."""

    def __init__(self, folder: Path, settings: dict[str, QueueSettings], jitter: float) -> None:
        self.clock = ManualClock()
        self.dice = Dice(jitter)
        self.settings: Callable[[str], QueueSettings] = lambda queue: settings.get(queue, settings[""])
        self.model = Model(self.settings)
        self.bindings: dict[Key, dict[str, str]] = {}
        """The stored bindings. The model routes by those that the daemon has confirmed."""
        self.deliveries: list[Delivery] = []
        """All deliveries whose receipts a client has, also from earlier daemons."""
        self.seqs: dict[Key, int] = {}
        self._path = folder / "eoq.db"
        self._loop = asyncio.new_event_loop()
        self._starts = 0
        self._confirmed: set[Key] = set()
        self._watermarks: dict[str, int] = {}
        self._open()

    def _open(self) -> None:
        self._starts += 1
        self._asking: Asked | None = None
        self._closing: Peer | None = None
        self._finishing: Submitted | None = None
        self._stopping = False
        self._waiting: list[Submitted] = []
        self._committed: list[tuple[Submitted, object]] = []
        self._open_requests: list[Asked] = []
        self._ends: list[End] = []
        self._jumped_at = float("-inf")
        opening = SqliteStore.open(self._path, settings=self.settings, clock=self.clock.wall)
        self._store = self._loop.run_until_complete(opening)
        self._reader = sqlite3.connect(self._path, isolation_level=None)
        self._compare()
        self._topics = Topics(self)
        self._topics.load(self._loop.run_until_complete(self._store.execute(ListBindings())))
        self.model.bindings = dict(self.bindings)
        events = Events()
        events.on_ended.append(self._note_ends)
        self._broker = Broker(
            self,
            self.clock,
            life=self._store.token,
            events=events,
            rng=self.dice,
            settings=self.settings,
            topics=self._topics,
        )
        admin = AdminService(self, self.clock, self._broker.due_times, events, self._topics, self.settings)
        changes = MessageChangeService(self, self._broker, events)
        self._handlers = {
            **self._broker.handlers,
            **admin.handlers,
            **changes.handlers,
            **self._topics.handlers,
        }
        self._broker.start()

    # ── what the test does ──────────────────────────────────────────────────────────────────────────────

    def ask(
        self,
        peer: Peer,
        fields: Fields,
        effect: Effect | None = None,
        about: Sequence[Delivery] = (),
        at_once: frozenset[str] = frozenset(),
        stores: Sequence[Key] = (),
        then: Callable[[], None] = lambda: None,
    ) -> Asked:
        """Send a request, as a line of the wire."""
        until = self.clock.monotonic() + fields.get("wait", 0)
        asked = Asked(peer, fields, effect, about, at_once, stores, then, until)
        self._broker.clock.wall()  # notices a jump, before the reason of a command is this request
        self._open_requests.append(asked)
        self._asking = asked
        try:
            request = requests.decode(encode(fields))
            self._handlers[type(request)](peer.session, request, partial(self._reply, asked))
        except EoqError as error:
            self._reply(asked, error)
        finally:
            self._asking = None
        return asked

    def submit(self, command: Command[Any], done: Callable[[Any], None], durable: bool = True) -> None:
        """Take a command from the broker, as the writer does."""
        asked, self._asking = self._asking, None  # the command of a request comes first, then those that it wakes
        lost, counts = self._lost_now()
        self._waiting.append(Submitted(command, done, durable, self.clock.wall(), asked, lost, counts))
        for delivery in asked.about if asked else ():
            delivery.in_flight += 1

    def _note_ends(self, ends: Sequence[records.End]) -> None:
        self._ends += [End(end.queue, end.id, end.outcome, end.result) for end in ends]

    def _lost_now(self) -> tuple[Sequence[Delivery], bool]:
        """Return the deliveries that a release submitted at this moment must be about, and whether they count."""
        if self._finishing is not None:
            # They were claimed for a client that has gone, so no consumer has looked at them.
            return ([] if self._finishing.delivered else self._finishing.claimed), False
        if self._closing is not None:
            # A daemon that stops closes its connections: no consumer has failed.
            return [delivery for delivery in self._closing.bound if not delivery.ended], not self._stopping
        return [delivery for delivery in self._live() if delivery.deadline <= self.clock.monotonic()], True

    def _live(self) -> list[Delivery]:
        return [delivery for delivery in self.deliveries if not delivery.ended]

    @property
    def waiting(self) -> int:
        """How many commands are submitted and not committed."""
        return len(self._waiting)

    def commit(self, count: int | None = None) -> None:
        """Run the first ``count`` commands in one transaction. `finish` answers them."""
        self.finish()
        batch, self._waiting = self._waiting[:count], self._waiting[len(self._waiting[:count]) :]
        if not batch:
            return
        outcomes = self._store.transact([s.command for s in batch], any(s.durable for s in batch))
        self._learn_seqs()
        for submitted, outcome in zip(batch, outcomes, strict=True):
            self._apply(submitted, outcome)
        self._compare()
        self._committed = list(zip(batch, outcomes, strict=True))

    def finish(self) -> None:
        """Answer the commands that were committed."""
        committed, self._committed = self._committed, []
        for submitted, outcome in committed:
            self._finishing = submitted
            submitted.done(outcome)
            self._finishing = None
            for delivery in submitted.asked.about if submitted.asked else ():
                delivery.in_flight -= 1
                delivery.ended = delivery.ended or delivery.message.delivery is not delivery

    def come_to_rest(self) -> None:
        """Commit, answer and fire timers until nothing is under way."""
        for _ in range(PATIENCE):
            if self._committed or self._waiting:
                self.commit()
            elif self.clock.waits:
                self.clock.fire()
            else:
                return
        raise AssertionError("the daemon never comes to rest")

    def pass_time(self, seconds: float, *, prompt: bool) -> None:
        """Let time pass. If ``prompt``, all commands are committed in time; else they pile up."""
        target = self.clock.monotonic() + seconds
        for _ in range(PATIENCE):
            due = self.clock.next_due()
            if due is None or due > target:
                break
            self.clock.move_to(due)
            self.clock.fire()
            if prompt:
                self.come_to_rest()
        else:
            raise AssertionError("the timers never come to rest")
        self.clock.move_to(target)
        for delivery in self._live():
            delivery.ended = delivery.deadline <= target

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self.clock.jump(seconds)
        self._jumped_at = self.clock.monotonic()

    def close(self, peer: Peer) -> None:
        """End a connection: its bound deliveries are given back, and its receives get no reply."""
        self._closing = peer
        peer.session.close()
        self._closing = None
        for delivery in peer.bound:
            delivery.ended = True
        self._open_requests = [a for a in self._open_requests if not (a.is_receive and a.peer is peer)]

    def restart(self, peers: Sequence[Peer], *, crash: bool) -> None:
        """End the daemon and start it again. A ``crash`` loses what is not committed."""
        if not crash:
            self._stop(peers)
        self._end_process()
        for delivery in self._live():
            delivery.ended = True
        self.model.restart(self.clock.wall(), crash=crash)
        self._open()

    def _stop(self, peers: Sequence[Peer]) -> None:
        self._stopping = True
        self._broker.stop()
        self._drain()
        assert not self._open_requests, "a daemon that stops answers all requests"
        for peer in peers:
            self.close(peer)
        self._drain()
        self._loop.run_until_complete(self._store.execute(EndLife()))

    def _drain(self) -> None:
        for _ in range(PATIENCE):
            if not self._waiting and not self._committed:
                return
            self.commit()
            self.finish()
        raise AssertionError("the daemon goes on writing while it stops")

    def _end_process(self) -> None:
        self.clock.forget()
        self._reader.close()
        self._loop.run_until_complete(self._store.close())

    def end(self) -> None:
        """End the test."""
        self._end_process()
        self._loop.close()

    # ── what the model does ─────────────────────────────────────────────────────────────────────────────

    def _apply(self, submitted: Submitted, outcome: object) -> None:
        """Do to the model what the command did to the file."""
        asked = submitted.asked
        if asked is not None and asked.effect is not None:
            try:
                asked.expected = asked.effect()
            except Refused as refused:
                asked.expected = refused.code
        elif isinstance(outcome, Claimed):
            self._apply_claim(submitted, outcome)
        elif isinstance(outcome, Advanced):
            self._apply_advance(submitted.wall, outcome)
        elif isinstance(outcome, Shifted):
            self.model.shift(outcome.seconds)
        else:
            assert isinstance(outcome, list), f"a command of the broker itself failed: {outcome!r}"
            self.model.lose(submitted.wall, submitted.lost, counts=submitted.counts)

    def _apply_claim(self, submitted: Submitted, claim: Claimed) -> None:
        for end in claim.ended:
            message = self.model.messages[end.queue, end.id]
            assert message in self.model.expired(submitted.wall), f"{message} has not expired"
            self.model.expire(submitted.wall, message)
        submitted.ready = {queue: len(self.model.next(queue)) for queue in self.model.queues()}
        if claim.messages:
            names = {seq: key for key, seq in self.seqs.items()}
            claimed = [names[message.seq] for message in claim.messages]
            queue = claimed[0][0]
            due = [message.draft.key for message in self.model.next(queue)]
            assert claimed == due[: len(claimed)], f"claimed {claimed} where {due} were ready, in this order"
            late = {message.draft.key for message in self.model.expired(submitted.wall)}
            assert not late & set(claimed), "an expired message was delivered"
            allowance = self.model.allowance(queue)
            assert allowance is None or len(claimed) <= allowance, "more in flight than its queue allows"
            assert isinstance(submitted.command, Claim)
            submitted.claimed = self.model.claim(queue, len(claimed), submitted.command.handles)
        submitted.lowest = {queue: self.model.first_not_settled(queue) for queue in self.model.queues()}

    def _apply_advance(self, now: float, outcome: Advanced) -> None:
        late = self.model.expired(now)
        assert {(end.queue, end.id) for end in outcome.ended} == {message.draft.key for message in late}
        for message in late:
            self.model.expire(now, message)
        due = [message for message in self.model.delayed() if message.due is not None and message.due <= now]
        assert outcome.ready == Counter(message.draft.queue for message in due)
        self.model.promote(now)
        moments = [*(m.due for m in self.model.delayed()), self.model.next_expiry()]
        assert outcome.next_at == min((moment for moment in moments if moment is not None), default=None)

    # ── replies ─────────────────────────────────────────────────────────────────────────────────────────

    def _reply(self, asked: Asked, reply: Fields | EoqError) -> None:
        assert asked.outcome is None, f"{asked.fields} was answered twice"
        self._open_requests.remove(asked)
        asked.outcome = reply.code if isinstance(reply, EoqError) else "ok"
        fields = {} if isinstance(reply, EoqError) else json.loads(requests.encode(dict(reply)))
        if asked.is_receive:
            assert asked.outcome == "ok"
            self._check_delivery(asked, fields)
        elif asked.expected is None:
            assert asked.outcome in asked.at_once, f"{asked.fields}: {asked.outcome} before anything was committed"
        else:
            found = fields if asked.outcome == "ok" else asked.outcome
            assert found == asked.expected, f"{asked.fields}: {found}, not {asked.expected}"
            self._confirm(asked, fields)

    def _confirm(self, asked: Asked, fields: Fields) -> None:
        if asked.outcome == "ok":
            self._confirmed.update(asked.stores)
            asked.then()

    def _check_delivery(self, asked: Asked, reply: Fields) -> None:
        queue = asked.fields["queue"]
        claim = self._finishing
        ready = claim.ready.get(queue, 0) if claim else 0
        if self.settings(queue).max_in_flight is None:
            assert len(reply["messages"]) == min(ready, asked.fields.get("limit", 1))
        self._check_watermark(queue, reply, claim)
        if not reply["messages"]:
            assert asked.until <= self.clock.monotonic() or self._stopping, "its wait was not over"
            return
        assert claim is not None
        claim.delivered = True
        for delivery, fields in zip(claim.claimed, reply["messages"], strict=True):
            self._check_message(delivery, fields)
            self._give(asked, delivery, fields["receipt"])

    def _check_watermark(self, queue: str, reply: Fields, claim: Submitted | None) -> None:
        """Check that everything below the watermark is settled. With a delivery the watermark is exact (G9)."""
        lowest = claim.lowest.get(queue) if claim else self.model.first_not_settled(queue)
        if lowest is not None:
            assert reply["watermark"] <= self.seqs[lowest.draft.key], (
                "the watermark is above a message that is not settled"
            )
        if reply["messages"]:
            assert lowest is not None
            assert reply["watermark"] == self.seqs[lowest.draft.key]
        self._watermarks[queue] = max(self._watermarks.get(queue, 0), reply["watermark"])

    def _check_message(self, delivery: Delivery, fields: Fields) -> None:
        draft = delivery.message.draft
        body = get_bytes(fields.get("body"), fields.get("body_base64"), "body")
        assert (fields["id"], body, fields["attempt"]) == (draft.id, draft.body, delivery.attempt)
        assert fields["seq"] == self.seqs[draft.key]
        assert fields["enqueued_at"] == delivery.message.stored_at
        assert fields.get("headers", {}) == dict(draft.headers)
        assert fields.get("priority", 0) == draft.priority
        assert fields.get("group") == draft.group

    def _give(self, asked: Asked, delivery: Delivery, receipt: str) -> None:
        assert all(receipt != other.receipt for other in self.deliveries), "a receipt was given twice"
        delivery.receipt = receipt
        delivery.deadline = self.clock.monotonic() + asked.fields["lease"]
        self.deliveries.append(delivery)
        if asked.fields.get("bound"):
            asked.peer.bound.append(delivery)

    # ── comparing ───────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _file(self) -> Iterator[list[tuple[Any, ...]]]:
        with closing(self._reader.execute(_ROWS)) as cursor:
            yield cursor.fetchall()

    def _learn_seqs(self) -> None:
        """Read the seqs of new messages from the file. They only ever grow."""
        last = max(self.seqs.values(), default=0)
        with self._file() as rows:
            for seq, queue, id, *_ in rows:
                if (queue, id) not in self.seqs:
                    assert seq > last
                    assert seq >= self._watermarks.get(queue, 0), "stored below a watermark that a client has (G9)"
                    self.seqs[queue, id] = seq

    def _compare(self) -> None:
        with self._file() as rows:
            found = [Row(*row[1:]) for row in rows]
            assert {(row[1], row[2]): row[0] for row in rows} == self.seqs
        for real, model in zip(found, self.model.rows(), strict=False):
            assert real == model
        assert len(found) == len(self.model.messages)
        assert self._confirmed <= self.seqs.keys(), "a confirmed message is missing (G1)"
        self._check_groups(found)

    def _check_groups(self, rows: Sequence[Row]) -> None:
        """Check, without the model, that the first message of each group that has not ended is deliverable (G8)."""
        groups: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            if row.group is not None and row.state not in FINISHED:
                groups.setdefault((row.queue, row.group), []).append(row.state)
        for states in groups.values():
            assert sum(state != "blocked" for state in states) == 1
            assert states[0] != "blocked" or "leased" in states

    def check(self) -> None:
        """Check what must hold whenever nothing is under way."""
        if self._waiting or self._committed or self.clock.waits:
            return
        for asked in self._open_requests:
            assert asked.until > self.clock.monotonic(), f"{asked.fields} was never answered"
            queue = asked.fields["queue"]
            if self.model.allowance(queue) != 0:
                assert not self.model.next(queue), "a receiver waits, and a message is ready"
        assert self._broker.waiting == len(self._open_requests)
        self._check_leases()
        self._check_due()
        assert _by_message(self._ends) == _by_message(self.model.ends), (
            "the end of a message was announced wrongly or not at all"
        )

    def _check_leases(self) -> None:
        leased = self.model.leased()
        for message in leased:
            assert message.delivery in self.deliveries and not message.delivery.ended, (
                "leased, but no client has the receipt"
            )
        assert self._broker.leased == len(leased)

    def _check_due(self) -> None:
        """Check that no message waits past its time. It may for `LONGEST_TIMER` after a jump of the clock."""
        if self.clock.monotonic() < self._jumped_at + LONGEST_TIMER:
            return
        for message in self.model.delayed():
            assert message.due is not None and message.due > self.clock.wall(), (
                "a message is due, and was not made ready"
            )
        assert not self.model.expired(self.clock.wall()), "a message has expired, and was not ended"


def _by_message(ends: Sequence[End]) -> dict[Key, list[End]]:
    """Return how each message ended, and how it ended again after a redrive.

    A repeated ack may announce the same end again. No client waits for it any more by then.
    """
    by_message: dict[Key, list[End]] = {}
    for end in ends:
        known = by_message.setdefault((end.queue, end.id), [])
        if not known or known[-1].outcome != end.outcome:
            known.append(end)
    return by_message
