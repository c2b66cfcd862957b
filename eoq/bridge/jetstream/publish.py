"""The forwarding half: publish messages in a stream, each in the partition of its group or id.

The server drops what it knows by its id for a while (``duplicate_window``). That only spares copies: a copy that it
does not drop goes to the same machine, whose daemon knows the id.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ...errors import InvalidRequest, StorageFailed, StorageFull
from ...message import AsyncMessage
from .records import NO_MESSAGE, Records
from .stream import open_stream
from .wire.address import Address
from .wire.content import DIGEST, GROUP, MAX_HEADERS, headers_of, id_of, parse_headers, size_of
from .wire.names import Names, Partitions, partition_of
from .wire.nats_connection import NatsConnection, Sending, ServerRefusal, number_of, text_of

PART_BYTES: Final = 2 * 1024 * 1024
"""Bytes of bodies that are published before their confirmations are waited for, unless it is one body."""
OF_A_MESSAGE: Final = (10054, 10097)
"""The message, or its headers, are too large for the stream."""
FULL: Final = (10023, 10047, 10077, 10122)
"""No room in the stream, the account or on the disk."""


class NoResults(InvalidRequest):
    """A stream carries no results."""

    def __init__(self) -> None:
        super().__init__("results come back over PostgreSQL only; leave `results` out for a stream of NATS")


class StreamPublisher:
    """It publishes in the stream of an address. See `ForwardEnd`."""

    def __init__(self, address: Address, partitions: Partitions) -> None:
        self.name = address.name
        self._address = address
        self._partitions = partitions
        self._connection: NatsConnection | None = None
        self._opening = asyncio.Lock()
        self._counts: dict[str, int] = {}
        """The number of partitions of each queue, as long as the connection lives."""

    async def publish(
        self, queue: str, messages: Sequence[AsyncMessage], *, origin: str | None = None
    ) -> dict[str, str]:
        """Publish messages. Return the ids of those that can never be published. See `ForwardEnd.publish`."""
        if origin is not None:
            raise NoResults
        async with self._opening:
            connection = await self._open()
        names = Names(self._address.stream, queue)
        if queue not in self._counts:
            self._counts[queue] = await Records(connection, names).count(self._partitions.count, default=1)
        subjects = {
            m.id: names.subject(partition_of(m.id if m.group is None else m.group, self._counts[queue]))
            for m in messages
        }
        refused, left = self._too_large(connection, messages)
        known = await self._send(connection, left, subjects, refused, known_elsewhere=False)
        again = []
        for message, seq in known:
            reason = await self._compare(connection, message, subjects[message.id], seq)
            if reason is None:
                again.append(message)
            elif reason:
                refused[message.id] = reason
        if again:
            await self._send(connection, again, subjects, refused, known_elsewhere=True)
        return refused

    async def close(self) -> None:
        """Close the connection. The next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> NatsConnection:
        if self._connection is not None and self._connection.is_lost:
            await self.close()
        if self._connection is None:
            connection = NatsConnection(self._address)
            try:
                await connection.open()
                await open_stream(connection, remembers=None)
            except BaseException:
                await connection.close()
                raise
            self._connection, self._counts = connection, {}
        return self._connection

    def _too_large(
        self, connection: NatsConnection, messages: Sequence[AsyncMessage]
    ) -> tuple[dict[str, str], list[AsyncMessage]]:
        """Divide messages in those that the server would never take, with the reason, and the others."""
        refused: dict[str, str] = {}
        left = []
        for message in messages:
            headers = size_of(self._headers(message))
            if headers > MAX_HEADERS:
                refused[message.id] = f"its headers have {headers:,} bytes; a server of NATS takes {MAX_HEADERS:,}"
            elif (size := headers + len(message.body)) > connection.max_payload:
                refused[message.id] = (
                    f"it has {size:,} bytes with its headers, and {self.name} takes {connection.max_payload:,} "
                    "(max_payload)"
                )
            else:
                left.append(message)
        return refused, left

    async def _send(
        self,
        connection: NatsConnection,
        messages: Sequence[AsyncMessage],
        subjects: dict[str, str],
        refused: dict[str, str],
        *,
        known_elsewhere: bool,
    ) -> list[tuple[AsyncMessage, int]]:
        """Publish messages. Return those that the server has by their id, and their places in the stream.

        Add to ``refused`` what the server never takes. Raises `StorageFull` or `StorageFailed`.
        """
        sendings = [
            Sending(subjects[message.id], message.body, self._headers(message, known_elsewhere=known_elsewhere))
            for message in messages
        ]
        answers = [answer for part in _parts(sendings) for answer in await connection.ask_all(part)]
        known = []
        for message, answer in zip(messages, answers, strict=True):
            if "error" in answer:
                number, text = number_of(answer), f"{self.name}: {text_of(answer)}"
                if number not in OF_A_MESSAGE:
                    raise StorageFull(text) if number in FULL else StorageFailed(text)
                refused[message.id] = text
            elif answer.get("duplicate"):
                known.append((message, int(answer["seq"])))
        return known

    def _headers(self, message: AsyncMessage, *, known_elsewhere: bool = False) -> dict[str, str]:
        """Return all headers that are sent. They are the longest where the message is not known elsewhere."""
        return {**headers_of(message, known_elsewhere=known_elsewhere), "Nats-Expected-Stream": self._address.stream}

    async def _compare(self, connection: NatsConnection, message: AsyncMessage, subject: str, seq: int) -> str | None:
        """Compare a message with that which the server has under its id.

        Return nothing if it is the same, the reason if it has other content, or None if it is of another queue or
        partition, where nobody takes it, or gone from the stream.
        """
        try:
            answer = await connection.api(f"STREAM.MSG.GET.{self._address.stream}", {"seq": seq})
        except ServerRefusal as refusal:
            if refusal.number == NO_MESSAGE:
                return None
            raise
        found: dict[str, Any] = answer["message"]
        headers = parse_headers(base64.b64decode(found.get("hdrs") or ""))
        if found.get("subject") != subject or id_of(headers) != message.id:
            return None
        if headers.get(DIGEST) and message.digest:
            same = headers[DIGEST] == message.digest
        else:
            body = base64.b64decode(found.get("data") or "")
            same = (body, headers.get(GROUP)) == (message.body, headers_of(message).get(GROUP))
        return "" if same else f"id_conflict: {self.name} has this id in {message.queue} with other content"


def _parts(sendings: Sequence[Sending]) -> Iterator[list[Sending]]:
    """Yield the messages in parts that a slow network carries in time."""
    part: list[Sending] = []
    size = 0
    for sending in sendings:
        size += len(sending.body)
        if part and size > PART_BYTES:
            yield part
            part, size = [], len(sending.body)
        part.append(sending)
    if part:
        yield part
