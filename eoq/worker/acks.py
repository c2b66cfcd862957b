"""How a worker's messages are settled: through here, so that its loop knows how each ended.

While messages wait, an ack is sent and the next handler runs; its reply is waited for some handlers later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import EoqError, LeaseLost
from ..message import Message, Outgoing
from ..protocol import calls
from .in_flight import Entry, InFlight
from .options import OF_THE_MESSAGE, tell

if TYPE_CHECKING:
    from ..client.blocking import Client, Started


class PipelinedAcks:
    """The settler of one loop's messages. What the daemon refuses for no fault of a message's goes to ``fail``."""

    def __init__(
        self,
        client: Client,
        held: InFlight[Message],
        changed: threading.Condition,
        fail: Callable[[BaseException], None],
    ) -> None:
        """``changed`` guards what is held, and is told of what no longer is."""
        self._client = client
        self._held = held
        self._changed = changed
        self._fail = fail
        self._unconfirmed: deque[tuple[Entry[Message], Started[None]]] = deque()
        self.behind = _Behind(self)
        """The settler of messages whose ack is not waited for."""

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        self._settle([receipt], "done", lambda: self._client.ack(receipt, result, send))

    def ack_many(self, acks: Sequence[tuple[Message, object]]) -> None:
        self._settle([message.receipt for message, _ in acks], "done", lambda: self._client.ack_many(acks))

    def nack(self, receipt: str, delay: float | None = None, error: str | None = None) -> None:
        self._settle([receipt], "retried", lambda: self._client.nack(receipt, delay, error))

    def reject(self, receipt: str, error: str | None = None) -> None:
        self._settle([receipt], "rejected", lambda: self._client.reject(receipt, error))

    def extend(self, receipt: str, seconds: float) -> None:
        self._client.extend(receipt, seconds)

    def _settle(self, receipts: list[str], outcome: str, request: Callable[[], None]) -> None:
        with self._changed:
            for receipt in receipts:
                self._held.settling(receipt)
        try:
            request()
        except BaseException as error:
            # Of many acks one was refused, and nobody knows which: they are tried one by one.
            self._not_settled(receipts, error, lost=isinstance(error, LeaseLost) and len(receipts) == 1)
            raise
        with self._changed:
            for receipt in receipts:
                self._held.settled(receipt, outcome)

    def _not_settled(self, receipts: list[str], error: BaseException, lost: bool) -> None:
        with self._changed:
            for receipt in receipts:
                self._held.not_settled(receipt, lost)
        if isinstance(error, EoqError) and not isinstance(error, OF_THE_MESSAGE):
            self._fail(error)

    # ── acks that are waited for later ──────────────────────────────────────────────────────────────────

    def ack_behind(self, receipt: str, result: object) -> None:
        """Sends an ack, which is confirmed while the next messages are handled."""
        call = calls.ack(receipt, result, ())
        with self._changed:
            entry = self._held.settling(receipt)
        if entry is None or entry.confirming:
            self._client.ack(receipt, result)
            return
        try:
            started = self._client._start(call)
        except BaseException as error:
            self._not_settled([receipt], error, lost=False)
            raise
        with self._changed:
            if held := self._held.confirming(entry):
                self._unconfirmed.append((entry, started))
                self._changed.notify_all()
        if not held:
            self._conclude(entry, started)

    def confirm(self, most: int) -> None:
        """Waits until ``most`` acks at most are not confirmed."""
        while True:
            with self._changed:
                if len(self._unconfirmed) <= most:
                    return
                entry, started = self._unconfirmed.popleft()
            self._conclude(entry, started)

    def _conclude(self, entry: Entry[Message], started: Started[None]) -> None:
        receipt = entry.message.receipt
        try:
            self._client._finish(started)
        except EoqError as error:
            self._not_settled([receipt], error, lost=isinstance(error, LeaseLost))
            if isinstance(error, OF_THE_MESSAGE):  # any other is raised by `run`
                tell(entry, error)
        else:
            with self._changed:
                self._held.settled(receipt, "done")
        finally:
            with self._changed:
                self._held.end(entry)
                self._changed.notify_all()


class _Behind:
    """A settler that sends an ack and does not wait for its reply."""

    def __init__(self, settling: PipelinedAcks) -> None:
        self._settling = settling
        self.ack_many = settling.ack_many
        self.nack = settling.nack
        self.reject = settling.reject
        self.extend = settling.extend

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        if send:
            self._settling.ack(receipt, result, send)
        else:
            self._settling.ack_behind(receipt, result)
