"""The settlers of a worker's messages. Its loop knows through them how each message ended.

While messages wait, the loop sends an ack and runs the next handler. It waits for the reply some handlers later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from ..errors import EoqError, IdConflict, InvalidRequest, LeaseLost, MessageTooLarge, NotFound, QueueFull
from ..message import Delivery, Message, Outgoing
from ..protocol import calls
from ..protocol.calls import Call
from ..transport.channel import Channel, Started
from .in_flight import Entry, InFlight
from .reports import report

OF_THE_MESSAGE: Final = (LeaseLost, MessageTooLarge, InvalidRequest, IdConflict, QueueFull, NotFound)
"""Errors of settling that concern one message. Any other ends the loop."""

M = TypeVar("M", bound=Delivery)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class StartedAcks(Generic[M, R]):
    """One request in flight that acks messages, each with its result: one message, or a batch."""

    entries: Sequence[Entry[M]]
    results: Sequence[object]
    request: R

    def receipts(self) -> list[str]:
        """Return the receipts of the messages."""
        return [entry.message.receipt for entry in self.entries]

    def may_be_split(self, error: EoqError) -> bool:
        """Return whether one of several acks was refused, so that the others may succeed by themselves."""
        return len(self.entries) > 1 and isinstance(error, LeaseLost | MessageTooLarge)


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
        self.settle([receipt], "done", calls.ack(receipt, result, list(send)))

    def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        self.settle([receipt], "retried", calls.nack(receipt, delay, error))

    def reject(self, receipt: str, error: str | None = None, /) -> None:
        self.settle([receipt], "rejected", calls.reject(receipt, error))

    def release(self, receipt: str, /) -> None:
        self.settle([receipt], "retried", calls.release([receipt]))

    def extend(self, receipt: str, seconds: float, /) -> bool:
        return self._channel.run(calls.extend(receipt, seconds))

    def settle(self, receipts: Sequence[str], outcome: str, call: Call[Any]) -> None:
        """Settle messages by ``call``, and note the ``outcome``: done, retried or rejected."""
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
        self._started: deque[StartedAcks[Message, Started[Any]]] = deque()
        self.nack = settler.nack
        self.reject = settler.reject
        self.release = settler.release
        self.extend = settler.extend

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        if send:
            self._settler.ack(receipt, result, send)
        else:
            self._start([receipt], [result], calls.ack(receipt, result, ()))

    def ack_many(self, acks: Sequence[tuple[Message, object]], /) -> None:
        self._start([message.receipt for message, _ in acks], [result for _, result in acks], calls.settle(acks, ()))

    def _start(self, receipts: Sequence[str], results: Sequence[object], call: Call[Any]) -> None:
        with self._changed:
            entries = self._in_flight.settling_all(receipts)
        if entries is None:
            self._settler.settle(receipts, "done", call)
            return
        try:
            started = StartedAcks(entries, results, self._channel.start(call))
        except BaseException as error:
            self._settler.not_settled(receipts, error, lost=False)
            raise
        with self._changed:
            if in_flight := self._in_flight.confirming(entries):
                self._started.append(started)
                self._changed.notify_all()
        if not in_flight:
            self._conclude(started)

    def confirm(self, most: int) -> None:
        """Wait until at most ``most`` requests with acks are in flight."""
        while True:
            with self._changed:
                if len(self._started) <= most:
                    return
                started = self._started.popleft()
            self._conclude(started)

    def _conclude(self, started: StartedAcks[Message, Started[Any]]) -> None:
        try:
            self._channel.finish(started.request)
        except EoqError as error:
            if started.may_be_split(error):
                self._ack_alone(started)
            else:
                self._settler.not_settled(started.receipts(), error, lost=isinstance(error, LeaseLost))
                if isinstance(error, OF_THE_MESSAGE):  # any other ends the loop, which raises it
                    for entry in started.entries:
                        report(entry, error)
        else:
            with self._changed:
                for receipt in started.receipts():
                    self._in_flight.settled(receipt, "done")
        finally:
            with self._changed:
                for entry in started.entries:
                    self._in_flight.end(entry)
                self._changed.notify_all()

    def _ack_alone(self, started: StartedAcks[Message, Started[Any]]) -> None:
        """Ack each message of a batch by itself, since one of them was refused."""
        for entry, result in zip(started.entries, started.results, strict=True):
            try:
                self._settler.ack(entry.message.receipt, result)
            except OF_THE_MESSAGE as error:
                report(entry, error)
            except EoqError:
                return  # it ends the loop, which raises it


class MessageSettler:
    """The settler that a loop gives its messages, for handlers that settle their own.

    It waits for each reply. Only the acks of a whole batch, which an inbox sends after its commit, are pipelined.
    """

    def __init__(self, settler: LoopSettler, pipelined: PipelinedAcks) -> None:
        self.ack = settler.ack
        self.nack = settler.nack
        self.reject = settler.reject
        self.release = settler.release
        self.extend = settler.extend
        self.ack_many = pipelined.ack_many
