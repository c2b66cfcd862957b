"""The messages of one fetch on their way to the daemon: which are settled, and what becomes of those it refuses."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from ...errors import EoqError
from ...message import Outgoing
from ...protocol.features import stored_until
from .aside import set_aside
from .partition import Partition
from .read import Published
from .wire.content import read_content
from .wire.names import Names
from .wire.nats_connection import NatsConnection

log = logging.getLogger("eoq.bridge")


class Arrivals:
    """Messages of one partition, for the batch sender. Their keys are their places in the stream."""

    def __init__(
        self,
        connection: NatsConnection,
        names: Names,
        partition: Partition,
        remembers: float,
        messages: Sequence[Published],
    ) -> None:
        self.stored = 0
        self.refused = 0
        self._connection = connection
        self._names = names
        self._partition = partition
        self._remembers = remembers
        self._left = {message.seq: message for message in messages}

    async def sendable(self, count: int) -> list[tuple[int, Outgoing]]:
        """Return what can be sent, of a queue with ``count`` partitions. Set the rest aside."""
        found = []
        for message in list(self._left.values()):
            content = read_content(self._names, self._partition.number, count, message.headers, message.body)
            if isinstance(content, Outgoing):
                found.append((message.seq, content))
            else:
                await self.reject(message.seq, content)
        return found

    def may_send(self, key: int) -> bool:
        """Return whether a message is not settled yet."""
        return key in self._left

    async def begin(self, keys: Sequence[int]) -> tuple[Collection[object], float | None]:
        """Return the messages, and until when they may be stored: as long as the daemon remembers an earlier try.

        That was made when the first of them was published, or later.
        """
        return keys, stored_until(min(self._left[key].at for key in keys), self._remembers)

    async def undo_begin(self, keys: Sequence[int]) -> None:
        """Do nothing: nothing was noted."""

    async def remove(self, keys: Sequence[int]) -> None:
        """Note that the daemon has stored messages."""
        for key in keys:
            del self._left[key]
        self.stored += len(keys)

    async def reject(self, key: int, error: EoqError) -> None:
        """Set a message aside that the daemon will never store."""
        number, made = self._partition.number, self._partition.made
        await set_aside(self._connection, self._names, number, made, self._left[key], error)
        del self._left[key]
        self.refused += 1
        log.error(
            "%s from %s: message %d of the stream is set aside in the stream %s: %s",
            self._names.queue,
            self._connection.name,
            key,
            self._names.aside,
            error,
        )
