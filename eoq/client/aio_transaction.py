"""Transactions over queues: acks and sends that happen together or not at all (guarantee G4)."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Unpack

from ..message import Delivery, Outgoing, SendOptions, Sent
from ..protocol import calls
from ..transport.aio_channel import AsyncChannel


class AsyncTransaction:
    """Acks and sends, over any messages and queues, that happen together or not at all (guarantee G4).

    They are collected, and committed when the ``async with`` block ends without an exception. Then ``sent`` has the
    `Sent` of each send, in their order. The end of the block raises `LeaseLost` if one of the leases has ended, or what
    `AsyncClient.send` raises; then nothing at all has changed.
    """

    def __init__(self, channel: AsyncChannel) -> None:
        self.sent: list[Sent] = []
        """The `Sent` of each send, once the block has ended."""
        self._channel = channel
        self._acks: list[tuple[Delivery | str, object]] = []
        self._sends: list[Outgoing] = []

    def ack(self, message: Delivery | str, result: object = None) -> None:
        """Settle a message, or the one that a receipt names, as done. Its ``result`` is stored with it."""
        self._acks.append((message, result))

    def send(self, queue: str, body: object, **options: Unpack[SendOptions]) -> None:
        """Store a message. ``body`` and ``options`` are those of `AsyncClient.send`."""
        self._sends.append(Outgoing(body, queue=queue, **options))

    def send_many(self, messages: Iterable[Outgoing]) -> None:
        """Store many messages, in their order. Each names its queue."""
        self._sends.extend(messages)

    async def __aenter__(self) -> AsyncTransaction:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and (self._acks or self._sends):
            self.sent = await self._channel.run(calls.settle(self._acks, self._sends))
