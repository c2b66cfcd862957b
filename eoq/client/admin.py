# Made from aio_admin.py by .ci/unasync.py. Change that file, then run the script.
"""Queries about queues, and their administration, from a client.

Queries return plain fields, as PROTOCOL.md lists them. The daemon changes many messages in steps, so that no other
client waits long; the client repeats its request until nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Unpack

from ..message import MessageOptions, Outgoing, Sent
from ..protocol import admin_calls
from ..protocol.admin_calls import CancelledMessage, Changed, EditedMessage, FoundMessage
from ..protocol.codec import Fields
from ..protocol.features import PAGES, QueueOrder
from ..protocol.validation import check_name
from ..transport.channel import Channel


class Admin:
    """The administrative methods of `eoq.Client`, which inherits them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        """Carries the requests. It is for eoq's own parts and may change without notice."""

    # ── queries ─────────────────────────────────────────────────────────────────────────────────────────

    def queues(self, *, prefix: str = "", after: str = "", limit: int | None = None) -> list[Fields]:
        """Return queues by name: the messages in each state, throughput, consumers, and what was counted of each.

        ``totals`` counts since the daemon's file was made, and ``since_start`` since the daemon started.

        These are all queues, or those whose names begin with ``prefix``, of them those behind the name ``after``, and
        at most ``limit``. Thousands of queues are asked for in pages, so that nobody else waits for the answer.
        """
        found: list[Fields] = []
        for page in self._pages(prefix, after, limit):
            found += page
        return found

    def _pages(self, prefix: str, after: str, limit: int | None) -> Iterator[list[Fields]]:
        if not self.channel.knows(PAGES):
            rows = self.channel.run(admin_calls.ALL_QUEUES)
            yield admin_calls.some_queues(rows, after, prefix, limit)
            return
        more = True
        while more and limit != 0:
            page = self.channel.run(admin_calls.queues(after, prefix, limit))
            yield page.queues
            more = page.more and bool(page.queues)
            after = page.queues[-1]["name"] if page.queues else after
            limit = None if limit is None else limit - len(page.queues)

    def overview(
        self,
        order: QueueOrder = "busy",
        *,
        contains: str = "",
        skip: int = 0,
        limit: int = 100,
    ) -> Fields:
        """Return the sums of all queues (``sums``), how many there are (``count``), and the first in an order.

        ``queues`` has ``limit`` queues (1,000 at most) behind the first ``skip`` of those with the text ``contains`` in
        their names, whatever its case; ``matching`` is how many have it. In the order ``busy``, those with most
        messages a second come first; in ``depth``, with most messages that are not settled; in ``age``, with the oldest
        message that is ready. Raises `InvalidRequest` where the daemon is of an earlier version.
        """
        return self.channel.run(admin_calls.overview(order, contains, skip, limit))

    def status(self) -> Fields:
        """Return what the daemon says of itself: its version, file and settings, what it has counted and measured."""
        return self.channel.run(admin_calls.STATUS)

    def metrics(self) -> str:
        """Return the metrics of the daemon and its queues, in Prometheus' text format."""
        if not self.channel.knows(PAGES):
            return self.channel.run(admin_calls.ALL_METRICS)
        texts: list[str] = []
        after: int | None = 0
        while after is not None:
            part = self.channel.run(admin_calls.metrics(after))
            texts.append(part.text)
            after = part.after
        return "".join(texts)

    def peek(
        self,
        queue: str,
        state: str = "ready",
        *,
        limit: int = 10,
        group: str | None = None,
        headers: Mapping[str, str] | None = None,
        contains: str | None = None,
    ) -> list[Fields]:
        """Return the next messages of one state, without leasing them.

        With ``group``, ``headers`` or ``contains``, only messages of that group, with all of these headers, or with
        that text in their body. The daemon then searches the first 50,000 messages of the state.
        """
        return self.channel.run(admin_calls.peek(queue, state, limit, group, headers, contains))

    def show(self, queue: str, id: str) -> Fields:
        """Return all that is known of one message, with its deliveries. Raises `NotFound`."""
        return self.channel.run(admin_calls.show(queue, id))

    def find(self, id: str, queues: str | Iterable[str] | None = None) -> list[FoundMessage]:
        """Return where a message id is known: for each such queue, the state of the message, or how it has ended.

        These are all queues whose messages this user may read, by name, or ``queues``. They are asked a few at a time,
        so that nobody else waits; ten thousand queues take seconds. A message that goes to another queue meanwhile may
        be missed. An id is known as long as its message is stored, and then for the ``retention`` of its queue.

        Raises `Forbidden` where this user may not list the queues, or not read one of ``queues``.
        """
        check_name("id", id)
        if queues is not None:
            return self._find_in(admin_calls.named_queues(queues), id, only_readable=False)
        found: list[FoundMessage] = []
        for page in self._pages("", "", None):
            found += self._find_in([row["name"] for row in page], id, only_readable=True)
        return found

    def _find_in(self, queues: Sequence[str], id: str, *, only_readable: bool) -> list[FoundMessage]:
        found: list[FoundMessage] = []
        for requests in admin_calls.shows(queues, id):
            found += admin_calls.read_found(self.channel.exchange(requests), only_readable)
        return found

    def why(self, queue: str, id: str) -> Fields:
        """Return why a message is not delivered now: its ``state``, and ``reasons``, each with ``reason`` and ``text``.

        Raises `NotFound`.
        """
        return self.channel.run(admin_calls.why(queue, id))

    def tail(self, queue: str, *, last: int = 0) -> Iterator[Fields]:
        """Yield the messages of a queue as they are stored, without end, beginning with the ``last`` stored ones."""
        messages, after = self.channel.run(admin_calls.tail(queue, None, last))
        while True:
            yield from messages
            messages, after = self.channel.run(admin_calls.tail(queue, after, 0))

    # ── queues ──────────────────────────────────────────────────────────────────────────────────────────

    def pause(self, queue: str) -> bool:
        """Stop all deliveries of a queue, also after a restart. Return False if it was paused already."""
        return self.channel.run(admin_calls.changes("pause", queue))

    def resume(self, queue: str) -> bool:
        """Continue the deliveries of a queue. Return False if it was not paused. Raises `NotFound`."""
        return self.channel.run(admin_calls.changes("resume", queue))

    def delete_queue(self, queue: str, *, forget_ids: bool = False) -> bool:
        """Delete a queue without messages. Return False if there is no such queue.

        Raises `InvalidRequest` where the queue has messages, is bound or a topic, or a schedule sends to it; and where
        ids of settled messages are remembered, unless ``forget_ids``: a repeated send is then stored again.
        """
        step = self.channel.run(admin_calls.delete_queue(queue, forget_ids))
        existed = step.existed
        while not step.done:
            step = self.channel.run(admin_calls.delete_queue(queue, forget_ids))
        return existed

    def purge(self, queue: str) -> int:
        """Drop all waiting messages of a queue. Return how many. Leased messages and dead letters stay.

        Raises `NotFound` where there is no such queue.
        """
        # First the last message to purge. So a repeat after a lost reply drops nothing that was sent meanwhile.
        upto: int | None = self.channel.run(admin_calls.last_seq(queue))
        count = 0
        while upto is not None:
            more, upto = self.channel.run(admin_calls.purge(queue, upto))
            count += more
        return count

    # ── one message ─────────────────────────────────────────────────────────────────────────────────────

    def cancel(self, queue: str, id: str) -> CancelledMessage:
        """Settle a message as cancelled, so that it is not delivered any more.

        Where a consumer has it (``leased``), its worker learns it with the next extension of the lease, as
        ``message.cancelled``. If it acks, the message is done; otherwise it ends as cancelled. Raises `NotFound`.
        """
        return self.channel.run(admin_calls.cancel(queue, id))

    def edit(
        self,
        queue: str,
        id: str,
        *,
        body: object = None,
        priority: int | None = None,
        delay: float | None = None,
        at: float | None = None,
    ) -> EditedMessage:
        """Change the body, the priority or the due time of a message that is not leased.

        ``delay`` is in seconds from now, 0 for at once; ``at`` is in seconds since the epoch. What is None stays as it
        is. The message stays the one that was sent: a repeated send of the first content is a duplicate, and an inbox
        that has processed it does not apply it again. Raises `NotFound`, and `InvalidRequest` where the message is
        leased or settled.
        """
        return self.channel.run(admin_calls.edit(queue, id, body, priority, delay, at))

    # ── dead letters ────────────────────────────────────────────────────────────────────────────────────

    def redrive(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
        to: str | None = None,
    ) -> Changed:
        """Give dead letters a new set of attempts, in their queue, or in the queue ``to``.

        These are the dead letters of ``ids``, those whose last failure was before ``failed_before`` (seconds since the
        epoch), or with ``everything`` all of the queue. Return the ids that were changed, and those of ``ids`` that are
        no dead letters (``missing``). Raises `NotFound` where there is no such queue, and with ``to`` what `send`
        raises: after an `IdConflict`, the dead letters that it does not name are redriven.
        """
        return self._change_dead("redrive", queue, ids, failed_before, everything, to)

    def drop(
        self,
        queue: str,
        ids: Sequence[str] | None = None,
        *,
        failed_before: float | None = None,
        everything: bool = False,
    ) -> Changed:
        """Settle dead letters as dropped.

        These are the dead letters of ``ids``, those whose last failure was before ``failed_before`` (seconds since the
        epoch), or with ``everything`` all of the queue. Return the ids that were changed, and those of ``ids`` that are
        no dead letters (``missing``). Raises `NotFound` where there is no such queue.
        """
        return self._change_dead("drop", queue, ids, failed_before, everything)

    def _change_dead(
        self,
        op: str,
        queue: str,
        ids: Sequence[str] | None,
        failed_before: float | None,
        everything: bool,
        to: str | None = None,
    ) -> Changed:
        changed = Changed([], [])
        refused: list[str] = []
        # First the moment. So a repeat after a lost reply leaves alone what has failed meanwhile.
        seen_at = self.channel.run(admin_calls.NOW) if everything else None
        for part in admin_calls.parts(ids, to):
            after: int | None = 0
            while after is not None:
                step = self.channel.run(
                    admin_calls.change_dead(op, queue, part, failed_before, everything, after, seen_at, to)
                )
                changed.ids.extend(step.changed.ids)
                changed.missing.extend(step.changed.missing)
                refused.extend(step.refused)
                after = step.after
        if refused:
            raise admin_calls.refused_move(refused, to)
        return changed

    # ── topics ──────────────────────────────────────────────────────────────────────────────────────────

    def bind(self, topic: str, queue: str, headers: Mapping[str, str] | None = None) -> None:
        """Bind a queue to a topic: a message that is sent to the topic goes to each bound queue.

        With ``headers``, the queue gets only messages that have all of them. Raises `InvalidRequest` where the topic is
        a queue with messages, or the queue a topic.
        """
        self.channel.run(admin_calls.bind(topic, queue, headers))

    def unbind(self, topic: str, queue: str) -> None:
        """End a binding. Raises `NotFound`."""
        self.channel.run(admin_calls.unbind(topic, queue))

    def topics(self) -> list[Fields]:
        """Return all bindings: topic, queue and headers of each."""
        return self.channel.run(admin_calls.TOPICS)

    # ── schedules ───────────────────────────────────────────────────────────────────────────────────────

    def schedule(
        self,
        name: str,
        queue: str,
        body: object = b"",
        *,
        cron: str | None = None,
        timezone: str | None = None,
        every: int | None = None,
        at: float | None = None,
        catch_up: Literal["last", "all", "none"] = "last",
        replace: bool = False,
        **options: Unpack[MessageOptions],
    ) -> float | None:
        """Send a message to ``queue`` at each occurrence from now on, exactly once each.

        The occurrences are those of a ``cron`` expression, by the clock of ``timezone`` (an IANA name, UTC by default),
        or ``every`` so many seconds, the first ``at`` (seconds since the epoch; by default ``every`` seconds from now).
        ``catch_up`` says what is sent for occurrences that were missed by more than a minute: the last, all (1,000 at
        most), or none.

        ``options`` are those of the message: ``headers`` (texts by name), ``priority`` (a whole number, 0 by default),
        ``group`` (its messages are delivered one at a time, in order) and ``ttl`` (seconds from the occurrence, after
        which the message expires).

        Return when the next occurrence is, in seconds since the epoch, or None where there is none. The same schedule
        again changes nothing. Raises `IdConflict` where the name stands for another schedule, unless ``replace``, and
        `QueueFull` where there are too many schedules.
        """
        message = Outgoing(body, **options)
        call = admin_calls.schedule(name, queue, message, cron, timezone, every, at, catch_up, replace)
        return self.channel.run(call)

    def unschedule(self, name: str) -> None:
        """End a schedule. Messages that it has sent stay.

        Raises `NotFound`, and `InvalidRequest` for a schedule of the daemon's configuration.
        """
        self.channel.run(admin_calls.unschedule(name))

    def schedules(self) -> list[Fields]:
        """Return all schedules: name, queue, when they occur, and their next and last time."""
        return self.channel.run(admin_calls.SCHEDULES)

    def pause_schedule(self, name: str) -> bool:
        """Let a schedule send nothing until it is resumed. Return False if it was paused already. Raises `NotFound`."""
        return self.channel.run(admin_calls.pause_schedule(name, True))

    def resume_schedule(self, name: str) -> bool:
        """Let a schedule go on with its next occurrence from now; those while it was paused are not sent.

        Return False if it was not paused. Raises `NotFound`.
        """
        return self.channel.run(admin_calls.pause_schedule(name, False))

    def run_schedule(self, name: str, *, id: str | None = None) -> Sent:
        """Send the message of a schedule now, besides its occurrences, also while it is paused.

        ``id`` is that of the message; by default a new one is made. Raises `NotFound`, and what `send` raises.
        """
        return self.channel.run(admin_calls.run_schedule(name, id))
