"""How a worker handles messages: by its handler alone, or by a handler through an inbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from sys import modules
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from ..message import AsyncMessage, AsyncSettler
from ..protocol.validation import encode_result
from ..spans import API, handling
from .handler_shape import check_handler
from .in_flight import Entry
from .reports import Failures, described, log

Tx_co = TypeVar("Tx_co", covariant=True)
"""What an inbox hands to a handler beside the message, such as a connection."""
AsyncApply: TypeAlias = Callable[
    [Sequence[Entry[AsyncMessage]], AsyncSettler, Callable[[], None]],
    Awaitable[Failures],
]
"""Handles messages and acks them through the settler. Returns the messages of a batch that failed, with their errors.
It calls the function when the first handler begins, since the timeout counts from then."""


class AsyncProcessor(Protocol[Tx_co]):
    """What the loop needs of an inbox."""

    def process(
        self, message: AsyncMessage, handler: Callable[[Tx_co, AsyncMessage], Awaitable[object]], /
    ) -> Awaitable[object]: ...


class AsyncBatchProcessor(AsyncProcessor[Tx_co], Protocol[Tx_co]):
    """What the loop needs of an inbox for batches."""

    def process_many(
        self, messages: Iterable[AsyncMessage], handler: Callable[[Tx_co, AsyncMessage], Awaitable[object]], /
    ) -> Awaitable[Sequence[object]]: ...


def applying(handler: Callable[..., Awaitable[object]], inbox: AsyncProcessor[Any] | None) -> AsyncApply:
    """Return the function that handles messages by ``handler``, through the ``inbox`` if there is one."""
    check_handler(handler, inbox=inbox is not None, messages=AsyncMessage)
    if API in modules:
        handler = _in_span(handler)
    return _directly(handler) if inbox is None else _through(inbox, handler)


def _in_span(handler: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    """Return the handler of a program that uses OpenTelemetry: each run is a span. Its last argument is the message."""

    async def run(*arguments: Any) -> object:
        with handling(arguments[-1]):
            return await handler(*arguments)

    return run


def _directly(handler: Callable[..., Awaitable[object]]) -> AsyncApply:
    async def apply(entries: Sequence[Entry[AsyncMessage]], acks: AsyncSettler, begun: Callable[[], None]) -> Failures:
        (entry,) = entries
        begun()
        result = await handler(entry.message)
        if entry.overdue:
            log.warning("%s: its handler ended after its timeout; the result is discarded", described(entry.message))
        elif not entry.settled:
            await acks.ack(entry.message.receipt, encode_result(result))
        return []

    return apply


def _through(inbox: AsyncProcessor[Any], handler: Callable[..., Awaitable[object]]) -> AsyncApply:
    async def apply(entries: Sequence[Entry[AsyncMessage]], acks: AsyncSettler, begun: Callable[[], None]) -> Failures:
        # Before this, the inbox may wait for its file, which is no fault of the handler.
        async def handle(tx: object, message: AsyncMessage) -> object:
            begun()
            return await handler(tx, message)

        async def handle_one(tx: object, message: AsyncMessage) -> object:
            # An inbox of the application may let the handler settle its message: then it waits for the reply.
            return await handle(tx, replace(message, settler=entries[0].message.settler))

        if len(entries) == 1:
            await inbox.process(replace(entries[0].message, settler=acks), handle_one)
            return []
        # `WorkOptions.check_inbox` has refused batches of an inbox that has no such method.
        many = cast(AsyncBatchProcessor[Any], inbox)
        outcomes = await many.process_many([entry.message for entry in entries], handle)
        pairs = zip(entries, outcomes, strict=True)
        return [(entry, outcome) for entry, outcome in pairs if isinstance(outcome, Exception)]

    return apply
