"""For all requests, in any order and grouping, the broker's file does what a dictionary would (G1-4, G7, G8).

Hypothesis chooses the requests, which of them share a transaction, what happens between a commit and its answers, how
time passes, and when the daemon ends. `tests.model.pair` compares the file with the model after every step.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eoq.daemon.broker.due_times import LONGEST_TIMER
from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.session import Fields
from eoq.protocol.codec import put_bytes
from tests.model.pair import Pair, Peer
from tests.model.reference import FINISHED, Delivery, Draft, Key, Refused

T = TypeVar("T")

EXAMPLES: Final = 25
MANY_EXAMPLES: Final = 960
STEPS: Final = 50
PEERS: Final = 3
LIFE: Final = 10
"""The least number of steps between two restarts, so that leases have some time to be settled."""
BULK: Final = 55
"""Enough for the statements that take many rows at once, and for some rows more."""

peers = st.integers(0, PEERS - 1)
picks = st.integers(0, 2**16)
queues = st.sampled_from(["a", "a", "a", "b"])
names = st.sampled_from(["a", "a", "a", "a", "b", "topic"])
"""Names that messages are sent to. The topic is an ordinary queue until a queue is bound to it."""
results = st.sampled_from([None, b"", b"paid", b"\xff\x00"])
groups = st.sampled_from([None, "g", "g"])
delays = st.sampled_from([None, None, None, 0.0, 1.0, 100.0, 400.0])
ttls = st.sampled_from([None, None, None, None, 1.0, 50.0, 200.0])
settings_of_queues = st.builds(
    QueueSettings,
    max_attempts=st.sampled_from([1, 2, 4]),
    retry_first=st.sampled_from([0.0, 0.0, 2.0]),
    ttl=st.sampled_from([None, None, None, 100.0]),
    on_expiry=st.sampled_from(["settle", "dead"]),
    max_in_flight=st.sampled_from([None, None, 1, 2]),
    max_depth=st.sampled_from([None, None, None, 3, 60]),
    max_bytes=st.sampled_from([None, None, None, 5]),
    when_full=st.sampled_from(["refuse", "drop_oldest"]),
)
leases = st.sampled_from([5.0, 30.0, 70.0, 200.0])
waits = st.sampled_from([1.0, 10.0, 300.0])
limits = st.sampled_from([1, 1, 2, 1000])
handled = st.sampled_from([None, None, 0, 1])
"""How many of its messages a receive says that it handles at once."""
afterwards = st.sampled_from(["rest", "commit", "leave"])
"""What happens right after a request: everything, the commit without the answers, or nothing yet."""

drafts = st.builds(
    Draft,
    queue=names,
    id=st.sampled_from([None] * 18 + ["i1", "i2"]),
    body=st.sampled_from([b"x", b"x", b"", b"\xff\x00"]),
    headers=st.sampled_from([(), (), (("k", "v"),)]),
    group=groups,
    priority=st.integers(-1, 1),
    due=delays,
    expires=ttls,
)
"""Messages. An ``id`` of None is replaced by a new one; ``due`` and ``expires`` are in seconds from now."""
plain = st.builds(
    Draft,
    queue=queues,
    id=st.sampled_from([None] * 8 + ["i1", "i2"]),
    body=st.sampled_from([b"x", b"\xff\x00"]),
    headers=st.sampled_from([(), (("k", "v"),)]),
    priority=st.integers(-1, 1),
)
"""Messages that are deliverable at once."""


class Machine(RuleBasedStateMachine):
    """The rules. A request that names a delivery may name any that a client ever got, also from an earlier daemon."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="eoq-model-"))
        self.peers = [Peer() for _ in range(PEERS)]
        self.serial = 0
        self.age = 0

    @initialize(of_a=settings_of_queues, of_others=settings_of_queues, jitter=st.sampled_from([0.8125, 1.0]))
    def start(self, of_a: QueueSettings, of_others: QueueSettings, jitter: float) -> None:
        self.pair = Pair(self.folder, {"a": of_a, "": of_others}, jitter)

    def teardown(self) -> None:
        try:
            self.pair.end()
        finally:
            shutil.rmtree(self.folder)

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    @rule(peer=peers, draft=drafts, then=afterwards)
    def send(self, peer: int, draft: Draft, then: str) -> None:
        self._send(peer, self._dated(draft), then)

    @precondition(lambda self: self.pair.model.messages)
    @rule(
        peer=peers,
        pick=picks,
        changed=st.sampled_from([{}, {}, {"body": b"?"}, {"headers": (("k", "?"),)}, {"group": "?"}]),
        priority=st.integers(-1, 1),
        then=afterwards,
    )
    def send_again(self, peer: int, pick: int, changed: dict[str, Any], priority: int, then: str) -> None:
        """A repeated send. Its content must be the same. Other options may differ, and change nothing."""
        stored = _pick(list(self.pair.model.messages.values()), pick).draft
        self._send(peer, replace(stored, priority=priority, due=None, expires=None, **changed), then)

    def _send(self, peer: int, draft: Draft, then: str) -> None:
        now = self.pair.clock.wall()
        routed = self.pair.model.route(now, [draft])
        copies = self.pair.model.copies(routed, [draft])

        def effect() -> Fields:
            counts = {} if copies is None else {"queues": copies[0]}
            return {"id": draft.id, "duplicate": bool(self.pair.model.put(now, routed)), **counts}

        fields = {"op": "send", "queue": draft.queue, **self._wire(draft)}
        self.pair.ask(self.peers[peer], fields, effect, stores=[copy.key for _, copy in routed])
        self._then(then)

    @rule(peer=peers, queue=names, batch=st.lists(drafts, min_size=1, max_size=4), then=afterwards)
    def send_many(self, peer: int, queue: str, batch: list[Draft], then: str) -> None:
        self._send_many(peer, queue, [self._dated(draft, queue) for draft in batch], then)

    @rule(peer=peers, queue=queues, group=groups, conflict=st.sampled_from([False, False, True]), then=afterwards)
    def send_bulk(self, peer: int, queue: str, group: str | None, conflict: bool, then: str) -> None:
        """Send many messages in one request. With a ``conflict`` in the middle, none is stored."""
        batch = [self._dated(Draft(queue, "", group=group)) for _ in range(BULK)]
        if conflict:
            batch.insert(BULK // 2, Draft(queue, batch[0].id, b"other", group=group))
        self._send_many(peer, queue, batch, then)

    def _send_many(self, peer: int, queue: str, batch: list[Draft], then: str) -> None:
        now = self.pair.clock.wall()
        routed = self.pair.model.route(now, batch)
        copies = self.pair.model.copies(routed, batch)

        def effect() -> Fields:
            counts = {} if copies is None else {"queues": copies}
            return {"ids": [draft.id for draft in batch], "duplicates": self.pair.model.put(now, routed), **counts}

        fields = {"op": "send_many", "queue": queue, "messages": [self._wire(draft) for draft in batch]}
        self.pair.ask(self.peers[peer], fields, effect, stores=[copy.key for _, copy in routed])
        self._then(then)

    def _dated(self, draft: Draft, queue: str | None = None) -> Draft:
        """Return the draft with a new id where it has none, and with moments for its delays."""
        id = draft.id
        if not id:
            self.serial += 1
            id = f"n{self.serial}"
        now = self.pair.clock.wall()
        due = None if draft.due is None else now + draft.due
        expires = None if draft.expires is None else now + draft.expires
        fixed = due is not None and bool(self.serial % 2)
        return replace(draft, queue=queue or draft.queue, id=id, due=due, expires=expires, fixed=fixed)

    def _wire(self, draft: Draft) -> Fields:
        fields: Fields = {"id": draft.id, "priority": draft.priority, "group": draft.group}
        put_bytes(fields, "body", draft.body)
        if draft.headers:
            fields["headers"] = dict(draft.headers)
        if draft.due is not None:
            # The two ways to write the same moment.
            if draft.fixed:
                fields["at"] = draft.due
            else:
                fields["delay"] = draft.due - self.pair.clock.wall()
        if draft.expires is not None:
            fields["ttl"] = draft.expires - self.pair.clock.wall()
        return fields

    # ── receiving ───────────────────────────────────────────────────────────────────────────────────────

    @rule(peer=peers, queue=queues, limit=limits, lease=leases, bound=st.booleans(), handles=handled, then=afterwards)
    def receive(self, peer: int, then: str, **options: Any) -> None:
        self.pair.ask(self.peers[peer], {"op": "receive", **options})
        self._then(then)

    @rule(peer=peers, queue=queues, limit=limits, wait=waits, lease=leases, bound=st.booleans(), then=afterwards)
    def wait(self, peer: int, then: str, **options: Any) -> None:
        """A receive that waits. It is answered when there is a message, or when its time is over."""
        self.pair.ask(self.peers[peer], {"op": "receive", **options})
        self._then(then)

    @rule(queue=queues, limit=limits, group=groups, count=st.integers(1, PEERS + 1), then=afterwards)
    def all_wait(self, queue: str, limit: int, group: str | None, count: int, then: str) -> None:
        """One send wakes several receivers. Each that can have a message must get one."""
        for peer in range(PEERS):
            self.wait(peer, "leave", queue=queue, limit=limit, wait=300.0, lease=30.0)
        self.pair.come_to_rest()
        self._send_many(0, queue, [self._dated(Draft(queue, "", group=group)) for _ in range(count)], then)

    @rule(queue=queues, limit=limits, some=st.lists(plain | drafts, min_size=1, max_size=6), then=afterwards)
    def send_to_waiting(self, queue: str, limit: int, some: list[Draft], then: str) -> None:
        """Send one by one while several receivers wait: each message is stored right before the next claim."""
        for peer in range(PEERS):
            self.wait(peer, "leave", queue=queue, limit=limit, wait=300.0, lease=30.0)
        self.pair.come_to_rest()
        for draft in some:
            self._send(0, self._dated(draft, queue), "leave")
        self._then(then)

    @precondition(lambda self: any(self.pair.model.next(queue) for queue in "ab"))
    @rule(peer=peers, limit=limits, lease=leases, bound=st.booleans(), handles=handled)
    def receive_ready(self, peer: int, **options: Any) -> None:
        """Receive from a queue that has ready messages, so that there are deliveries to settle."""
        queue = next(queue for queue in "ab" if self.pair.model.next(queue))
        self.pair.ask(self.peers[peer], {"op": "receive", "queue": queue, **options})
        self.pair.come_to_rest()

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.pair.deliveries)
    @rule(peer=peers, pick=picks, result=results, then=afterwards)
    def ack(self, peer: int, pick: int, result: bytes | None, then: str) -> None:
        self._ack(peer, _pick(self._most_alive(), pick), result, then)

    def _ack(self, peer: int, delivery: Delivery, result: bytes | None, then: str) -> None:
        now = self.pair.clock.wall()

        def effect() -> Fields:
            self.pair.model.settle(now, [(delivery, result)])
            return {}

        self.pair.ask(self.peers[peer], {"op": "ack", **_ack(delivery, result)}, effect, [delivery])
        self._then(then)

    @precondition(lambda self: self.pair.deliveries)
    @rule(
        peer=peers,
        acks=st.lists(st.tuples(picks, results), max_size=3),
        lost=st.booleans(),
        sends=st.lists(drafts, max_size=2),
        conflict=st.booleans(),
        then=afterwards,
    )
    def settle(
        self,
        peer: int,
        acks: list[tuple[int, bytes | None]],
        lost: bool,
        sends: list[Draft],
        conflict: bool,
        then: str,
    ) -> None:
        """Ack several deliveries. With ``lost`` any earlier one may be among them, with ``conflict`` an id is taken."""
        given = self._most_alive() + (self.pair.deliveries if lost else [])
        if conflict:
            stored = next(iter(self.pair.model.messages.values())).draft
            sends = [*sends, Draft(stored.queue, stored.id, stored.body + b"?")]
        self._settle(peer, [(_pick(given, pick), result) for pick, result in acks], sends, then)

    @precondition(lambda self: len(self.pair.deliveries) > 1)
    @rule(peer=peers, sends=st.lists(drafts, max_size=1), then=afterwards)
    def settle_all(self, peer: int, sends: list[Draft], then: str) -> None:
        self._settle(peer, [(delivery, b"all") for delivery in self._most_alive()], sends, then)

    def _settle(self, peer: int, acks: list[tuple[Delivery, bytes | None]], sends: list[Draft], then: str) -> None:
        now = self.pair.clock.wall()
        dated = [self._dated(draft) for draft in sends]
        routed = self.pair.model.route(now, dated)
        copies = self.pair.model.copies(routed, dated)

        def effect() -> Fields:
            counts = {} if copies is None else {"queues": copies}
            duplicates = self.pair.model.settle(now, acks, routed)
            return {"ids": [draft.id for draft in dated], "duplicates": duplicates, **counts}

        fields = {
            "op": "settle",
            "acks": [_ack(delivery, result) for delivery, result in acks],
            "send": [{"queue": draft.queue, **self._wire(draft)} for draft in dated],
        }
        stores = [copy.key for _, copy in routed]
        self.pair.ask(self.peers[peer], fields, effect, [delivery for delivery, _ in acks], stores=stores)
        self._then(then)

    @precondition(lambda self: self.pair.deliveries)
    @rule(peer=peers, pick=picks, delay=delays, then=afterwards)
    def nack(self, peer: int, pick: int, delay: float | None, then: str) -> None:
        self._nack(peer, _pick(self._most_alive(), pick), delay, then)

    def _nack(self, peer: int, delivery: Delivery, delay: float | None, then: str) -> None:
        now = self.pair.clock.wall()
        wait = self._backoff(delivery) if delay is None else delay

        def effect() -> Fields:
            self.pair.model.nack(now, delivery, now + wait if wait else None)
            return {}

        fields = {"op": "nack", "receipt": delivery.receipt, "delay": delay}
        self.pair.ask(self.peers[peer], fields, effect, [delivery], _if_it_has_ended(delivery))
        self._then(then)

    def _backoff(self, delivery: Delivery) -> float:
        """Return the configured wait before the second delivery, then a doubling one. The cap is never reached here."""
        first = self.pair.settings(delivery.message.draft.queue).retry_first
        return (first if delivery.attempt == 1 else 2.0 ** (delivery.attempt - 2)) * self.pair.dice.jitter

    @precondition(lambda self: self.pair.deliveries)
    @rule(peer=peers, pick=picks, then=afterwards)
    def reject(self, peer: int, pick: int, then: str) -> None:
        self._reject(peer, _pick(self._most_alive(), pick), then)

    def _reject(self, peer: int, delivery: Delivery, then: str) -> None:
        now = self.pair.clock.wall()

        def effect() -> Fields:
            self.pair.model.reject(now, delivery)
            return {}

        self.pair.ask(self.peers[peer], {"op": "reject", "receipt": delivery.receipt}, effect, [delivery])
        self._then(then)

    @precondition(lambda self: self.pair.deliveries)
    @rule(peer=peers, some=st.lists(picks, min_size=1, max_size=3), then=afterwards)
    def release(self, peer: int, some: list[int], then: str) -> None:
        self._release(peer, [_pick(self._most_alive(), pick) for pick in some], then)

    def _release(self, peer: int, given: list[Delivery], then: str) -> None:
        live = [delivery for delivery in given if not delivery.ended]
        now = self.pair.clock.wall()

        def effect() -> Fields:
            for delivery in live:
                self.pair.model.retry(now, delivery, counts=False)
            return {}

        fields = {"op": "release", "receipts": [delivery.receipt for delivery in given]}
        self.pair.ask(self.peers[peer], fields, effect, live, frozenset({"ok"} if not live else ()))
        self._then(then)

    @precondition(lambda self: self.pair.deliveries)
    @rule(peer=peers, pick=picks, seconds=leases, until_it_ends=st.booleans())
    def extend(self, peer: int, pick: int, seconds: float, until_it_ends: bool) -> None:
        delivery = _pick(self._most_alive(), pick)
        allowed = _if_it_has_ended(delivery)
        if not delivery.ended:
            # While its end is under way, both replies are right.
            allowed = frozenset({"ok", "lease_lost"} if delivery.in_flight else {"ok"})
        fields = {"op": "extend", "receipt": delivery.receipt, "seconds": seconds}
        if self.pair.ask(self.peers[peer], fields, at_once=allowed).outcome == "ok":
            delivery.deadline = self.pair.clock.monotonic() + seconds
        if until_it_ends:
            self.pair.pass_time(seconds, prompt=True)

    @rule(
        peer=peers,
        pick=picks,
        first=st.sampled_from(["nack", "release", "hang_up", "reject", "ack"]),
        again=st.booleans(),
        second=st.sampled_from(["ack", "reject", "settle", "settle_all", "nack", "release"]),
        then=afterwards,
    )
    def end_twice(self, peer: int, pick: int, first: str, again: bool, second: str, then: str) -> None:
        """End one delivery twice in one transaction. The message is perhaps delivered again between the two."""
        self._ensure_a_delivery(peer, BULK if second == "settle_all" else 1)
        if not self.pair.deliveries:
            return  # its queue is full, paused, or has too many in flight
        delivery = _pick(self._most_alive(), pick)
        if first == "hang_up":
            self.hang_up(peer, "leave")
        else:
            self._ending(first, peer, delivery, "leave")
        if again:
            self.receive(peer, "leave", queue=delivery.message.draft.queue, limit=1000, lease=30.0)
        self._ending(second, peer, delivery, then)

    def _ensure_a_delivery(self, peer: int, count: int) -> None:
        """Make deliveries that can be settled, where there are too few."""
        self.pair.come_to_rest()
        if sum(not delivery.ended for delivery in self.pair.deliveries) < count:
            self._send_many(peer, "a", [self._dated(Draft("a", "")) for _ in range(count)], "rest")
            self.receive(peer, "rest", queue="a", limit=1000, lease=30.0, bound=True)

    def _ending(self, how: str, peer: int, delivery: Delivery, then: str) -> None:
        match how:
            case "nack":
                self._nack(peer, delivery, 0.0, then)
            case "release":
                self._release(peer, [delivery], then)
            case "reject":
                self._reject(peer, delivery, then)
            case "ack":
                self._ack(peer, delivery, b"mine", then)
            case "settle":
                self._settle(peer, [(delivery, b"mine")], [Draft("b", "")], then)
            case "settle_all":
                self.settle_all(peer, [], then)

    @rule(peer=peers, queue=queues, times=st.integers(2, 4))
    def fail_again(self, peer: int, queue: str, times: int) -> None:
        """Receive and nack the same first message several times, with the waits between them."""
        for _ in range(times):
            self.receive(peer, "rest", queue=queue, limit=1, lease=30.0)
            if self.pair.deliveries:
                self._nack(peer, self.pair.deliveries[-1], None, "rest")
            self.pair.pass_time(1.0, prompt=True)

    def _most_alive(self) -> list[Delivery]:
        """Return the live deliveries, or else the last ones, so that most requests are about live leases."""
        return [delivery for delivery in self.pair.deliveries if not delivery.ended] or self.pair.deliveries[-3:]

    # ── administration ──────────────────────────────────────────────────────────────────────────────────

    @rule(peer=peers, queue=queues, paused=st.booleans(), then=afterwards)
    def pause(self, peer: int, queue: str, paused: bool, then: str) -> None:
        """Pause or resume a queue. A queue that does not exist cannot be resumed."""
        if not paused and queue not in self.pair.model.queues():
            paused = True
        model = self.pair.model

        def effect() -> Fields:
            changed = (queue in model.paused) != paused
            model.paused = model.paused | {queue} if paused else model.paused - {queue}
            return {"changed": changed}

        self.pair.ask(self.peers[peer], {"op": "pause" if paused else "resume", "queue": queue}, effect)
        self._then(then)

    @precondition(lambda self: self.pair.model.paused)
    @rule(peer=peers, then=afterwards)
    def resume_all(self, peer: int, then: str) -> None:
        for queue in sorted(self.pair.model.paused & self.pair.model.queues()):
            self.pause(peer, queue, False, then)

    @precondition(lambda self: self.pair.model.messages)
    @rule(peer=peers, pick=picks, then=afterwards)
    def purge(self, peer: int, pick: int, then: str) -> None:
        queue = _pick(sorted(self.pair.model.queues()), pick)
        now = self.pair.clock.wall()

        def effect() -> Fields:
            return {"count": self.pair.model.purge(now, queue)}

        self.pair.ask(self.peers[peer], {"op": "purge", "queue": queue}, effect)
        self._then(then)

    @precondition(lambda self: self.pair.model.messages)
    @rule(peer=peers, pick=picks, leased=st.booleans(), then=afterwards)
    def cancel(self, peer: int, pick: int, leased: bool, then: str) -> None:
        """Cancel a message, whatever its state; often one that is leased."""
        model, now = self.pair.model, self.pair.clock.wall()
        key = _pick((leased and model.leased()) or list(model.messages.values()), pick).draft.key

        def effect() -> Fields:
            return dict(zip(("state", "changed", "delivered"), model.cancel(now, key), strict=True))

        self.pair.ask(self.peers[peer], {"op": "cancel_message", "queue": key[0], "id": key[1]}, effect)
        self._then(then)

    @precondition(lambda self: self.pair.model.messages)
    @rule(
        peer=peers,
        pick=picks,
        body=st.sampled_from([None, b"edited", b""]),
        priority=st.sampled_from([None, -1, 0, 1]),
        delay=delays,
        fixed=st.booleans(),
        then=afterwards,
    )
    def edit(
        self,
        peer: int,
        pick: int,
        body: bytes | None,
        priority: int | None,
        delay: float | None,
        fixed: bool,
        then: str,
    ) -> None:
        """Edit a message, mostly one that waits. At least its priority is given."""
        model, now = self.pair.model, self.pair.clock.wall()
        waiting = [message for queue in "ab" for message in model.waiting(queue)]
        key = _pick(waiting or list(model.messages.values()), pick).draft.key
        priority = 0 if (body, priority, delay) == (None, None, None) else priority
        due = None if delay is None else now + delay
        fields: Fields = {"op": "edit", "queue": key[0], "id": key[1], "priority": priority}
        if body is not None:
            put_bytes(fields, "body", body)
        if due is not None:
            fields |= {"at": due} if fixed else {"delay": delay}

        def effect() -> Fields:
            return dict(zip(("state", "delivered"), model.edit(now, key, body, priority, due, fixed), strict=True))

        self.pair.ask(self.peers[peer], fields, effect)
        self._then(then)

    @precondition(lambda self: self.pair.model.messages)
    @rule(
        peer=peers,
        op=st.sampled_from(["redrive", "redrive", "drop"]),
        pick=picks,
        chosen=st.one_of(st.none(), st.lists(picks, min_size=1, max_size=3)),
        older=st.sampled_from([None, None, 1.0, 60.0]),
        then=afterwards,
    )
    def redrive_or_drop(
        self, peer: int, op: str, pick: int, chosen: list[int] | None, older: float | None, then: str
    ) -> None:
        """Redrive or drop dead letters: by ids, among which may be others, by age, or all."""
        model, now = self.pair.model, self.pair.clock.wall()
        dead = [message.draft for message in model.messages.values() if message.state == "dead"]
        drafts = dead or [message.draft for message in model.messages.values()]
        queue = _pick(drafts, pick).queue
        mine = [draft.id for draft in drafts if draft.queue == queue]
        ids = None if chosen is None else sorted({_pick(mine, number) for number in chosen})
        failed_before = None if older is None or ids is not None else now - older

        def effect() -> Fields:
            found = model.dead(queue, ids, failed_before)
            (model.redrive if op == "redrive" else model.drop)(now, found)
            done = [message.draft.id for message in found]
            return {"ids": done, "missing": sorted(set(ids or ()) - set(done))}

        fields: Fields = {"op": op, "queue": queue}
        if ids is not None:
            fields["ids"] = ids
        elif failed_before is not None:
            fields["failed_before"] = failed_before
        else:
            fields["all"] = True
        self.pair.ask(self.peers[peer], fields, effect)
        self._then(then)

    @rule(peer=peers, queue=queues, header=st.booleans(), then=afterwards)
    def bind(self, peer: int, queue: str, header: bool, then: str) -> None:
        """Bind a queue to the topic, perhaps for messages with a header only."""
        model = self.pair.model
        headers = {"k": "v"} if header else {}

        def effect() -> Fields:
            if any(m.state not in FINISHED and m.draft.queue == "topic" for m in model.messages.values()):
                raise Refused("invalid_request")
            self.pair.bindings["topic", queue] = headers
            return {}

        fields = {"op": "bind", "topic": "topic", "queue": queue, "headers": headers}
        self.pair.ask(self.peers[peer], fields, effect, then=self._know_bindings(("topic", queue), headers))
        self._then(then)

    @rule(peer=peers, queue=queues, then=afterwards)
    def unbind(self, peer: int, queue: str, then: str) -> None:
        def effect() -> Fields:
            if ("topic", queue) not in self.pair.bindings:
                raise Refused("not_found")
            del self.pair.bindings["topic", queue]
            return {}

        fields = {"op": "unbind", "topic": "topic", "queue": queue}
        self.pair.ask(self.peers[peer], fields, effect, then=self._know_bindings(("topic", queue), None))
        self._then(then)

    def _know_bindings(self, key: Key, headers: dict[str, str] | None) -> Callable[[], None]:
        """Return what the model does when a binding is confirmed: it routes by it from then on."""

        def know() -> None:
            self.pair.model.bindings.pop(key, None)
            if headers is not None:
                self.pair.model.bindings[key] = headers

        return know

    # ── what happens to the daemon ──────────────────────────────────────────────────────────────────────

    @rule(peer=peers, queue=queues, then=afterwards)
    def receive_and_hang_up(self, peer: int, queue: str, then: str) -> None:
        """Claim for a client that is gone: no consumer sees these messages, so they use no attempt."""
        self.receive(peer, "leave", queue=queue, limit=2, lease=30.0)
        self.hang_up(peer, then)

    @rule(peer=peers, then=afterwards)
    def hang_up(self, peer: int, then: str) -> None:
        self.pair.close(self.peers[peer])
        self.peers[peer] = Peer()
        self._then(then)

    @rule(seconds=st.sampled_from([0.0, 1.0, 1.0, 5.0, 60.0, 300.0]), prompt=st.booleans())
    def time_passes(self, seconds: float, prompt: bool) -> None:
        self.pair.pass_time(seconds, prompt=prompt)

    @rule(seconds=st.sampled_from([-86400.0, -50.0, -1.0, 1.0, 50.0, 86400.0]), until_noticed=st.booleans())
    def the_clock_is_set(self, seconds: float, until_noticed: bool) -> None:
        self.pair.jump(seconds)
        if until_noticed:
            self.pair.pass_time(LONGEST_TIMER, prompt=True)

    @precondition(lambda self: self.pair.waiting)
    @rule(count=st.one_of(st.none(), st.integers(1, 4)), finish=st.booleans())
    def commit(self, count: int | None, finish: bool) -> None:
        self.pair.commit(count)
        if finish:
            self.pair.finish()

    @rule()
    def rest(self) -> None:
        self.pair.come_to_rest()

    @precondition(lambda self: self.age > LIFE)
    @rule(crash=st.booleans(), then=afterwards)
    def restart(self, crash: bool, then: str) -> None:
        self.age = 0
        self.pair.restart(self.peers, crash=crash)
        self.peers = [Peer() for _ in range(PEERS)]
        self._then(then)

    def _then(self, then: str) -> None:
        if then == "rest":
            self.pair.come_to_rest()
        elif then == "commit":
            self.pair.commit()

    @invariant()
    def holds(self) -> None:
        self.age += 1
        self.pair.check()


