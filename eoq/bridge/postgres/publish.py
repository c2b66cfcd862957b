"""The forwarding half: insert messages in `eoq_forward`.

A message that was inserted before is found by its id, and counts as inserted if its digest is the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import psycopg

from ...client.batch_sender import MESSAGE_FAULTS
from ...message import AsyncMessage
from ...postgres.driver import encoding_of, refuse_encoding, shown, with_defaults
from ...postgres.waking import SETTINGS, failure_of
from . import result_statements, statements

OF_A_ROW: Final = ("22", "23", "54")
"""The classes of the database's errors that one row may cause: its data, a constraint, a limit of the database."""


class RowPublisher:
    """It inserts messages in the database of a connection string, over a connection of its own. See `ForwardEnd`."""

    def __init__(self, conninfo: str) -> None:
        self.name = shown(conninfo)
        self._conninfo = with_defaults(conninfo)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._asks = False
        """Whether the table of results is there."""

    async def publish(
        self, queue: str, messages: Sequence[AsyncMessage], *, origin: str | None = None
    ) -> dict[str, str]:
        """Insert messages. Return the ids of those that can never be inserted, and why. See `ForwardEnd.publish`."""
        try:
            connection = await self._open()
            if origin is not None and not self._asks:
                await connection.execute(result_statements.MAKE)
                self._asks = True
            return await self._publish(connection, queue, messages, origin)
        except psycopg.Error as error:
            raise failure_of(error, self.name, "eoq_forward", "`eoq forward` makes it") from error
        finally:
            if self._connection is not None and self._connection.closed:
                self._connection = None

    async def close(self) -> None:
        """Close the connection. The next use opens it again."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _publish(
        self,
        connection: psycopg.AsyncConnection[Any],
        queue: str,
        messages: Sequence[AsyncMessage],
        origin: str | None,
    ) -> dict[str, str]:
        """Insert messages.

        Where the database refuses what is in a row, the halves are inserted one after the other, so that the row is
        found, and those before and behind it arrive in their order.
        """
        try:
            return await self._insert(connection, queue, messages, origin)
        except (psycopg.Error, *MESSAGE_FAULTS) as error:
            if not _is_of_a_row(error):
                raise
            if len(messages) == 1:
                return {messages[0].id: f"{self.name} refuses it: {_said(error)}"}
        middle = len(messages) // 2
        refused = await self._publish(connection, queue, messages[:middle], origin)
        return {**refused, **await self._publish(connection, queue, messages[middle:], origin)}

    async def _insert(
        self,
        connection: psycopg.AsyncConnection[Any],
        queue: str,
        messages: Sequence[AsyncMessage],
        origin: str | None,
    ) -> dict[str, str]:
        ids = [message.id for message in messages]
        bodies = [message.body for message in messages]
        groups = [message.group for message in messages]
        digests = [message.digest or None for message in messages]
        ascii = encoding_of(connection) != "UTF8"  # an escape is the same JSON, and has room in any encoding
        headers = [json.dumps(dict(m.headers), ensure_ascii=ascii) if m.headers else None for m in messages]
        priorities = [message.priority for message in messages]
        ends = [message.expires_at for message in messages]
        # A request for results is there with its message. Without one, a statement is a transaction.
        async with nullcontext() if origin is None else connection.transaction():
            inserted = await connection.execute(
                statements.PUBLISH, (queue, ids, bodies, headers, groups, priorities, ends, digests)
            )
            refused: dict[str, str] = {}
            if inserted.rowcount < len(messages):
                found = await connection.execute(statements.CONFLICTS, (ids, bodies, groups, digests, queue))
                reason = f"id_conflict: {self.name} has this id in {queue} with other content"
                refused = {id: reason for (id,) in await found.fetchall()}
            if origin is not None:
                wanted = [id for id in ids if id not in refused]
                await connection.execute(result_statements.ASK, (origin, queue, wanted))
            return refused

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            try:
                refuse_encoding(connection)
                await connection.execute(SETTINGS)
                await connection.execute(statements.MAKE)
                self._asks = False
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection


def _is_of_a_row(error: Exception) -> bool:
    """Return whether an error is about what is in a row: data, a constraint, or a value too long for an index."""
    return not isinstance(error, psycopg.Error) or (
        isinstance(error, psycopg.DataError) if error.sqlstate is None else error.sqlstate.startswith(OF_A_ROW)
    )


def _said(error: Exception) -> str:
    """Return what the database says of a row, without what is in the row."""
    return (isinstance(error, psycopg.Error) and error.diag.message_primary) or str(error)
