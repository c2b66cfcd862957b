"""Send messages in batches, and find the ones that the daemon refuses. The relay and the spool reader use it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from ..backoff import DAEMON_WIDE, PERMANENT, Backoff
from ..errors import EoqError, Forbidden, InvalidRequest, TooLate, Unavailable
from ..message import Outgoing
from ..protocol import calls
from .aio import AsyncClient

MESSAGE_FAULTS: Final = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What Python raises where eoq meets a value that it did not expect. The value is in one message of the batch."""

K = TypeVar("K")
K_contra = TypeVar("K_contra", contravariant=True)
Keyed: TypeAlias = tuple[K, Outgoing]
"""A message, which names its queue, and the key under which its source knows it."""


class Source(Protocol[K_contra]):
    """The source of the messages. It keeps them until the daemon has stored them."""

    def may_send(self, key: K_contra) -> bool:
        """Return whether a message may be sent now. If not, it is left out and stays in the source."""

    async def begin(self, keys: Sequence[K_contra]) -> tuple[Collection[object], float | None]:
        """Note that these are about to be sent. From now on the daemon may have stored them.

        Return those that are still to be sent, and until when, in seconds since the epoch. This process may sleep at
        any moment, for longer than the daemon remembers what another try has stored. None is for messages that it has
        certainly not stored, and for an older daemon.
        """

    async def undo_begin(self, keys: Sequence[K_contra]) -> None:
        """Note that the daemon refused these, hence has not stored them."""

    async def remove(self, keys: Sequence[K_contra]) -> None:
        """Remove these: the daemon has stored them."""

    async def reject(self, key: K_contra, error: EoqError) -> None:
        """Put a message aside that the daemon will never store."""


class BatchSender(Generic[K]):
    """A sender of the messages of a source, each batch in one transaction of the daemon.

    If the daemon refuses a batch, its halves are sent one after the other, and so on. So the refused message is found,
    and the messages before and behind it are stored in their order.
    """

    def __init__(self, client: AsyncClient, source: Source[K], backoff: Backoff) -> None:
        self._client = client
        self._source = source
        self._backoff = backoff

    async def send(self, batch: Sequence[Keyed[K]]) -> None:
        """Send the messages that the daemon accepts now. Those that it refuses for now stay in the source."""
        await self._send(batch, set())

    async def _send(self, batch: Sequence[Keyed[K]], refused_queues: set[str | None]) -> None:
        # A queue that refused one message gets none of those behind it, even if its pause ends before this batch does:
        # a group keeps its order.
        batch = [
            (key, message)
            for key, message in batch
            if message.queue not in refused_queues
            and not self._backoff.is_waiting(message.queue)
            and self._source.may_send(key)
        ]
        if not batch or self._backoff.is_waiting(None):
            return
        keys = [key for key, _ in batch]
        left, not_after = await self._source.begin(keys)
        if len(left) < len(batch):
            batch = [(key, message) for key, message in batch if key in left]
            keys = [key for key, _ in batch]
            if not batch:
                return
        try:
            await self._client.channel.run(calls.settle((), [message for _, message in batch], not_after))
        except TooLate as error:  # an earlier try may have stored it, so what `begin` noted stays
            if len(batch) > 1:
                await self._send_halves(batch, refused_queues)
            else:
                await self._source.reject(keys[0], error)
        except Unavailable as error:
            self._backoff.failed(None, error)  # the daemon may have stored them, so what `begin` noted stays
        except EoqError as error:
            await self._source.undo_begin(keys)
            if isinstance(error, DAEMON_WIDE) and not isinstance(error, Forbidden):  # it may concern one queue only
                self._backoff.failed(None, error)
            elif len(batch) > 1:
                await self._send_halves(batch, refused_queues)
            elif isinstance(error, PERMANENT):
                await self._source.reject(keys[0], error)
            else:
                queue = batch[0][1].queue
                refused_queues.add(queue)
                self._backoff.failed(queue, error)
        except MESSAGE_FAULTS as fault:
            # One message must not end the sending of all others. What `begin` noted stays: it may have been stored.
            if len(batch) > 1:
                await self._send_halves(batch, refused_queues)
            else:
                await self._source.reject(keys[0], InvalidRequest(f"eoq failed at this message: {fault!r}"))
        else:
            await self._source.remove(keys)
            self._backoff.succeeded({None, *(message.queue for _, message in batch)})

    async def _send_halves(self, batch: Sequence[Keyed[K]], refused_queues: set[str | None]) -> None:
        middle = len(batch) // 2
        await self._send(batch[:middle], refused_queues)
        await self._send(batch[middle:], refused_queues)