def _pick(given: list[T], pick: int) -> T:
    return given[pick % len(given)]


def _ack(delivery: Delivery, result: bytes | None) -> Fields:
    fields: Fields = {"receipt": delivery.receipt}
    if result is not None:
        put_bytes(fields, "result", result)
    return fields


def _if_it_has_ended(delivery: Delivery) -> frozenset[str]:
    return frozenset({"lease_lost"} if delivery.ended else ())


def _run(examples: int) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,  # a slow disk is no failure
            derandomize=True,
            database=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("first", ["nack", "release", "hang_up"])
@pytest.mark.parametrize("second", ["ack", "reject", "settle", "settle_all", "nack", "release"])
@pytest.mark.first_by_default
def test_a_late_ending_does_nothing_to_the_next_delivery(first: str, second: str) -> None:
    """A message is given back, delivered again, and ended by its first receiver, all in one transaction (G7)."""
    machine = Machine()
    try:
        machine.start(QueueSettings(max_attempts=4), QueueSettings(), 1.0)
        machine.end_twice(0, 0, first, again=True, second=second, then="rest")
        machine.holds()
    finally:
        machine.teardown()


@pytest.mark.parametrize("how", ["ack", "reject", "nack", "time"])
def test_a_delayed_message_behind_one_that_ends_becomes_due(how: str) -> None:
    """Found by the machine: the timer for its due time had fired while it was blocked, and no other was set."""
    machine = Machine()
    try:
        machine.start(QueueSettings(max_attempts=1), QueueSettings(), 1.0)
        machine.send(0, Draft("a", "first", group="g"), "rest")
        machine.send(0, Draft("a", "second", group="g", due=100.0), "rest")
        machine.receive(0, "rest", queue="a", lease=70.0)
        machine.time_passes(LONGEST_TIMER, prompt=True)
        if how == "time":
            machine.time_passes(10.0, prompt=True)
        else:
            machine._ending(how, 0, machine.pair.deliveries[0], "rest")
        machine.wait(0, "rest", queue="a", lease=5.0, wait=300.0)
        machine.time_passes(50.0, prompt=True)
        machine.holds()
        assert len(machine.pair.deliveries) == 2
    finally:
        machine.teardown()


