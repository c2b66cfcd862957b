"""What the blocking and the asyncio inbox share about the messages of a batch: acks, and errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeAlias, TypeVar

from ...errors import EoqError
from ...message import AsyncMessage, Delivery, Message
from ...protocol.calls import portions

M = TypeVar("M", Message, AsyncMessage)

Results: TypeAlias = list[bytes | Exception | None]
"""For each message of a batch its result, or the exception that its handler raised."""


def split(batch: Sequence[M], results: Results) -> tuple[list[tuple[M, bytes | None]], list[tuple[M, Exception]]]:
    """Return the messages to ack with their results, and the messages to give back with their errors."""
    acks: list[tuple[M, bytes | None]] = []
    failed: list[tuple[M, Exception]] = []
    for message, result in zip(batch, results, strict=True):
        if isinstance(result, Exception):
            failed.append((message, result))
        else:
            acks.append((message, result))
    return acks, failed


def ack_groups(acks: Sequence[tuple[M, bytes | None]]) -> Iterator[Sequence[tuple[M, bytes | None]]]:
    """Return the acks in groups: each of one client, and none larger than one request may be."""
    by_settler: dict[int, list[tuple[M, bytes | None]]] = {}
    for message, result in acks:
        by_settler.setdefault(id(message.settler), []).append((message, result))
    return chain.from_iterable(portions(group) for group in by_settler.values())


def note_not_given_back(error: Exception, message: Delivery, failure: EoqError) -> None:
    """Add a note to a handler's error: its message could not be given back. It is given back when its lease ends."""
    error.add_note(f"eoq: the message {message.id!r} could not be given back: {failure}")
