"""The broker: the parts that deal with messages and their deliveries, joined.

    publishing    send, send_many: messages come in
    receivers     receive: messages go out, at once or when some are ready
    settling      ack, settle, nack, reject, release, extend: consumers finish with them
    redelivery    messages go back when a delivery ends without an ack
    due_times     time makes delayed messages ready, and ends expired ones

Each request becomes one command of the store, and the outcome of the command becomes the reply. A part that may have
made messages ready says so with `Events.ready`, which wakes the receivers.
"""

from __future__ import annotations

import random

from ..clock import Clock, NoticingClock
from ..config.settings import SettingsOf, defaults
from ..session import Handlers, Submitter
from .due_times import DueTimes
from .events import Events
from .leases import Lease, Leases, Receipts
from .publishing import Publisher, Router
from .receivers import Receivers
from .redelivery import Redelivery
from .settling import Settling


class Broker:
    """The parts of one broker. ``life`` is the token of this life, ``source`` the identity of the file."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        *,
        life: str,
        source: str = "",
        events: Events,
        topics: Router | None = None,
        rng: random.Random | None = None,
        settings: SettingsOf = defaults,
    ) -> None:
        self.clock = clock = NoticingClock(clock)
        rng = rng or random.Random()  # noqa: S311 # jitter, not secrets
        self._receipts = receipts = Receipts(life)
        self._leases = leases = Leases()
        self.due_times = due_times = DueTimes(writer, clock, settings, events)
        self._redelivery = redelivery = Redelivery(writer, clock, settings, leases, due_times, events)
        self.receivers = Receivers(writer, clock, settings, receipts, leases, redelivery, due_times, events, source)
        events.on_ready.append(self.receivers.wake)
        self.publisher = Publisher(writer, clock, settings, topics, due_times, events)
        settling = Settling(writer, clock, settings, rng, receipts, leases, redelivery, self.publisher, events)
        self.handlers: Handlers = {**self.publisher.handlers, **self.receivers.handlers, **settling.handlers}

    def start(self) -> None:
        """Begin to make delayed messages ready, and to end expired ones."""
        self.due_times.start()

    def stop(self) -> None:
        """Answer all receivers that wait. Deliver nothing from now on."""
        self.receivers.stop()
        self._redelivery.stop()
        self.due_times.stop()

    def lease_of(self, seq: int, number: int, queue_id: int, id: str) -> Lease | None:
        """Return the lease of a delivery of this life, while it lasts."""
        return self._leases.get(self._receipts.write(seq, number, queue_id, id))

    def queue_of(self, receipt: str) -> str | None:
        """Return the queue of a receipt, or None where its lease has ended or never was."""
        lease = self._leases.get(receipt)
        return None if lease is None else lease.delivery.queue

    @property
    def leased(self) -> int:
        """How many messages are leased now."""
        return len(self._leases)

    @property
    def waiting(self) -> int:
        """How many receivers wait now."""
        return self.receivers.waiting
