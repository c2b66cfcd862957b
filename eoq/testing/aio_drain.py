"""Draining a queue in a test: the handler runs for each message that is ready, until there is none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from ..client.aio import AsyncClient
from ..errors import EoqError
from ..message import AsyncMessage, Outgoing, encode_payload
from ..outcomes import give_back_async
from ..worker.aio_handlers import AsyncProcessor
from ..worker.handler_shape import check_handler
from .drained import Drained, Run

MOST_RUNS: Final = 100_000
"""Runs of the handler after which a drain fails: a handler that always adds another message has no end."""
LONGEST_LIST: Final = 1000
"""How many delayed messages are looked at for the one that is due first."""


async def drain(
    client: AsyncClient,
    queue: str,
    handler: Callable[..., Awaitable[object]],
    inbox: AsyncProcessor[Any] | None,
    move_to: Callable[[float], None] | None,
    reraise: bool,
) -> Drained:
    """Handle the messages of ``queue`` until none is ready. ``move_to`` moves the clock, where that is allowed."""
    check_handler(handler, inbox=inbox is not None, messages=AsyncMessage)
    drained = Drained()
    while True:
        messages = await client.receive(queue)
        if not messages:
            if move_to is None or not await _move_on(client, queue, move_to):
                return drained
            continue
        run = await _handle(messages[0], handler, inbox)
        drained.runs.append(run)
        if reraise and run.error is not None:
            raise run.error
        if len(drained.runs) >= MOST_RUNS:
            raise AssertionError(f"{queue} was not empty after {MOST_RUNS:,} runs of the handler")


async def _move_on(client: AsyncClient, queue: str, move_to: Callable[[float], None]) -> bool:
    """Move the clock to when the next message is due. Return False if none is delayed."""
    delayed = await client.peek(queue, "delayed", limit=LONGEST_LIST)
    moments = [message["due_at"] for message in delayed]
    if moments:
        move_to(min(moments))
    return bool(moments)


async def _handle(
    message: AsyncMessage, handler: Callable[..., Awaitable[object]], inbox: AsyncProcessor[Any] | None
) -> Run:
    noting = _AsyncNoting(message)
    message = replace(message, settler=noting)
    error: BaseException | None = None
    try:
        if inbox is not None:
            await inbox.process(message, handler)
        else:
            result = await handler(message)
            if not noting.outcome:
                await message.ack(result)
    except Exception as raised:  # noqa: BLE001 # it is the outcome of its message, and the test gets it
        error = raised
        if not noting.outcome and not isinstance(raised, EoqError):
            await give_back_async(message, raised)
    if not noting.outcome:
        if error is None:
            raise AssertionError(f"the inbox has returned without settling {message.id!r}")
        await give_back_async(message, error)
    return Run(message.id, message.attempt, noting.outcome or "lost", noting.result, error)


class _AsyncNoting:
    """The settler of a message that notes how it was settled."""

    def __init__(self, message: AsyncMessage) -> None:
        self._settler = message.settler
        self.outcome = ""
        self.result: bytes | None = None

    async def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        await self._settler.ack(receipt, result, send)
        self.outcome = "done"
        self.result = None if result is None else encode_payload(result)[0]

    async def ack_many(self, acks: Any, /) -> None:
        for message, result in acks:
            await self.ack(message.receipt, result)

    async def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        await self._settler.nack(receipt, delay, error)
        self.outcome = "retried"

    async def reject(self, receipt: str, error: str | None = None, /) -> None:
        await self._settler.reject(receipt, error)
        self.outcome = "rejected"

    async def release(self, receipt: str, /) -> None:
        await self._settler.release(receipt)
        self.outcome = "retried"

    async def extend(self, receipt: str, seconds: float, /) -> bool:
        return await self._settler.extend(receipt, seconds)
