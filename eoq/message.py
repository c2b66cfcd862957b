"""The nouns of eoq: what is sent, what was sent, what is delivered, and how it ended.

All are frozen values. A delivered message knows its client, so that it can be settled where it is handled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypedDict

from .errors import InvalidRequest

JSON_TYPE = "application/json"


def encode_payload(value: object) -> tuple[bytes, bool]:
    """A body or result as bytes, and whether it became JSON: bytes stay, ``str`` is UTF-8, the rest is JSON.

    Raises `InvalidRequest` for what is neither.
    """
    if isinstance(value, bytes):
        return value, False
    if isinstance(value, str):
        try:
            return value.encode(), False
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text is not valid Unicode: {error}; send bytes instead") from error
    if isinstance(value, bytearray | memoryview):
        return bytes(value), False
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode(), True
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{type(value).__name__} is neither bytes, text nor JSON: {error}; convert it before sending"
        ) from error


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to be sent.

    ``body`` is bytes, text, or anything JSON can hold. ``id`` is the idempotency key (1 to 200 printable
    characters; a UUIDv7 where it is None). ``queue`` may be left out where the call names one. A higher
    ``priority`` is delivered first. Messages of one ``group`` are delivered one at a time, in order.
    ``delay`` is in seconds from now, ``at`` in seconds since the epoch; give one of them at most. After ``ttl``
    seconds from now it is no longer delivered.
    """

    body: object
    id: str | None = None
    queue: str | None = None
    headers: Mapping[str, str] | None = None
    priority: int = 0
    group: str | None = None
    delay: float | None = None
    at: float | None = None
    ttl: float | None = None


class SendOptions(TypedDict, total=False):
    """The options of every ``send``, as `Outgoing` has them."""

    id: str | None
    headers: Mapping[str, str] | None
    priority: int
    group: str | None
    delay: float | None
    at: float | None
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Sent:
    """A confirmed send: the message is on disk. ``duplicate`` says that it already was, or had been."""

    id: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Result:
    """How a message ended.

    ``outcome`` is ``done``, or ``dead`` when it was rejected or ran out of attempts, ``expired`` when its time to live
    was over, ``dropped`` when a person or a full queue dropped it; then ``error`` says why.
    ``body`` is the result that the ack stored, None where it stored none.
    """

    outcome: str
    body: bytes | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        """The result as UTF-8 text; empty where there is none."""
        return (self.body or b"").decode()

    def json(self) -> Any:
        """The result read as JSON."""
        return json.loads(self.body or b"null")


@dataclass(frozen=True)
class Delivery:
    """One delivery of a message, with all it carries.

    ``attempt`` counts deliveries from 1. ``receipt`` names this delivery and is what settles it. ``seq`` is
    the message's place in the daemon's file, ``watermark`` the lowest place of the queue not settled yet.
    ``enqueued_at`` and ``received_at`` are in seconds since the epoch; the latter is when the request was made that
    brought it: it came at that moment or later.
    """

    id: str
    queue: str
    body: bytes
    receipt: str
    attempt: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    group: str | None = None
    enqueued_at: float = 0.0
    seq: int = 0
    watermark: int = 0
    received_at: float = field(default_factory=time.time, compare=False)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """The delivery that has these ``fields``, all of them, and keeps the dictionary.

        The ``__init__`` of a frozen class takes several times as long.
        """
        delivery = object.__new__(cls)
        object.__setattr__(delivery, "__dict__", fields)
        return delivery

    @property
    def text(self) -> str:
        """The body as UTF-8 text; raises `UnicodeDecodeError` where it is none."""
        return self.body.decode()

    def json(self) -> Any:
        """The body read as JSON; raises `ValueError` where it is none."""
        return json.loads(self.body)


class Settler(Protocol):
    """What a `Message` needs of its client."""

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = ()) -> None: ...
    def ack_many(self, acks: Sequence[tuple[Message, object]]) -> None: ...
    def nack(self, receipt: str, delay: float | None = None, error: str | None = None) -> None: ...
    def reject(self, receipt: str, error: str | None = None) -> None: ...
    def extend(self, receipt: str, seconds: float) -> None: ...


class AsyncSettler(Protocol):
    """What an `AsyncMessage` needs of its client."""

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = ()) -> Awaitable[None]: ...
    def ack_many(self, acks: Sequence[tuple[AsyncMessage, object]]) -> Awaitable[None]: ...
    def nack(self, receipt: str, delay: float | None = None, error: str | None = None) -> Awaitable[None]: ...
    def reject(self, receipt: str, error: str | None = None) -> Awaitable[None]: ...
    def extend(self, receipt: str, seconds: float) -> Awaitable[None]: ...


@dataclass(frozen=True, kw_only=True)
class Message(Delivery):
    """A delivered message, held under a lease until it is settled."""

    settler: Settler = field(repr=False, compare=False)

    def ack(self, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        """Settles the message as done.

        Its ``result`` and all messages of ``send`` are stored in the same transaction: all or nothing. Raises
        `LeaseLost` if the lease has ended; then nothing was changed.
        """
        self.settler.ack(self.receipt, result, send)

    def nack(self, delay: float | None = None, error: str | None = None) -> None:
        """Gives the message back, to be delivered again after ``delay`` seconds.

        Without a delay the daemon's waits between retries apply. Raises `LeaseLost`.
        """
        self.settler.nack(self.receipt, delay, error)

    def reject(self, error: str | None = None) -> None:
        """Makes the message a dead letter: it is kept with ``error``, not delivered. Raises `LeaseLost`."""
        self.settler.reject(self.receipt, error)

    def extend(self, seconds: float) -> None:
        """Lets the lease end ``seconds`` from now. Raises `LeaseLost`."""
        self.settler.extend(self.receipt, seconds)


@dataclass(frozen=True, kw_only=True)
class AsyncMessage(Delivery):
    """The asyncio twin of `Message`."""

    settler: AsyncSettler = field(repr=False, compare=False)

    async def ack(self, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        """See `Message.ack`."""
        await self.settler.ack(self.receipt, result, send)

    async def nack(self, delay: float | None = None, error: str | None = None) -> None:
        """See `Message.nack`."""
        await self.settler.nack(self.receipt, delay, error)

    async def reject(self, error: str | None = None) -> None:
        """See `Message.reject`."""
        await self.settler.reject(self.receipt, error)

    async def extend(self, seconds: float) -> None:
        """See `Message.extend`."""
        await self.settler.extend(self.receipt, seconds)