def test_a_message_that_is_given_back_still_expires() -> None:
    """Found by the machine: it was leased when the broker last looked for expired messages."""
    machine = Machine()
    try:
        machine.start(QueueSettings(), QueueSettings(), 1.0)
        machine.send(0, Draft("a", "i", expires=50.0), "rest")
        machine.receive(0, "rest", queue="a", lease=5.0)
        machine.time_passes(60.0, prompt=True)
        machine.holds()
    finally:
        machine.teardown()


def test_a_receiver_is_woken_when_the_one_before_it_is_gone_that_had_the_whole_allowance() -> None:
    """It was deferred, since the claim of the receiver before it was under way when that one hung up."""
    machine = Machine()
    try:
        machine.start(QueueSettings(max_in_flight=1), QueueSettings(), 1.0)
        machine.wait(0, "leave", queue="a", limit=1, wait=300.0, lease=30.0)
        machine.hang_up(0, "leave")
        machine.wait(1, "leave", queue="a", limit=1, wait=300.0, lease=30.0)
        machine.send(2, Draft("a", "i"), "rest")
        machine.holds()
        assert len(machine.pair.deliveries) == 1
    finally:
        machine.teardown()


@pytest.mark.parametrize("jump", [7200.0, -7200.0])
def test_a_lease_that_ends_right_after_the_clock_was_set_expires_nothing(jump: float) -> None:
    """No request has come since the jump. The message comes back with the time to live that it had left."""
    machine = Machine()
    try:
        machine.start(QueueSettings(), QueueSettings(), 1.0)
        machine.send(0, Draft("a", "i", expires=200.0), "rest")
        machine.receive(0, "rest", queue="a", lease=5.0, bound=True)
        machine.pair.jump(jump)
        machine.hang_up(0, "rest")
        machine.holds()
        assert [message.state for message in machine.pair.model.messages.values()] == ["ready"]
    finally:
        machine.teardown()


