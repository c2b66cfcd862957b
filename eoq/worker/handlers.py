# Made from aio_handlers.py by .ci/unasync.py. Change that file, then run the script.
"""How a worker handles messages: by its handler alone, or by a handler through an inbox."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from sys import modules
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from ..message import Message, Settler
from ..protocol.validation import encode_result
from ..spans import API, handling
from .handler_shape import check_handler
from .in_flight import Entry
from .reports import Failures, described, log

Tx_co = TypeVar("Tx_co", covariant=True)
"""What an inbox hands to a handler beside the message, such as a connection."""
Apply: TypeAlias = Callable[
    [Sequence[Entry[Message]], Settler, Callable[[], None]],
    Failures,
]
"""Handles messages and acks them through the settler. Returns the messages of a batch that failed, with their errors.
It calls the function when the first handler begins, since the timeout counts from then."""


class Processor(Protocol[Tx_co]):
    """What the loop needs of an inbox."""

    def process(self, message: Message, handler: Callable[[Tx_co, Message], object], /) -> object: ...


class BatchProcessor(Processor[Tx_co], Protocol[Tx_co]):
    """What the loop needs of an inbox for batches."""

    def process_many(
        self, messages: Iterable[Message], handler: Callable[[Tx_co, Message], object], /
    ) -> Sequence[object]: ...


def applying(handler: Callable[..., object], inbox: Processor[Any] | None) -> Apply:
    """Return the function that handles messages by ``handler``, through the ``inbox`` if there is one."""
    check_handler(handler, inbox=inbox is not None, messages=Message)
    if API in modules:
        handler = _in_span(handler)
    return _directly(handler) if inbox is None else _through(inbox, handler)


def _in_span(handler: Callable[..., object]) -> Callable[..., object]:
    """Return the handler of a program that uses OpenTelemetry: each run is a span. Its last argument is the message."""

    def run(*arguments: Any) -> object:
        with handling(arguments[-1]):
            return handler(*arguments)

    return run


def _directly(handler: Callable[..., object]) -> Apply:
    def apply(entries: Sequence[Entry[Message]], acks: Settler, begun: Callable[[], None]) -> Failures:
        (entry,) = entries
        begun()
        result = handler(entry.message)
        if entry.overdue:
            log.warning("%s: its handler ended after its timeout; the result is discarded", described(entry.message))
        elif not entry.settled:
            acks.ack(entry.message.receipt, encode_result(result))
        return []

    return apply


def _through(inbox: Processor[Any], handler: Callable[..., object]) -> Apply:
    def apply(entries: Sequence[Entry[Message]], acks: Settler, begun: Callable[[], None]) -> Failures:
        # Before this, the inbox may wait for its file, which is no fault of the handler.
        def handle(tx: object, message: Message) -> object:
            begun()
            return handler(tx, message)

        def handle_one(tx: object, message: Message) -> object:
            # An inbox of the application may let the handler settle its message: then it waits for the reply.
            return handle(tx, replace(message, settler=entries[0].message.settler))

        if len(entries) == 1:
            inbox.process(replace(entries[0].message, settler=acks), handle_one)
            return []
        # `WorkOptions.check_inbox` has refused batches of an inbox that has no such method.
        many = cast(BatchProcessor[Any], inbox)
        outcomes = many.process_many([entry.message for entry in entries], handle)
        pairs = zip(entries, outcomes, strict=True)
        return [(entry, outcome) for entry, outcome in pairs if isinstance(outcome, Exception)]

    return apply
