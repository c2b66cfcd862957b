"""The outbox in PostgreSQL: messages written in the application's own transaction, and sent if and only if it commits.

A relay (`eoq relay postgresql://…`) sends each row to the daemon under its own id, and removes it when the daemon has
confirmed it. The table is plain SQL, so that any language, or a trigger, can write to it. It is in ``sql/outbox.py``.
"""

from __future__ import annotations

from typing import Any, Unpack

import psycopg
from psycopg.pq import TransactionStatus

from ..errors import InvalidRequest
from ..message import Outgoing, SendOptions
from ..outbox.writer import checked
from ..system.forks import watch_forks
from .aio_transaction import execute
from .sql.outbox import FIND, INSERT, MAKE


class AsyncPgOutbox:
    """The outbox of an application, on the application's own open connection of psycopg.

    It makes the table, where there is none, with the first message. With SQLAlchemy, inside a session, take
    ``session.connection().connection.driver_connection``; with Django, inside an `atomic` block,
    ``connection.connection``.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._has_table = False
        """Whether the table is there for good: this object has found it, and has not made it itself."""
        self._forked = False
        watch_forks(self)

    def forked(self) -> None:
        """Refuse to send from now on. Called in a forked child, which must not use the connection."""
        self._forked = True

    async def send(self, queue: str, body: object, **options: Unpack[SendOptions]) -> str:
        """Write a message to the outbox, in the transaction of the connection. Return the message's id.

        The message is sent if that transaction commits, and never if it does not. The arguments are those of
        `Client.send`. ``delay`` and ``ttl`` count from now, not from when the message is relayed.

        Raises `InvalidRequest` or `MessageTooLarge` for what the daemon would refuse. Raises `InvalidRequest` also if
        the connection is in autocommit mode and no transaction is open, since the message would then not be tied to
        other writes. After these errors, nothing was written.
        """
        if self._forked:
            raise InvalidRequest(
                "this outbox uses a connection that was opened before this process was forked, and belongs to the "
                "parent: open a connection and make an outbox in the child"
            )
        message = Outgoing(body, queue=queue, **options)
        id, content, headers = checked(message)
        if self._connection.autocommit and self._connection.info.transaction_status == TransactionStatus.IDLE:
            raise InvalidRequest(
                "no transaction is open, and this connection commits each statement by itself, so the message would be "
                "sent even if your other writes are undone: begin a transaction first (`connection.transaction()`), or "
                "use `Client.send`"
            )
        if not self._has_table:
            await self._find_table()
        parameters = (id, queue, content, headers, message.priority, message.group, message.at, message.delay)
        await execute(self._connection, INSERT, (*parameters, message.ttl))
        return id

    async def _find_table(self) -> None:
        ((found,),) = await (await execute(self._connection, FIND)).fetchall()
        if found:
            self._has_table = True
        else:
            await execute(self._connection, MAKE)
