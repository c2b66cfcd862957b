"""Forward a queue: lease its messages, insert them in `eoq_forward`, and settle them as forwarded.

A forwarder that is killed after the insert and before the settling inserts them again: the row is there, with the same
digest. Its deliveries never count as attempts (``handles`` 0).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg

from ..backoff import pauses
from ..client.aio import AsyncClient
from ..errors import EoqError, InvalidRequest, LeaseLost, Unavailable
from ..message import AsyncMessage
from ..postgres.driver import shown, with_defaults
from ..postgres.sql.inbox import LOCK_TABLES
from ..postgres.waking import SYNCHRONOUS
from ..protocol import calls
from ..protocol.features import FORWARDED
from ..protocol.forwarding import forwarded
from . import statements

log = logging.getLogger("eoq.bridge")

BATCH: Final = 250
"""Messages in one transaction."""
LEASE_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 30.0
"""How long one request waits for messages."""
LOG_SECONDS: Final = 60.0
"""How often at most an outage is logged."""


class Forwarder:
    """It moves the messages of one queue to the table in the database of a connection string."""

    def __init__(self, client: AsyncClient, queue: str, conninfo: str) -> None:
        self.name = shown(conninfo)
        self.forwarded = 0
        """How many messages were forwarded."""
        self.rejected = 0
        """How many became dead letters, since their id is there with other content."""
        self._client = client
        self._queue = queue
        self._conninfo = with_defaults(conninfo)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._logged_at = -LOG_SECONDS

    async def check(self) -> None:
        """Raise `Unavailable` without a daemon, and `InvalidRequest` if it cannot settle messages as forwarded."""
        await self._client.ask("status")
        if not await self._client.channel.knows(FORWARDED):
            raise InvalidRequest("the daemon is of an earlier version, which cannot forward; update it")

    async def run(self) -> None:
        """Forward until this task is cancelled. Errors of the database or of the daemon are logged, and tried again."""
        waits = pauses()
        try:
            while True:
                try:
                    await self._forward(await self._receive(WAIT_SECONDS))
                    waits = pauses()
                except (psycopg.Error, OSError, EoqError) as error:
                    self._log(error)
                    await asyncio.sleep(next(waits))  # the database or the daemon is away
        finally:
            await self._close()

    async def flush(self) -> int:
        """Forward what is ready now. Return how many messages were forwarded. Raises what keeps it from going on."""
        try:
            while messages := await self._receive(0.0):
                await self._forward(messages)
        finally:
            await self._close()
        return self.forwarded

    def _log(self, error: Exception) -> None:
        if time.monotonic() >= self._logged_at + LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning("%s to %s: %s; waiting", self._queue, self.name, str(error).strip())

    async def _receive(self, wait: float) -> list[AsyncMessage]:
        call = calls.receive(
            self._queue,
            AsyncMessage,
            self._client,
            limit=BATCH,
            wait=wait,
            lease=LEASE_SECONDS,
            bound=True,
            handles=0,
        )
        return await self._client.channel.run(call)

    async def _forward(self, messages: Sequence[AsyncMessage]) -> None:
        if not messages:
            return
        try:
            conflicts = await self._publish(messages)
        except BaseException:
            await self._drop_connection()
            await asyncio.shield(self._release(messages))
            raise
        for message in messages:
            if message.id in conflicts:
                self.rejected += 1
                await message.reject(f"id_conflict: {self.name} has this id in {self._queue} with other content")
        await self._settle([message for message in messages if message.id not in conflicts])

    async def _publish(self, messages: Sequence[AsyncMessage]) -> set[str]:
        """Insert messages, and return the ids of those that are there with other content."""
        connection = await self._open()
        ids = [message.id for message in messages]
        bodies = [message.body for message in messages]
        groups = [message.group for message in messages]
        digests = [message.digest or None for message in messages]
        headers = [json.dumps(dict(m.headers), ensure_ascii=False) if m.headers else None for m in messages]
        priorities = [message.priority for message in messages]
        ends = [message.expires_at for message in messages]
        async with connection.transaction():
            inserted = await connection.execute(
                statements.PUBLISH, (self._queue, ids, bodies, headers, groups, priorities, ends, digests)
            )
            if inserted.rowcount == len(messages):
                return set()
            found = await connection.execute(statements.CONFLICTS, (ids, bodies, groups, digests, self._queue))
            return {id for (id,) in await found.fetchall()}

    async def _settle(self, messages: Sequence[AsyncMessage]) -> None:
        if not messages:
            return
        try:
            await self._client.channel.run(forwarded(messages, self.name))
            self.forwarded += len(messages)
        except LeaseLost:
            # Those whose lease has ended are delivered again, and their rows are found.
            for message in messages:
                try:
                    await self._client.channel.run(forwarded([message], self.name))
                    self.forwarded += 1
                except LeaseLost:
                    log.info("%s: the lease of %s has ended; it is forwarded again", self._queue, message.id)

    async def _release(self, messages: Sequence[AsyncMessage]) -> None:
        try:
            await self._client.channel.run(calls.release([message.receipt for message in messages]))
        except (Unavailable, LeaseLost):
            log.debug("%s: the messages come back when their leases end", self._queue)

    # ── the connection ──────────────────────────────────────────────────────────────────────────────────

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            try:
                await connection.execute(SYNCHRONOUS)
                await create_table(connection)
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _drop_connection(self) -> None:
        if self._connection is not None and self._connection.closed:
            self._connection = None

    async def _close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


async def create_table(connection: psycopg.AsyncConnection[Any]) -> None:
    """Create the table if there is none."""
    ((found,),) = await (await connection.execute(statements.FIND)).fetchall()
    if not found:
        async with connection.transaction():
            await connection.execute(LOCK_TABLES)
            for statement in statements.CREATE:
                await connection.execute(statement)
