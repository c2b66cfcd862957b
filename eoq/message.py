"""Messages as Python values: a message to send, a confirmed send, a delivered message, and how a message ended.

A delivered message has a settler, which is its client or its worker. So a handler can settle the message itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias, TypedDict

from .errors import InvalidRequest

JSON_TYPE: Final = "application/json"
Payload: TypeAlias = (
    "bool | int | float | str | bytes | bytearray | memoryview | Mapping[Any, Any] | Sequence[Any] | None"
)
"""What a handler may return as the result of its message, as types say it. See `encode_payload`."""
MAX_DELAY: Final = 366 * 86400.0
"""Seconds by which a send or a retry may delay a message, at most."""


def encode_payload(value: object) -> tuple[bytes, bool]:
    """Return a body or a result as bytes, and whether it was written as JSON.

    Bytes stay as they are, ``str`` becomes UTF-8, and everything else becomes JSON. Raises `InvalidRequest` for a value
    that JSON cannot express.
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


class MessageOptions(TypedDict, total=False):
    """The options that a send and a schedule have in common.

    ``headers``: texts by name, at most 64 KiB as JSON. A body that was written as JSON gets the header
    ``content-type: application/json``, unless the caller gives another.
    ``priority``: a whole number, 0 by default. Messages with a higher one are delivered first.
    ``group``: 1 to 200 printable characters. Messages of one group are delivered one at a time, in order.
    ``ttl``: seconds. A message that was not delivered by then expires.
    """

    headers: Mapping[str, str] | None
    priority: int
    group: str | None
    ttl: float | None


class SendOptions(MessageOptions, total=False):
    """The options of every ``send``: of a client, a transaction, an outbox and a spool.

    A function that takes them as ``**options: Unpack[SendOptions]`` makes the message with
    ``Outgoing(body, queue=queue, **options)``. They are those of `MessageOptions` and:

    ``id``: the idempotency key, 1 to 200 printable characters. By default a new UUIDv7.
    ``delay``: seconds from now, up to 366 days, before which the message is not delivered.
    ``at``: the same as a time, in seconds since the epoch. Give ``delay`` or ``at``, not both.
    """

    id: str | None
    delay: float | None
    at: float | None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to be sent.

    ``body`` is bytes, text, or anything that JSON can express. ``queue`` may be left out where the call names one. The
    other fields are the options of a send:

    - ``id`` is the idempotency key: 1 to 200 printable characters. By default it is a new UUIDv7.
    - ``headers`` are texts by name, at most 64 KiB as JSON.
    - ``priority`` is a whole number. Messages with a higher one are delivered first.
    - Messages of one ``group`` are delivered one at a time, in order.
    - ``delay`` is in seconds from now, ``at`` in seconds since the epoch: the message is not delivered earlier. Give
      one of them at most.
    - ``ttl`` is in seconds from now: a message that was not delivered by then expires.
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


def complete_headers(message: Outgoing, is_json: bool) -> dict[str, str]:
    """Return the headers of a message. Add the content type of JSON if ``is_json``, unless it has a type."""
    return {**({"content-type": JSON_TYPE} if is_json else {}), **(message.headers or {})}


@dataclass(frozen=True, slots=True)
class Sent:
    """A confirmed send: the message is on disk. ``duplicate`` is true if an earlier send had stored it already.

    ``queues`` is the number of queues to which a message for a topic went: 0 where no binding matches its headers, so
    that it is stored nowhere. It is None where the name is not that of a topic.
    """

    id: str
    duplicate: bool
    queues: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a message ended.

    ``outcome`` is ``done``; ``dead`` when the message was rejected or ran out of attempts; ``expired`` when its time to
    live ended; ``dropped`` when an operator or a full queue dropped it; ``cancelled``; or ``forwarded`` when it went
    elsewhere and no result comes back. Where one came back, ``outcome``, ``body`` and ``error`` are those from there.
    ``error`` is the reason, or where it went, if that is known; it is None for ``done``. ``body`` is the result that
    the ack stored, or None where it stored none. ``forwarded_to`` is where the message went, if it was forwarded.
    """

    outcome: str
    body: bytes | None = None
    error: str | None = None
    forwarded_to: str | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The result as text; empty if there is none. Raises `UnicodeDecodeError` where it is not UTF-8."""
        return (self.body or b"").decode()

    def json(self) -> Any:
        """Return the result read as JSON, or None if there is none. Raises `ValueError` where it is not JSON."""
        return json.loads(self.body or b"null")


