"""Which machine has which partition, and how far it has read: one record a partition, in a bucket of the server.

A record changes only where it is still as it was read (compare and set). So of two machines that want a partition at
the same moment, one gets it; and it belongs to that daemon's file, not for a time but until it is given up. A machine
that has lost its partition finds out when it next notes what it has taken.

The record notes what was taken after the daemon has stored it. If the ingester is killed between the two, or the record
is restored from a backup, messages are read again, and the daemon knows their ids.
"""

from __future__ import annotations

import base64
import time
from typing import Final

import msgspec

from ...errors import InvalidRequest, NotFound
from .wire.names import Names, Partitions, bucket_of
from .wire.nats_connection import NatsConnection, Sending, ServerRefusal

CHANGED_MEANWHILE: Final = (10071, 10164)
NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059


class PartitionTaken(InvalidRequest):
    """The partition belongs to another machine, or another ingester of this one reads it."""


class Record(msgspec.Struct, frozen=True):
    """The record of one partition."""

    identity: str
    """The identity of the daemon's file to which it belongs."""
    name: str
    """The name of that machine."""
    instance: str = ""
    """The ingester that has read it last: a new text at each start."""
    taken: int = 0
    """The place in the stream up to which all messages are stored in that daemon."""
    taken_id: str = ""
    """The id of the message at that place."""
    since: int = 0
    """Up to which place another machine had taken the messages."""
    read: int = 0
    """How many messages of its present reader were stored."""
    at: float = 0.0
    """When this was noted, in seconds since the epoch."""
    given_up: bool = False


class Records:
    """The records of one queue, over a connection."""

    def __init__(self, connection: NatsConnection, names: Names) -> None:
        self.names = names
        self._connection = connection
        self._numbers: dict[int, int] = {}
        """The revision of each record, as it was read or written last."""

    async def count(self, wanted: int | None, *, default: int | None) -> int:
        """Return the number of partitions, which never changes. Where it is not fixed yet, fix it.

        Raises `InvalidRequest` if it is another than ``wanted``, and `NotFound` if it is not fixed and there is neither
        ``wanted`` nor ``default``.
        """
        while True:
            text, number = await self._get(self.names.count_key)
            if text is None:
                count = wanted or default
                if count is None:
                    raise NotFound(
                        f"{self.names.queue!r} has no partitions at {self._connection.name} yet: start its forwarder "
                        "first, or say how many there are (--partitions)"
                    )
                if not await self._put(self.names.count_key, b"%d" % count, number):
                    continue
                return count
            if not (text.isdigit() and len(text) < 4 and int(text) > 0):
                raise InvalidRequest(f"the key {self.names.count_key} of the bucket {self.names.bucket} is no number")
            if wanted not in (None, int(text)):
                raise InvalidRequest(
                    f"{self.names.queue!r} has {int(text)} partitions at {self._connection.name}, and not {wanted}: "
                    "with another number its messages would go to other machines, and could be doubled. To have "
                    "another number, take another stream, and let this one run empty"
                )
            return int(text)

    async def read(self, partition: int) -> Record | None:
        """Return the record of a partition, or None. Raises `InvalidRequest` if it is not eoq's."""
        text, self._numbers[partition] = await self._get(self.names.owner_key(partition))
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=Record)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(
                f"the key {self.names.owner_key(partition)} of the bucket {self.names.bucket} is no record of eoq: "
                f"{error}"
            ) from error

    async def write(self, partition: int, record: Record) -> bool:
        """Write the record of a partition, unless it has changed since it was read. Return whether it was written."""
        text = msgspec.json.encode(msgspec.structs.replace(record, at=time.time()))
        number = await self._put(self.names.owner_key(partition), text, self._numbers[partition])
        if number:
            self._numbers[partition] = number
        return bool(number)

    async def read_all(self, count: int) -> list[Record | None]:
        """Return the records of all partitions."""
        return [await self.read(partition) for partition in range(count)]

    async def _get(self, key: str) -> tuple[bytes | None, int]:
        """Return the value of a key and its revision. It is asked of the leader, so it is not an old one."""
        bucket = self.names.bucket
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.KV_{bucket}", {"last_by_subj": f"$KV.{bucket}.{key}"})
        except ServerRefusal as refusal:
            if refusal.number in (NO_MESSAGE, NO_STREAM):
                return None, 0
            raise
        message = answer["message"]
        value = base64.b64decode(message.get("data") or "")
        return value or None, int(message["seq"])  # without a value it was deleted

    async def _put(self, key: str, value: bytes, number: int) -> int:
        """Write the value of a key whose revision is ``number``. Return its new revision, or 0 if it has changed."""
        expected = {"Nats-Expected-Last-Subject-Sequence": str(number)}
        try:
            answer = await self._connection.ask(Sending(f"$KV.{self.names.bucket}.{key}", value, expected))
        except ServerRefusal as refusal:
            if refusal.number in CHANGED_MEANWHILE:
                return 0
            raise
        return int(answer["seq"])


async def list_queues(connection: NatsConnection) -> list[str]:
    """Return the queues that have partitions in the stream of a connection."""
    bucket, found, offset = bucket_of(connection.address.stream), [], 0
    while True:
        request = {"subjects_filter": f"$KV.{bucket}.*.partitions", "offset": offset}
        try:
            answer = await connection.api(f"STREAM.INFO.KV_{bucket}", request)
        except ServerRefusal as refusal:
            if refusal.number == NO_STREAM:
                return []
            raise
        subjects = answer["state"].get("subjects") or {}
        found += [subject.rsplit(".", 2)[1].replace("=", ".") for subject in subjects]
        offset += len(subjects)
        if not subjects or offset >= int(answer.get("total") or 0):
            return sorted(found)


def check_own(partitions: Partitions, count: int) -> tuple[int, ...]:
    """Return the partitions of this machine: all, unless it says which. Raises `InvalidRequest`."""
    own = tuple(range(count)) if partitions.own is None else partitions.own
    if own[-1] >= count:
        raise InvalidRequest(f"there is no partition {own[-1]}: the queue has {count}, which count from 0")
    return own