def test_messages_stored_after_a_restart_are_above_every_earlier_watermark() -> None:
    """Seqs that duplicates used up are used again after a restart. No watermark may be above them."""
    machine = Machine()
    try:
        machine.start(QueueSettings(max_attempts=4), QueueSettings(), 1.0)
        for _ in range(3):
            machine.send(0, Draft("a", "i1"), "rest")
        machine.receive(0, "rest", queue="a", lease=5.0)
        machine._ending("ack", 0, machine.pair.deliveries[0], "rest")
        machine.receive(0, "rest", queue="a", lease=5.0)
        machine.restart(crash=False, then="rest")
        machine.send(0, Draft("a", "i2"), "rest")
    finally:
        machine.teardown()


@pytest.mark.parametrize("crash", [False, True])
def test_a_refused_batch_leaves_no_watermark_behind_that_is_above_later_messages(crash: bool) -> None:
    """Found by the machine: the seqs of the batch were taken, and none of them was noted in the file."""
    machine = Machine()
    try:
        machine.start(QueueSettings(max_depth=3), QueueSettings(), 1.0)
        machine.send_bulk(0, "a", None, False, "rest")
        machine.receive(0, "rest", queue="b", limit=1, lease=30.0)
        machine.restart(crash=crash, then="rest")
        machine.send_bulk(0, "b", None, False, "rest")
        machine.holds()
    finally:
        machine.teardown()


def test_the_broker_does_what_a_dictionary_would() -> None:
    _run(EXAMPLES)


@pytest.mark.slow
def test_the_broker_does_what_a_dictionary_would_at_length() -> None:
    _run(MANY_EXAMPLES)
