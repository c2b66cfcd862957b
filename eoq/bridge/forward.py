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
from ..client.batch_sender import MESSAGE_FAULTS
from ..errors import EoqError, InvalidRequest, LeaseLost, Unavailable
from ..message import AsyncMessage
from ..postgres.driver import shown, with_defaults
from ..postgres.waking import SETTINGS
from ..protocol import calls
from ..protocol.features import FORWARDED
from ..protocol.forwarding import forwarded
from . import statements

log = logging.getLogger("eoq.bridge")

BATCH: Final = 250
"""Messages in one transaction."""
OF_A_ROW: Final = ("22", "23", "54")
"""The classes of the database's errors that one row may cause: its data, a constraint, a limit of the database."""
LEASE_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 30.0
"""How long one request waits for messages."""
LOG_SECONDS: Final = 60.0
"""How often at most an outage is logged."""


class Forwarder:
    """It moves the messages of one queue to the table in the database of a connection string."""

    def __init__(self, client: AsyncClient, queue: str, conninfo: str) -> None:
        self.name = shown(conninfo)
        self.moved = 0
        """How many messages were forwarded."""
        self.refused = 0
        """How many became dead letters: their id is there with other content, or the database refuses them."""
        self.owner = None
        """It claims nothing, so it needs no name."""
        self.error: str | None = None
        """Why it waits now, or None."""
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
                    waits, self.error = pauses(), None
                except (psycopg.Error, OSError, EoqError) as error:
                    self._log(error)
                    await asyncio.sleep(next(waits))  # the database or the daemon is away
        finally:
            await self._close()

    async def flush(self) -> int:
        """Forward what is ready now. Return how many became dead letters. Raises what keeps it from going on."""
        try:
            while messages := await self._receive(0.0):
                await self._forward(messages)
        finally:
            await self._close()
        return self.refused

    def _log(self, error: Exception) -> None:
        self.error = " ".join(str(error).split())  # of libpq it has several lines
        if time.monotonic() >= self._logged_at + LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning("%s to %s: %s; waiting", self._queue, self.name, self.error)

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
            refused = await self._publish(await self._open(), messages)
        except BaseException:
            await self._drop_connection()
            await asyncio.shield(self._release(messages))
            raise
        await self._settle([message for message in messages if message.id not in refused])
        for message in messages:
            if message.id in refused:
                await self._reject(message, refused[message.id])

    async def _publish(
        self, connection: psycopg.AsyncConnection[Any], messages: Sequence[AsyncMessage]
    ) -> dict[str, str]:
        """Insert messages. Return the ids of those that can never be inserted, and why.

        Where the database refuses what is in a row, the halves are inserted one after the other, so that the row is
        found, and those before and behind it arrive in their order.
        """
        try:
            return await self._insert(connection, messages)
        except (psycopg.Error, *MESSAGE_FAULTS) as error:
            if not _is_of_a_row(error):
                raise
            if len(messages) == 1:
                return {messages[0].id: f"{self.name} refuses it: {_said(error)}"}
        middle = len(messages) // 2
        refused = await self._publish(connection, messages[:middle])
        return {**refused, **await self._publish(connection, messages[middle:])}

    async def _insert(
        self, connection: psycopg.AsyncConnection[Any], messages: Sequence[AsyncMessage]
    ) -> dict[str, str]:
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
                return {}
            found = await connection.execute(statements.CONFLICTS, (ids, bodies, groups, digests, self._queue))
            reason = f"id_conflict: {self.name} has this id in {self._queue} with other content"
            return {id: reason for (id,) in await found.fetchall()}

    async def _reject(self, message: AsyncMessage, reason: str) -> None:
        try:
            await message.reject(reason)
            self.refused += 1
        except LeaseLost:
            log.info("%s: the lease of %s has ended; it is refused again", self._queue, message.id)

    async def _settle(self, messages: Sequence[AsyncMessage]) -> None:
        if not messages:
            return
        try:
            await self._client.channel.run(forwarded(messages, self.name))
            self.moved += len(messages)
        except LeaseLost:
            # Those whose lease has ended are delivered again, and their rows are found.
            for message in messages:
                try:
                    await self._client.channel.run(forwarded([message], self.name))
                    self.moved += 1
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
                await connection.execute(SETTINGS)
                await connection.execute(statements.MAKE)
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


def _is_of_a_row(error: Exception) -> bool:
    """Return whether an error is about what is in a row: data, a constraint, or a value too long for an index."""
    return not isinstance(error, psycopg.Error) or (
        isinstance(error, psycopg.DataError) if error.sqlstate is None else error.sqlstate.startswith(OF_A_ROW)
    )


def _said(error: Exception) -> str:
    """Return what the database says of a row, without what is in the row."""
    return (isinstance(error, psycopg.Error) and error.diag.message_primary) or str(error)
