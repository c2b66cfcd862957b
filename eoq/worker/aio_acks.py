"""The settlers of an asyncio worker's messages. Its loop knows through them how each message ended.

While messages wait, the loop sends an ack and runs the next handler. A task waits for the reply meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ..errors import EoqError, LeaseLost
from ..message import AsyncMessage, Outgoing
from ..protocol import calls
from ..protocol.calls import Call
from ..transport.aio_channel import AsyncChannel, AsyncStarted
from .acks import OF_THE_MESSAGE, StartedAcks
from .in_flight import InFlight
from .reports import report


class AsyncLoopSettler:
    """The settler of one loop that waits for each reply.

    Errors that no message caused go to ``fail``, which ends the loop.
    """

    def __init__(
        self,
        channel: AsyncChannel,
        in_flight: InFlight[AsyncMessage],
        fail: Callable[[BaseException], Awaitable[None]],
    ) -> None:
        self._channel = channel
        self._in_flight = in_flight
        self._fail = fail

    async def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        await self.settle([receipt], "done", calls.ack(receipt, result, list(send)))

    async def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None:
        await self.settle([receipt], "retried", calls.nack(receipt, delay, error))

    async def reject(self, receipt: str, error: str | None = None, /) -> None:
        await self.settle([receipt], "rejected", calls.reject(receipt, error))

    async def release(self, receipt: str, /) -> None:
        await self.settle([receipt], "retried", calls.release([receipt]))

    async def extend(self, receipt: str, seconds: float, /) -> bool:
        return await self._channel.run(calls.extend(receipt, seconds))

    async def settle(self, receipts: Sequence[str], outcome: str, call: Call[Any]) -> None:
        """Settle messages by ``call``, and note the ``outcome``: done, retried or rejected."""
        for receipt in receipts:
            self._in_flight.settling(receipt)
        try:
            await self._channel.run(call)
        except BaseException as error:
            # One of several acks was refused, and it is not known which. They are then tried one by one.
            await self.not_settled(receipts, error, lost=isinstance(error, LeaseLost) and len(receipts) == 1)
            raise
        for receipt in receipts:
            self._in_flight.settled(receipt, outcome)

    async def not_settled(self, receipts: Sequence[str], error: BaseException, lost: bool) -> None:
        """Note that settling failed, and end the loop if no message caused the ``error``."""
        for receipt in receipts:
            self._in_flight.not_settled(receipt, lost)
        if isinstance(error, EoqError) and not isinstance(error, OF_THE_MESSAGE):
            await self._fail(error)


class AsyncPipelinedAcks:
    """The settler of one loop that does not wait for the replies to acks.

    ``tasks`` wait for them, one for each request in flight. ``changed`` is set when a message leaves.
    """

    def __init__(
        self,
        settler: AsyncLoopSettler,
        channel: AsyncChannel,
        in_flight: InFlight[AsyncMessage],
        changed: asyncio.Event,
    ) -> None:
        self._settler = settler
        self._channel = channel
        self._in_flight = in_flight
        self._changed = changed
        self.tasks: set[asyncio.Task[None]] = set()
        self.nack = settler.nack
        self.reject = settler.reject
        self.release = settler.release
        self.extend = settler.extend

    async def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None:
        if send:
            await self._settler.ack(receipt, result, send)
        else:
            await self._start([receipt], [result], calls.ack(receipt, result, ()))

    async def ack_many(self, acks: Sequence[tuple[AsyncMessage, object]], /) -> None:
        receipts = [message.receipt for message, _ in acks]
        await self._start(receipts, [result for _, result in acks], calls.settle(acks, ()))

    async def _start(self, receipts: Sequence[str], results: Sequence[object], call: Call[Any]) -> None:
        entries = self._in_flight.settling_all(receipts)
        if entries is None:
            await self._settler.settle(receipts, "done", call)
            return
        try:
            started = StartedAcks(entries, results, await self._channel.start(call))
        except BaseException as error:
            await self._settler.not_settled(receipts, error, lost=False)
            raise
        self._in_flight.confirming(entries)
        self._changed.set()
        task = asyncio.create_task(self._conclude(started))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def confirm(self, most: int) -> None:
        """Wait until at most ``most`` requests with acks are in flight."""
        while len(self.tasks) > most:
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _conclude(self, started: StartedAcks[AsyncMessage, AsyncStarted[Any]]) -> None:
        try:
            await self._channel.finish(started.request)
        except EoqError as error:
            if started.may_be_split(error):
                await self._ack_alone(started)
            else:
                await self._settler.not_settled(started.receipts(), error, lost=isinstance(error, LeaseLost))
                if isinstance(error, OF_THE_MESSAGE):  # any other ends the loop, which raises it
                    for entry in started.entries:
                        report(entry, error)
        else:
            for receipt in started.receipts():
                self._in_flight.settled(receipt, "done")
        finally:
            for entry in started.entries:
                self._in_flight.end(entry)
            self._changed.set()

    async def _ack_alone(self, started: StartedAcks[AsyncMessage, AsyncStarted[Any]]) -> None:
        """Ack each message of a batch by itself, since one of them was refused."""
        for entry, result in zip(started.entries, started.results, strict=True):
            try:
                await self._settler.ack(entry.message.receipt, result)
            except OF_THE_MESSAGE as error:
                report(entry, error)
            except EoqError:
                return  # it ends the loop, which raises it


class AsyncMessageSettler:
    """The settler that a loop gives its messages, for handlers that settle their own.

    It waits for each reply. Only the acks of a whole batch, which an inbox sends after its commit, are pipelined.
    """

    def __init__(self, settler: AsyncLoopSettler, pipelined: AsyncPipelinedAcks) -> None:
        self.ack = settler.ack
        self.nack = settler.nack
        self.reject = settler.reject
        self.release = settler.release
        self.extend = settler.extend
        self.ack_many = pipelined.ack_many
