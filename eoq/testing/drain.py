# Made from aio_drain.py by .ci/unasync.py. Change that file, then run the script.
"""Draining a queue in a test: the handler runs for each message that is ready, until there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from ..client.blocking import Client
from ..errors import EoqError
from ..message import Message, Outgoing, encode_payload
from ..outcomes import give_back
from ..worker.handler_shape import check_handler
from ..worker.handlers import Processor
from .drained import Drained, Run

MOST_RUNS: Final = 100_000
"""Runs of the handler after which a drain fails: a handler that always adds another message has no end."""
LONGEST_LIST: Final = 1000
"""How many delayed messages are looked at for the one that is due first."""


def drain(
    client: Client,
    queue: str,
    handler: Callable[..., object],
    inbox: Processor[Any] | None,
    move_to: Callable[[float], None] | None,
    reraise: bool,
) -> Drained:
    """Handle the messages of ``queue`` until none is ready. ``move_to`` moves the clock, where that is allowed."""
    check_handler(handler, inbox=inbox is not None, messages=Message)
    drained = Drained()
    while True:
        messages = client.receive(queue)
        if not messages:
            if move_to is None or not _move_on(client, queue, move_to):
                return drained
            continue
        run = _handle(messages[0], handler, inbox)
        drained.runs.append(run)
        if reraise and run.error is not None:
            raise run.error
        if len(drained.runs) >= MOST_RUNS:
            raise AssertionError(f"{queue} was not empty after {MOST_RUNS:,} runs of the handler")


def _move_on(client: Client, queue: str, move_to: Callable[[float], None]) -> bool:
    """Move the clock to when the next message is due. Return False if none is delayed."""
    delayed = client.peek(queue, "delayed", limit=LONGEST_LIST)
    moments = [message["due_at"] for message in delayed]
    if moments:
        move_to(min(moments))
    return bool(moments)


def _handle(message: Message, handler: Callable[..., object], inbox: Processor[Any] | None) -> Run:
    noting = _AsyncNoting(message)
    message = replace(message, settler=noting)
    error: BaseException | None = None
    try:
        if inbox is not None:
            inbox.process(message, handler)
        else:
            result = handler(message)
            if not noting.outcome:
                message.ack(result)
    except Exception as raised:  # noqa: BLE001 # it is the outcome of its message, and the test gets it
        error = raised
        if not noting.outcome and not isinstance(raised, EoqError):
            give_back(message, raised)
    if not noting.outcome:
        if error is None:
            raise AssertionError(f"the inbox has returned without settling {message.id!r}")
        give_back(message, error)
    return Run(message.id, message.attempt, noting.outcome or "lost", noting.result, error)


class _AsyncNoting:
    """The settler of a message that notes how it was settled."""

    def __init__(self, message: Message) -> None:
        self._settler = message.settler
        self.outcome = ""
        self.result: bytes | None = None

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        self._settler.ack(receipt, result, send)
        self.outcome = "done"
        self.result = None if result is None else encode_payload(result)[0]

    def ack_many(self, acks: Any, /) -> None:
        for message, result in acks:
            self.ack(message.receipt, result)

    def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        self._settler.nack(receipt, delay, error)
        self.outcome = "retried"

    def reject(self, receipt: str, error: str | None = None, /) -> None:
        self._settler.reject(receipt, error)
        self.outcome = "rejected"

    def release(self, receipt: str, /) -> None:
        self._settler.release(receipt)
        self.outcome = "retried"

    def extend(self, receipt: str, seconds: float, /) -> bool:
        return self._settler.extend(receipt, seconds)
