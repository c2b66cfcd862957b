"""One partition of this machine: its claim, and how far it is read."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from ...errors import InvalidRequest
from .read import PartitionReader, Published, open_reader, state_of
from .records import NO_MESSAGE, PartitionTaken, Record, Records
from .stream import Stream
from .wire.content import id_of, parse_headers
from .wire.names import Names
from .wire.nats_connection import NatsConnection, ServerRefusal

log = logging.getLogger("eoq.bridge")

NOTE_SECONDS: Final = 3600.0
"""How often it is noted that nothing is missed, while nothing comes."""
LOOKS: Final = 6
LOOK_SECONDS: Final = 0.4
"""Between two looks whether another ingester reads. One that lives pauses for a moment between two fetches."""


class Partition:
    """A partition that belongs to this machine, as long as its record says so. See `claim`."""

    def __init__(self, records: Records, number: int, record: Record, reader: PartitionReader, stream: Stream) -> None:
        self.number = number
        self.made = stream.made
        """When its stream was made. See `Stream`."""
        self.reader = reader
        self._records = records
        self._record = record
        self._stream = stream

    async def taken(self, messages: Sequence[Published]) -> None:
        """Note that all of these, and those before, are stored here. Raises `PartitionTaken` if it was taken away."""
        last = messages[-1]
        await self._note(taken=last.seq, taken_id=id_of(last.headers) or "", read=last.number)

    async def idle(self) -> None:
        """Note now and then that there is nothing to take."""
        if time.time() - self._record.at > NOTE_SECONDS:
            await self._note()

    async def _note(self, **changes: int | str) -> None:
        _tell_gap(self._record, self._records.names, self.number, self._stream)
        record = msgspec.structs.replace(self._record, **changes, at=time.time())
        if not await self._records.write(self.number, record):
            raise PartitionTaken(
                f"partition {self.number} of {self._records.names.queue!r} was taken away from this ingester: by "
                "another one of this machine, or by `eoq ingest --release`"
            )
        self._record = record


async def claim(
    connection: NatsConnection,
    records: Records,
    number: int,
    stream: Stream,
    *,
    identity: str,
    name: str,
    instance: str,
) -> Partition:
    """Claim a partition for a daemon's file, and return it, to be read behind what that file has taken.

    Raises `PartitionTaken` if it belongs to another file, or another ingester of this one reads it, and
    `InvalidRequest` if the stream was restored from a backup and what is in it cannot be told from what was taken.
    """
    names = records.names
    while True:
        record = await records.read(number)
        if record is not None:
            await _check_free(connection, names, number, record, identity, instance)
        record = _own(record, identity, name)
        start = await _check_place(connection, names, number, stream, record)
        _tell_gap(record, names, number, stream)
        record = msgspec.structs.replace(record, instance=instance, taken=start, read=0, at=time.time())
        if await records.write(number, record):
            reader = await open_reader(connection, names, number, start + 1)
            return Partition(records, number, record, reader, stream)


def _own(record: Record | None, identity: str, name: str) -> Record:
    """Return the record as that of this machine."""
    if record is None:
        return Record(identity, name)
    since = record.since if record.identity == identity else record.taken
    return msgspec.structs.replace(record, identity=identity, name=name, since=since, given_up=False)


async def _check_free(
    connection: NatsConnection, names: Names, number: int, record: Record, identity: str, instance: str
) -> None:
    if record.identity != identity and not record.given_up:
        raise PartitionTaken(
            f"partition {number} of {names.queue!r} at {connection.name} belongs to {record.name!r}, whose daemon's "
            "file knows what it has stored; another machine would double messages. Take other partitions "
            f"(--partition), or, if that machine is lost, give its partitions up: `eoq ingest {names.queue} --release "
            f"{record.name}`"
        )
    if record.instance == instance or record.identity != identity:
        return
    was_read = True
    for _ in range(LOOKS):
        state = await state_of(connection, names, number)
        is_read = state is not None and state.is_read
        if state is None or not (is_read or was_read):
            return
        was_read = is_read
        await asyncio.sleep(LOOK_SECONDS)
    raise PartitionTaken(
        f"another `eoq ingest` of this daemon's file reads partition {number} of {names.queue!r} at {connection.name} "
        "just now; stop it first"
    )


async def _check_place(connection: NatsConnection, names: Names, number: int, stream: Stream, record: Record) -> int:
    """Return the place up to which messages are taken: that of the record, if the stream still has the same there."""
    if await _is_as_it_was(connection, names, stream, record):
        return record.taken
    if record.since:
        raise InvalidRequest(
            f"the stream of {connection.name} is not as it was when partition {number} of {names.queue!r} was read: it "
            "was restored or made anew. Another machine has read a part of it, so this one cannot tell what was taken. "
            "Move the queue to a new stream, and ingest what is in the old one by hand"
        )
    log.warning(
        "%s from %s: the stream is not as it was: it was restored, made anew, or has lost its end. Partition %d is "
        "read from the beginning; the daemon knows what it has stored",
        names.queue,
        connection.name,
        number,
    )
    return 0


async def _is_as_it_was(connection: NatsConnection, names: Names, stream: Stream, record: Record) -> bool:
    if not stream.first_seq <= record.taken <= stream.last_seq or not record.taken:
        return record.taken < max(stream.first_seq, 1)  # what is forgotten cannot be compared
    try:
        answer = await connection.api(f"STREAM.MSG.GET.{names.stream}", {"seq": record.taken})
    except ServerRefusal as refusal:
        if refusal.number == NO_MESSAGE:
            return True  # somebody has deleted this one
        raise
    headers = parse_headers(base64.b64decode(answer["message"].get("hdrs") or ""))
    if not record.taken_id and not (id_of(headers) or "").isascii():
        return True  # earlier versions of the driver give no headers where one is not ASCII
    return (id_of(headers) or "") == record.taken_id


def _tell_gap(record: Record, names: Names, number: int, stream: Stream) -> None:
    """Say in the log if this machine was away for so long that the stream may have forgotten messages."""
    away = time.time() - record.at
    if record.at and stream.max_age and away > stream.max_age:
        log.error(
            "%s: partition %d was not read for %.1f days, and the stream keeps messages for %.1f days: what was "
            "published before that is lost, unless there was nothing; `eoq show QUEUE ID` of the senders tells",
            names.queue,
            number,
            away / 86400,
            stream.max_age / 86400,
        )
