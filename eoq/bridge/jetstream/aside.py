"""Messages that this machine cannot store: they go to a stream of their own, with the reason, until somebody looks."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import quote

from ...errors import EoqError
from .read import Published
from .records import NO_STREAM
from .wire.content import MAX_HEADERS, PLAIN_ID, id_of, size_of
from .wire.names import Names
from .wire.nats_connection import NatsConnection, Sending, ServerRefusal

MAX_REASON: Final = 1000


async def set_aside(
    connection: NatsConnection, names: Names, partition: int, made: str, message: Published, error: EoqError
) -> None:
    """Copy a message to the stream of those that were set aside. The same message twice is there once.

    ``made`` is when its own stream was made: see `Stream`.

    Its headers are kept where they are text, and the whole of it where it fits with the reason.
    """
    reason = quote(" ".join(str(error).split())[:MAX_REASON], safe="".join(map(chr, range(32, 127))))
    own = {PLAIN_ID: quote((id_of(message.headers) or "")[:MAX_REASON]), "Eoq-Error": reason}
    kept = {name: value for name, value in message.headers.items() if _is_plain(name, value)}
    headers, body = {**kept, **own}, message.body
    if size_of(headers) > MAX_HEADERS or size_of(headers) + len(body) > connection.max_payload:
        headers, body = own, b""  # it stays in the first stream for a while
    await connection.ask(Sending(names.aside_subject(partition, made, message.seq), body, headers))


def _is_plain(name: str, value: str) -> bool:
    return (
        re.fullmatch("[A-Za-z0-9_-]+", name) is not None
        and not name.startswith("Nats-")
        and value.isascii()
        and value.isprintable()
    )


async def count_aside(connection: NatsConnection, names: Names, partitions: Collection[int]) -> int:
    """Return how many messages of these partitions are set aside."""
    counts = await count_by_partition(connection, names)
    return sum(counts.get(partition, 0) for partition in partitions)


async def count_by_partition(connection: NatsConnection, names: Names) -> dict[int, int]:
    """Return how many messages are set aside, by partition."""
    found: dict[int, int] = {}
    offset = 0
    while True:
        request = {"subjects_filter": f"{names.aside}.{names.token}.>", "offset": offset}
        try:
            answer = await connection.api(f"STREAM.INFO.{names.aside}", request)
        except ServerRefusal as refusal:
            if refusal.number == NO_STREAM:
                return found
            raise
        subjects = answer["state"].get("subjects") or {}
        for subject, count in subjects.items():
            partition = subject.rsplit(".", 2)[1]
            if partition.isdecimal():  # any program may have published there
                found[int(partition)] = found.get(int(partition), 0) + int(count)
        offset += len(subjects)
        if not subjects or offset >= int(answer.get("total") or 0):
            return found
