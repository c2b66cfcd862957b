"""What waits in a stream, which machine has which partition, and how an operator gives up those of a lost machine."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from ...errors import InvalidRequest, NotFound, StorageFailed
from ..engine import Holding, OpenRows
from .aside import count_by_partition
from .read import state_of
from .records import NO_STREAM, Record, Records, list_queues
from .wire.address import Address
from .wire.names import Names
from .wire.nats_connection import NatsConnection, ServerRefusal, open_connection

MOST: Final = 10_000


class StreamCounts:
    """What waits in the stream of an address, over a connection that is kept. See `OpenCounts`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._runner = asyncio.Runner()
        self._connection: NatsConnection | None = None

    def count(self, queue: str, owner: str | None) -> OpenRows:
        """Return what waits of a queue, in the partitions of ``owner`` or in all. See `OpenCounts.count`."""
        return self._runner.run(self._count(Names(self._address.stream, queue), owner))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._runner.run(self._connection.close())
            self._connection = None
        self._runner.close()

    async def _count(self, names: Names, owner: str | None) -> OpenRows:
        connection = await self._open()
        records = Records(connection, names)
        unread = held = 0
        for partition, record in enumerate(await records.read_all(await records.count(None, default=None))):
            if owner is None or (record is not None and owner in (record.name, record.identity)):
                waiting, read = await _waiting(connection, names, partition, record)
                unread, held = unread + waiting, held + read
        return OpenRows(min(unread, MOST), min(held, MOST))

    async def _open(self) -> NatsConnection:
        if self._connection is not None and self._connection.is_lost:
            await self._connection.close()
            self._connection = None
        if self._connection is None:
            connection = NatsConnection(self._address)
            try:
                await connection.open()
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection


async def _waiting(connection: NatsConnection, names: Names, partition: int, record: Record | None) -> tuple[int, int]:
    """Return how many messages of a partition were not read, and how many were read and not stored yet."""
    state = await state_of(connection, names, partition)
    if state is None:  # nobody has read it yet
        subject = names.subject(partition)
        try:
            answer = await connection.api(f"STREAM.INFO.{names.stream}", {"subjects_filter": subject})
        except ServerRefusal as refusal:
            if refusal.number == NO_STREAM:
                raise NotFound(f"there is no stream at {connection.name}; `eoq forward` makes it") from refusal
            raise
        return int((answer["state"].get("subjects") or {}).get(subject, 0)), 0
    return state.waiting, max(0, state.read - (record.read if record is not None else 0))


def list_claims(address: Address, queue: str | None) -> list[Holding]:
    """Return which machine has which partition, of one queue or of all."""
    return asyncio.run(_list_claims(address, queue))


async def _list_claims(address: Address, queue: str | None) -> list[Holding]:
    found = []
    async with open_connection(address) as connection:
        for one in [queue] if queue is not None else await list_queues(connection):
            names = Names(address.stream, one)
            records = Records(connection, names)
            aside = await count_by_partition(connection, names)
            for partition, record in enumerate(await records.read_all(await records.count(None, default=None))):
                unread, read = await _waiting(connection, names, partition, record)
                owner = None if record is None or record.given_up else record.name
                found.append(Holding(one, owner, unread + read, aside.get(partition, 0), None, None, partition))
    return found


def release_claims(address: Address, queue: str, owner: str) -> int:
    """Give up the partitions of a machine. Return how many messages other machines may take now.

    Raises `InvalidRequest` while that machine reads one of them, and `NotFound` if it has none.
    """
    return asyncio.run(_release_claims(address, queue, owner))


async def _release_claims(address: Address, queue: str, owner: str) -> int:
    async with open_connection(address) as connection:
        names = Names(address.stream, queue)
        records = Records(connection, names)
        own = [
            (partition, record)
            for partition, record in enumerate(await records.read_all(await records.count(None, default=None)))
            if record is not None and not record.given_up and owner in (record.name, record.identity)
        ]
        if not own:
            raise NotFound(f"{owner!r} has no partition of {queue!r} at {connection.name}")
        for partition, _ in own:
            state = await state_of(connection, names, partition)
            if state is not None and state.is_read:
                raise InvalidRequest(f"{owner!r} reads {queue!r} just now, so it is not lost; stop it first")
        waiting = 0
        for partition, record in own:
            unread, read = await _waiting(connection, names, partition, record)
            if not await records.write(partition, msgspec.structs.replace(record, given_up=True, instance="")):
                raise StorageFailed(f"{owner!r} has just taken messages of {queue!r}, so it is not lost; stop it first")
            waiting += unread + read
        return waiting
