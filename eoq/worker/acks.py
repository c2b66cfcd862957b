"""The settlers of a worker's messages. Its loop knows through them how each message ended.

While messages wait, the loop sends an ack and runs the next handler. It waits for the reply some handlers later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from ..errors import EoqError, IdConflict, InvalidRequest, LeaseLost, MessageTooLarge, NotFound, QueueFull
from ..message import Message, Outgoing
from ..protocol import calls
from ..protocol.calls import Call
from ..transport.channel import Channel, Started
from .in_flight import Entry, InFlight
from .reports import report

OF_THE_MESSAGE: Final = (LeaseLost, MessageTooLarge, InvalidRequest, IdConflict, QueueFull, NotFound)
"""Errors of settling that concern one message. Any other ends the loop."""


class LoopSettler:
    """The settler of one loop that waits for each reply.

    ``changed`` guards ``in_flight`` and is notified when a message leaves. Errors that no message caused go to
    ``fail``, which ends the loop.
    """

    def __init__(
        self,
        channel: Channel,
        in_flight: InFlight[Message],
        changed: threading.Condition,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._channel = channel
        self._in_flight = in_flight
        self._changed = changed
        self._fail = fail

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        self._settle([receipt], "done", calls.ack(receipt, result, list(send)))

    def ack_many(self, acks: Sequence[tuple[Message, object]], /) -> None:
        self._settle([message.receipt for message, _ in acks], "done", calls.settle(acks, ()))

    def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        self._settle([receipt], "retried", calls.nack(receipt, delay, error))

    def reject(self, receipt: str, error: str | None = None, /) -> None:
        self._settle([receipt], "rejected", calls.reject(receipt, error))

    def release(self, receipt: str, /) -> None:
        self._settle([receipt], "retried", calls.release([receipt]))

    def extend(self, receipt: str, seconds: float, /) -> bool:
        return self._channel.run(calls.extend(receipt, seconds))

    def _settle(self, receipts: Sequence[str], outcome: str, call: Call[Any]) -> None:
        with self._changed:
            for receipt in receipts:
                self._in_flight.settling(receipt)
        try:
            self._channel.run(call)
        except BaseException as error:
            # One of several acks was refused, and it is not known which. They are then tried one by one.
            self.not_settled(receipts, error, lost=isinstance(error, LeaseLost) and len(receipts) == 1)
            raise
        with self._changed:
            for receipt in receipts:
                self._in_flight.settled(receipt, outcome)

    def not_settled(self, receipts: Sequence[str], error: BaseException, lost: bool) -> None:
        """Note that settling failed, and end the loop if no message caused the ``error``."""
        with self._changed:
            for receipt in receipts:
                self._in_flight.not_settled(receipt, lost)
        if isinstance(error, EoqError) and not isinstance(error, OF_THE_MESSAGE):
            self._fail(error)


class PipelinedAcks:
    """The settler of one loop that does not wait for the replies to acks. `confirm` waits for them."""

    def __init__(
        self, settler: LoopSettler, channel: Channel, in_flight: InFlight[Message], changed: threading.Condition
    ) -> None:
        self._settler = settler
        self._channel = channel
        self._in_flight = in_flight
        self._changed = changed
        self._started: deque[tuple[Entry[Message], Started[None]]] = deque()
        self.ack_many = settler.ack_many
        self.nack = settler.nack
        self.reject = settler.reject
        self.release = settler.release
        self.extend = settler.extend

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        if send:
            self._settler.ack(receipt, result, send)
            return
        call = calls.ack(receipt, result, ())
        with self._changed:
            entry = self._in_flight.settling(receipt)
        if entry is None or entry.confirming:
            self._channel.run(call)
            return
        try:
            started = self._channel.start(call)
        except BaseException as error:
            self._settler.not_settled([receipt], error, lost=False)
            raise
        with self._changed:
            if in_flight := self._in_flight.confirming(entry):
                self._started.append((entry, started))
                self._changed.notify_all()
        if not in_flight:
            self._conclude(entry, started)

    def confirm(self, most: int) -> None:
        """Wait until at most ``most`` acks are in flight."""
        while True:
            with self._changed:
                if len(self._started) <= most:
                    return
                entry, started = self._started.popleft()
            self._conclude(entry, started)

    def _conclude(self, entry: Entry[Message], started: Started[None]) -> None:
        receipt = entry.message.receipt
        try:
            self._channel.finish(started)
        except EoqError as error:
            self._settler.not_settled([receipt], error, lost=isinstance(error, LeaseLost))
            if isinstance(error, OF_THE_MESSAGE):  # any other ends the loop, which raises it
                report(entry, error)
        else:
            with self._changed:
                self._in_flight.settled(receipt, "done")
        finally:
            with self._changed:
                self._in_flight.end(entry)
                self._changed.notify_all()