@dataclass(slots=True)
class Delivery:
    """One delivery of a message, with all it carries.

    ``attempt`` counts the deliveries of the message from 1. ``receipt`` names this delivery; settling needs it. ``seq``
    is the message's position in the daemon's database, and ``watermark`` the lowest ``seq`` of the queue that is not
    settled yet. ``enqueued_at`` and ``received_at`` are in seconds since the epoch. ``received_at`` is when the client
    asked for messages: the delivery was made then or later. ``digest`` is the daemon's, of the content that was sent;
    ``source`` is the identity of the daemon's file, and ``retention`` that of the queue in seconds. ``expires_at`` is
    when its time to live ends, in seconds since the epoch, or None. A daemon of an earlier version sends none of these
    four. ``cancelled`` says whether the message was cancelled, as of the last extension of its lease. A handler may
    then stop. If it acks all the same, the ack counts.
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
    digest: str = ""
    source: str = ""
    retention: float | None = None
    expires_at: float | None = None
    cancelled: bool = field(default=False, compare=False)

    @property
    def text(self) -> str:
        """The body as UTF-8 text. Raises `UnicodeDecodeError` where the body is not UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """Return the body read as JSON. Raises `ValueError` where the body is not JSON."""
        return json.loads(self.body)


class Settler(Protocol):
    """What a `Message` needs to be settled. A client has it."""

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> None: ...
    def ack_many(self, acks: Sequence[tuple[Message, object]], /) -> None: ...
    def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> None: ...
    def reject(self, receipt: str, error: str | None = None, /) -> None: ...
    def release(self, receipt: str, /) -> None: ...
    def extend(self, receipt: str, seconds: float, /) -> bool: ...


class AsyncSettler(Protocol):
    """What an `AsyncMessage` needs to be settled. An asyncio client has it."""

    def ack(self, receipt: str, result: object = None, send: Iterable[Outgoing] = (), /) -> Awaitable[None]: ...
    def ack_many(self, acks: Sequence[tuple[AsyncMessage, object]], /) -> Awaitable[None]: ...
    def nack(self, receipt: str, delay: float | None = None, error: str | None = None, /) -> Awaitable[None]: ...
    def reject(self, receipt: str, error: str | None = None, /) -> Awaitable[None]: ...
    def release(self, receipt: str, /) -> Awaitable[None]: ...
    def extend(self, receipt: str, seconds: float, /) -> Awaitable[bool]: ...


@dataclass(slots=True, kw_only=True)
class Message(Delivery):
    """A delivered message. The consumer has a lease on it until the message is settled.

    Every method that settles or extends also raises `Unavailable` without a daemon, and `InvalidRequest` for an
    argument out of bounds.
    """

    settler: Settler = field(repr=False, compare=False)

    def ack(self, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        """Settle the message as done.

        The daemon stores its ``result`` and all messages of ``send`` in the same transaction: all or nothing. Raises
        `LeaseLost` if the lease has ended; then nothing was changed.
        """
        self.settler.ack(self.receipt, result, send)

    def nack(self, delay: float | None = None, error: str | None = None) -> None:
        """Give the message back, to be delivered again after ``delay`` seconds.

        Without a delay, the daemon waits a little longer after each attempt. ``error`` is kept with the message. Raises
        `LeaseLost`.
        """
        self.settler.nack(self.receipt, delay, error)

    def reject(self, error: str | None = None) -> None:
        """Make the message a dead letter: it is kept with ``error`` and not delivered again. Raises `LeaseLost`."""
        self.settler.reject(self.receipt, error)

    def release(self) -> None:
        """Give the message back as if it had not been delivered: at once, and without counting an attempt.

        For what is no fault of the message, such as a locked file. A lease that has ended is no error.
        """
        self.settler.release(self.receipt)

    def extend(self, seconds: float) -> None:
        """Let the lease end ``seconds`` from now. Raises `LeaseLost`. Afterwards ``cancelled`` is up to date."""
        self.cancelled = self.settler.extend(self.receipt, seconds)


@dataclass(slots=True, kw_only=True)
class AsyncMessage(Delivery):
    """A delivered message of an asyncio client. The consumer has a lease on it until the message is settled.

    Every method that settles or extends also raises `Unavailable` without a daemon, and `InvalidRequest` for an
    argument out of bounds.
    """

    settler: AsyncSettler = field(repr=False, compare=False)

    async def ack(self, result: object = None, send: Iterable[Outgoing] = ()) -> None:
        """Settle the message as done.

        The daemon stores its ``result`` and all messages of ``send`` in the same transaction: all or nothing. Raises
        `LeaseLost` if the lease has ended; then nothing was changed.
        """
        await self.settler.ack(self.receipt, result, send)

    async def nack(self, delay: float | None = None, error: str | None = None) -> None:
        """Give the message back, to be delivered again after ``delay`` seconds.

        Without a delay, the daemon waits a little longer after each attempt. ``error`` is kept with the message. Raises
        `LeaseLost`.
        """
        await self.settler.nack(self.receipt, delay, error)

    async def reject(self, error: str | None = None) -> None:
        """Make the message a dead letter: it is kept with ``error`` and not delivered again. Raises `LeaseLost`."""
        await self.settler.reject(self.receipt, error)

    async def release(self) -> None:
        """Give the message back as if it had not been delivered: at once, and without counting an attempt.

        For what is no fault of the message, such as a locked file. A lease that has ended is no error.
        """
        await self.settler.release(self.receipt)

    async def extend(self, seconds: float) -> None:
        """Let the lease end ``seconds`` from now. Raises `LeaseLost`. Afterwards ``cancelled`` is up to date."""
        self.cancelled = await self.settler.extend(self.receipt, seconds)
