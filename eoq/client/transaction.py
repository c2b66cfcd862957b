"""Transactions over queues, of both clients: acks and sends that happen together or not at all (G4)."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ..message import Delivery, Outgoing, Sent
from ..protocol import calls
from ..protocol.calls import Call

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .blocking import Client


class _Gathered:
    """Acks and sends that wait for the end of a ``with`` block."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        """What became of each send, once the block has ended."""
        self._acks: list[tuple[Delivery | str, object]] = []
        self._sends: list[Outgoing] = []

    def ack(self, message: Delivery | str, result: object = None) -> None:
        """Settles a message as done, with its ``result``."""
        self._acks.append((message, result))

    def send(
        self,
        queue: str,
        body: object,
        *,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        group: str | None = None,
        delay: float | None = None,
        at: float | None = None,
        ttl: float | None = None,
    ) -> None:
        """Sends a message; the arguments are those of `Client.send`."""
        self._sends.append(Outgoing(body, id, queue, headers, priority, group, delay, at, ttl))

    def _settle(self, kind: type[BaseException] | None) -> Call[list[Sent]] | None:
        """What there is to do at the end of a block that an exception of this ``kind`` ended."""
        return calls.settle(self._acks, self._sends) if kind is None and (self._acks or self._sends) else None


class Transaction(_Gathered):
    """Acks and sends, over any messages and queues, that happen together or not at all (G4).

    They are gathered, and committed when the ``with`` block ends without an exception; then ``sent`` has what
    became of each send. Raises `LeaseLost` if one of the leases has ended, or what `Client.send` raises: then
    nothing at all has changed.
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (call := self._settle(kind)) is not None:
            self.sent = self._client._run(call)


class AsyncTransaction(_Gathered):
    """The asyncio twin of `Transaction`: used with ``async with``, it commits when the block ends."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__()
        self._client = client

    async def __aenter__(self) -> AsyncTransaction:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (call := self._settle(kind)) is not None:
            self.sent = await self._client._run(call)
