"""Read one partition in the order of the stream, from a given place on.

The consumer on the server only reads: nothing is acked there, and nothing is redelivered out of order. Where something
is missing, or the consumer is gone, the reader ends, and another begins at the place that the record of the partition
has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...errors import StorageFailed
from .wire.names import Names
from .wire.nats_connection import API, NatsConnection, Sending, ServerRefusal

if TYPE_CHECKING:
    from nats.aio.msg import Msg

BATCH_BYTES: Final = 1024 * 1024
"""Bytes of the messages of one fetch, unless it is one message."""
ANSWER_SECONDS: Final = 10.0
"""How long the end of a fetch may be late."""
NO_CONSUMER: Final = 10014
_END: Final = ("404", "408")
"""There are no messages, or no more in time."""


class Published(NamedTuple):
    """A message as it is in the stream: its place there, its number for this reader, and when it was published."""

    seq: int
    number: int
    at: float
    headers: dict[str, str]
    body: bytes


class PartitionReader:
    """The reader of one partition. See `open_reader`."""

    def __init__(self, connection: NatsConnection, names: Names, partition: int) -> None:
        self._connection = connection
        self._subject = f"{API}CONSUMER.MSG.NEXT.{names.stream}.{names.reader(partition)}"
        self._inbox = connection.new_inbox()
        self._fetch = 0
        """The number of the fetch whose messages are taken."""
        self._got: list[Published] = []
        self._wanted = 0
        self._last = 0
        """The number of the last message."""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._too_long = False

    async def begin(self) -> None:
        """Listen to what the server sends."""
        await self._connection.subscribe(f"{self._inbox}.*", self._take)

    async def fetch(self, limit: int, wait: float) -> Sequence[Published]:
        """Return the next messages, ``limit`` at most. If there is none, wait up to ``wait`` seconds for one.

        Raises `StorageFailed` if the reader has ended.
        """
        found = await self._pull(limit, wait, BATCH_BYTES)
        return await self._pull(1, 0.0, None) if not found and self._too_long else found

    async def _pull(self, limit: int, wait: float, most_bytes: int | None) -> Sequence[Published]:
        if self._ended.done() and self._ended.exception() is not None:
            self._ended.result()
        self._fetch += 1
        self._got, self._wanted, self._too_long = [], limit, False
        self._ended = asyncio.get_running_loop().create_future()
        request: dict[str, Any] = {"batch": limit}
        request |= {"expires": int(wait * 1e9)} if wait else {"no_wait": True}
        if most_bytes is not None:
            request["max_bytes"] = most_bytes
        await self._connection.publish(
            Sending(self._subject, json.dumps(request).encode()), f"{self._inbox}.{self._fetch}"
        )
        await self._connection.wait(self._ended, wait + ANSWER_SECONDS)
        return self._got

    async def _take(self, message: Msg) -> None:
        """Take a message, or the word that there are no more. The driver calls it."""
        headers = message.headers or {}
        if "Status" in headers and not message.reply:
            if message.subject.rpartition(".")[2] == str(self._fetch):
                self._end(str(headers["Status"]), str(headers.get("Description", "")))
            return
        meta = message.metadata
        if meta.sequence.consumer != self._last + 1:
            self._fail(f"message {self._last + 1} of the reader is missing")
            return
        self._last = meta.sequence.consumer
        at = meta.timestamp.timestamp()
        texts = {str(getattr(name, "value", name)): str(value) for name, value in headers.items()}
        self._got.append(Published(meta.sequence.stream, meta.sequence.consumer, at, texts, message.data))
        if len(self._got) == self._wanted and not self._ended.done():
            self._ended.set_result(None)

    def _end(self, status: str, description: str) -> None:
        if self._ended.done():
            return
        self._too_long = "MaxBytes" in description
        if status in _END or self._too_long or description == "Batch Completed":
            self._ended.set_result(None)
        else:
            self._fail(f"the reader was ended: {description.strip() or status}")

    def _fail(self, why: str) -> None:
        if self._ended.done():
            self._ended = asyncio.get_running_loop().create_future()
        self._ended.set_exception(StorageFailed(f"{self._connection.name}: {why}; it begins again"))
        self._ended.exception()  # it may never be waited for


async def open_reader(connection: NatsConnection, names: Names, partition: int, start: int) -> PartitionReader:
    """Return a reader of a partition that begins at the place ``start``. An earlier one ends."""
    name, subject = names.reader(partition), names.subject(partition)
    await delete_reader(connection, names, partition)
    config = {
        "name": name,
        "durable_name": name,
        "ack_policy": "none",
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": max(1, start),
        "filter_subject": subject,
    }
    request = {"stream_name": names.stream, "config": config}
    await connection.api(f"CONSUMER.CREATE.{names.stream}.{name}.{subject}", request)
    reader = PartitionReader(connection, names, partition)
    await reader.begin()
    return reader


async def delete_reader(connection: NatsConnection, names: Names, partition: int) -> None:
    """End the reader of a partition, if there is one."""
    with suppress(ServerRefusal):
        await connection.api(f"CONSUMER.DELETE.{names.stream}.{names.reader(partition)}")


class State(NamedTuple):
    """The reader of a partition, as the server sees it."""

    waiting: int
    """How many messages it has not read."""
    read: int
    """How many it has read."""
    is_read: bool
    """Whether somebody reads just now."""


async def state_of(connection: NatsConnection, names: Names, partition: int) -> State | None:
    """Return the state of the reader of a partition, or None if there is none."""
    try:
        info = await connection.api(f"CONSUMER.INFO.{names.stream}.{names.reader(partition)}")
    except ServerRefusal as refusal:
        if refusal.number == NO_CONSUMER:
            return None
        raise
    return State(int(info["num_pending"]), int(info["delivered"]["consumer_seq"]), bool(info.get("num_waiting")))
