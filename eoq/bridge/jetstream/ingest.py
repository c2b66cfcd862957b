"""Ingest a queue: read the partitions of this machine in their order, store here, then note what was taken.

Between the two notes it may be killed at any point: then it reads again what it had stored, and the daemon answers with
duplicates. A message is noted only behind all that stand before it in its partition, so none is left out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple

from ...backoff import Backoff, pauses
from ...client.aio import AsyncClient
from ...client.batch_sender import BatchSender
from ...errors import EoqError, InvalidRequest
from ...protocol.features import NOT_AFTER
from ..engine import IngestOptions
from ..room import ROOM_SECONDS, free_room
from ..tasks import run_all
from .aside import count_aside
from .partition import Partition, claim
from .read import Published
from .records import PartitionTaken, Records, check_own
from .storing import Arrivals
from .stream import open_stream
from .wire.address import Address
from .wire.names import Names, Partitions
from .wire.nats_connection import NatsConnection, open_connection

log = logging.getLogger("eoq.bridge")

BATCH: Final = 250
WAIT_SECONDS: Final = 30.0
"""How long one fetch waits for a message."""
LOG_SECONDS: Final = 60.0
"""How often at most an outage is logged."""
RETRY_SECONDS: Final = 1.0
"""Between two looks whether the daemon takes messages again, at most."""


class _Opened(NamedTuple):
    connection: NatsConnection
    partitions: int
    own: list[Partition]


class StreamIngester:
    """It takes the messages of some partitions of one queue. See `Mover`."""

    def __init__(
        self, client: AsyncClient, queue: str, address: Address, partitions: Partitions, options: IngestOptions
    ) -> None:
        self.owner = options.name
        """The name of this machine. Without one it is known once it has begun."""
        self.name = f"{queue} from {address.name}"
        self.moved = 0
        """How many messages were stored here, those included that were here already."""
        self.refused = 0
        """How many messages were set aside, since they cannot be stored here."""
        self._client = client
        self._address = address
        self._names = Names(address.stream, queue)
        self._partitions = partitions
        self._limit = options.limit
        self._instance = secrets.token_hex(8)
        self._backoff = Backoff(self.name, log)
        self._outage = ""
        self._logged_at = -LOG_SECONDS
        self._fetching = asyncio.Lock()
        self._free = 0
        """How many more messages may be taken, as the daemon has said last."""
        self._asked_at = -ROOM_SECONDS
        self._is_served = False
        """Whether this connection has been of use."""
        self._remembers = 0.0

    @property
    def error(self) -> str | None:
        """Why it waits now, or None."""
        refusals = [str(error) for error in self._backoff.errors()]
        return self._outage or (refusals[0] if refusals else None)

    async def check(self) -> None:
        """Raise `Unavailable` without a daemon, and `InvalidRequest` if it does not know until when it may store."""
        await self._client.ask("status")
        if not await self._client.channel.knows(NOT_AFTER):
            raise InvalidRequest("the daemon is of an earlier version, which cannot ingest; update it")

    async def run(self) -> None:
        """Ingest until this task is cancelled. Raises at the start what keeps it from beginning."""
        has_begun, waits = False, pauses()
        while True:
            self._is_served = False
            try:
                async with self._opened() as opened:
                    has_begun = True
                    await run_all([self._serve(opened, partition) for partition in opened.own])
            except PartitionTaken:
                raise
            except (EoqError, OSError) as error:
                if not has_begun:
                    raise
                if self._is_served:
                    waits = pauses()
                self._log(error)
                await asyncio.sleep(next(waits))  # the server or the daemon is away

    async def flush(self) -> int:
        """Ingest what is there now, up to the limit. Return how many messages are set aside."""
        async with self._opened() as opened:
            for partition in opened.own:
                while messages := await self._fetch(partition, wait=False):
                    await self._store(opened, partition, messages, is_patient=False)
            return await count_aside(opened.connection, self._names, [one.number for one in opened.own])

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[_Opened]:
        """Connect, and claim the partitions of this machine."""
        status = await self._client.ask("status")
        identity = str(status["identity"])
        self.owner = self.owner or identity
        self._remembers = float(status.get("remembers") or 0.0)
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(open_connection(self._address))
            stream = await open_stream(connection, remembers=self._remembers)
            records = Records(connection, self._names)
            count = await records.count(self._partitions.count, default=None)
            claims = [
                claim(connection, records, number, stream, identity=identity, name=self.owner, instance=self._instance)
                for number in check_own(self._partitions, count)
            ]
            own = []
            for claimed in await asyncio.gather(*claims, return_exceptions=True):
                if isinstance(claimed, BaseException):
                    raise claimed
                own.append(claimed)
            yield _Opened(connection, count, own)

    def _log(self, error: Exception) -> None:
        self._outage = " ".join(str(error).split())
        if time.monotonic() >= self._logged_at + LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning("%s: %s; waiting", self.name, self._outage)

    # ── one partition ───────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, opened: _Opened, partition: Partition) -> None:
        while True:
            messages = await self._fetch(partition, wait=True)
            self._outage, self._is_served = "", True
            if messages:
                await self._store(opened, partition, messages, is_patient=True)
            else:
                await partition.idle()

    async def _fetch(self, partition: Partition, *, wait: bool) -> Sequence[Published]:
        """Return the next messages, as many as there is room for.

        While it waits, it asks for one only: or else the partitions together could take more than there is room for.
        """
        async with self._fetching:
            room = await self._room(wait=wait)
            found = await partition.reader.fetch(min(BATCH, room), 0.0) if room > 0 else ()
            self._free -= len(found)
        if not found and wait:
            found = await partition.reader.fetch(1, WAIT_SECONDS)
            self._free -= len(found)
        return found

    async def _room(self, *, wait: bool) -> int:
        while True:
            if self._free <= 0 or time.monotonic() >= self._asked_at + ROOM_SECONDS:
                self._asked_at = time.monotonic()
                self._free = await free_room(self._client, self._names.queue, self._limit)
            if self._free > 0 or not wait:
                return self._free
            await asyncio.sleep(ROOM_SECONDS)

    async def _store(
        self, opened: _Opened, partition: Partition, messages: Sequence[Published], *, is_patient: bool
    ) -> None:
        """Store messages here, and then note that they are taken. ``is_patient``: wait while the daemon refuses."""
        arrivals = Arrivals(opened.connection, self._names, partition, self._remembers, messages)
        sender = BatchSender(self._client, arrivals, self._backoff)
        left = await arrivals.sendable(opened.partitions)
        try:
            while left:
                await sender.send(left)
                left = [(seq, content) for seq, content in left if arrivals.may_send(seq)]
                if left and not is_patient:
                    for refusal in self._backoff.errors():
                        raise refusal
                if left:
                    await asyncio.sleep(self._backoff.seconds_left(RETRY_SECONDS))
        finally:
            self.moved += arrivals.stored
            self.refused += arrivals.refused
        await partition.taken(messages)
