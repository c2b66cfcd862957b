"""The requests of a client, and how their replies are read: shared by the blocking and the asyncio client.

A `Call` is the fields of a request and the function that reads the reply. The docstring of a function that returns a
`Call` says what the request does. Ids are chosen here, before the first try. So a request whose reply was lost can be
repeated without storing a message twice.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from sys import modules
from typing import Any, Final, Generic, NamedTuple, TypeVar

from ..errors import EoqError, InvalidRequest, MessageTooLarge
from ..ids import new_id, new_ids
from ..message import JSON_TYPE, AsyncMessage, Delivery, Message, Outgoing, Result, Sent, encode_payload
from ..spans import API, with_context
from .codec import Fields, from_base64, get_bytes, put_bytes
from .limits import DEFAULT_LEASE, MAX_BATCH, MAX_BODY, MAX_ERROR
from .unsettled import PROCESSED, refuse_unsettled
from .validation import body_too_large, check_finite, check_name, check_options, check_queue

T = TypeVar("T")
M = TypeVar("M", Message, AsyncMessage)

BATCH_MESSAGES: Final = 250
"""Messages in one request of `send_many`: so many that the time of its commit no longer matters."""
BATCH_BYTES: Final = 1024 * 1024
"""Bytes of bodies in one request of `send_many`, so that neither side needs much memory."""


class Call(NamedTuple, Generic[T]):
    """A request: its ``fields``, and ``read``, which makes the value of the call from the fields of the reply.

    ``wait`` is how many seconds the daemon may wait before it replies.
    """

    fields: Fields
    read: Callable[[Fields], T]
    wait: float = 0.0


def _nothing(_reply: Fields) -> None:
    return None


def shortened(requests: Sequence[Fields], wait: float) -> list[Fields]:
    """Return the requests with waits of at most ``wait`` seconds, because a part of their time has passed."""
    return [{**fields, "wait": min(fields["wait"], wait)} if "wait" in fields else fields for fields in requests]


def portions(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield ``items`` in portions that fit into one request."""
    for start in range(0, len(items), MAX_BATCH):
        yield items[start : start + MAX_BATCH]


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────


def _message_fields(item: object, make_id: Callable[[], str] = new_id) -> tuple[Fields, int]:
    """Return the fields of a message, with an id, and the bytes of its body. ``item`` is an `Outgoing` or a body."""
    message = item if isinstance(item, Outgoing) else None
    body, is_json = encode_payload(item if message is None else message.body)
    if len(body) > MAX_BODY:
        raise body_too_large(len(body))
    fields: Fields = {"id": make_id() if message is None or message.id is None else message.id}
    put_bytes(fields, "body", body)
    if is_json:
        fields["headers"] = {"content-type": JSON_TYPE}
    if message is not None:
        _add_options(fields, message)
    if API in modules and (headers := with_context(fields.get("headers"))):
        fields["headers"] = headers
    return fields, len(body)


def _add_options(fields: Fields, message: Outgoing) -> None:
    check_options(message)
    if message.headers:
        fields["headers"] = {**fields.get("headers", {}), **message.headers}
    if message.priority:
        fields["priority"] = message.priority
    if message.group is not None:
        fields["group"] = message.group
    if message.delay is not None:
        fields["delay"] = message.delay
    if message.at is not None:
        fields["at"] = message.at
    if message.ttl is not None:
        fields["ttl"] = message.ttl


def send(queue: str, message: Outgoing) -> Call[Sent]:
    """Store one message."""
    fields, _ = _message_fields(message)
    fields["op"] = "send"
    fields["queue"] = check_queue(queue)
    return Call(fields, lambda reply: Sent(reply["id"], reply["duplicate"], reply.get("queues")))


def send_batches(queue: str, items: Iterable[object]) -> Iterator[Call[list[Sent]]]:
    """Yield requests of bounded size that store many messages. Read from ``items`` only what the next one needs."""
    check_queue(queue)
    make_id = new_ids().__next__
    batch: list[Fields] = []
    size = 0
    for item in items:
        fields, length = _message_fields(item, make_id)
        if isinstance(item, Outgoing) and item.queue not in (None, queue):
            raise InvalidRequest(
                f"a message for {item.queue!r} in a batch for {queue!r}: send it there, or in a transaction"
            )
        if batch and (len(batch) >= BATCH_MESSAGES or size + length > BATCH_BYTES):
            yield _send_batch(queue, batch)
            batch, size = [], 0
        batch.append(fields)
        size += length
    if batch:
        yield _send_batch(queue, batch)


def _send_batch(queue: str, messages: list[Fields]) -> Call[list[Sent]]:
    return Call({"op": "send_many", "queue": queue, "messages": messages}, lambda reply: _all_sent(messages, reply))


def _all_sent(messages: Sequence[Fields], reply: Fields) -> list[Sent]:
    duplicates = set(reply["duplicates"])
    if (queues := reply.get("queues")) is not None:
        return [Sent(message["id"], index in duplicates, queues[index]) for index, message in enumerate(messages)]
    return [Sent(message["id"], index in duplicates) for index, message in enumerate(messages)]


# ── receiving ───────────────────────────────────────────────────────────────────────────────────────────────


def receive(
    queue: str,
    kind: type[M],
    settler: Any,
    *,
    limit: int,
    wait: float,
    lease: float | None,
    bound: bool,
    handles: int | None = None,
) -> Call[list[M]]:
    """Lease up to ``limit`` messages. They are settled through ``settler``.

    ``handles`` says how many of them are handled at once, in their order. When the delivery ends without an ack, as
    many count an attempt. None is for all, and for a daemon that does not know the field.
    """
    check_finite("wait", wait)
    check_finite("lease", lease)
    fields: Fields = {
        "op": "receive",
        "queue": check_queue(queue),
        "limit": limit,
        "wait": wait,
        "lease": DEFAULT_LEASE if lease is None else lease,
        "bound": bound,
    }
    if handles is not None:
        fields["handles"] = handles

    asked_at = time.time()  # not when the reply is read: the process may be stopped while it is in the socket

    def read(reply: Fields) -> list[M]:
        watermark, source, retention = reply["watermark"], reply.get("source", ""), reply.get("retention")
        deliveries = []
        for message in reply["messages"]:
            get = message.get
            in_base64 = get("body_base64")
            body = message["body"].encode() if in_base64 is None else from_base64(in_base64, "body")
            deliveries.append(
                kind(
                    message["id"],
                    queue,
                    body,
                    message["receipt"],
                    message["attempt"],
                    get("headers") or {},
                    get("priority", 0),
                    get("group"),
                    message["enqueued_at"],
                    message["seq"],
                    watermark,
                    asked_at,
                    get("digest", ""),
                    source,
                    retention,
                    get("expires_at"),
                    settler=settler,
                )
            )
        return deliveries

    return Call(fields, read, wait)


def release(receipts: Sequence[str]) -> Call[None]:
    """Give back messages that no handler has seen. Their delivery does not count as an attempt."""
    return Call({"op": "release", "receipts": list(receipts)}, _nothing)


def cancel(rid: int) -> Fields:
    """Return the fields that tell the daemon not to answer an earlier request."""
    return {"op": "cancel", "request": rid}


def release_delivered(reply: Fields) -> Fields | None:
    """Return the fields that give back the messages of a reply that nothing waits for, or None if it has none."""
    messages = reply.get("messages", ())
    receipts = [message["receipt"] for message in messages if "receipt" in message]
    return release(receipts).fields if receipts else None


# ── settling ────────────────────────────────────────────────────────────────────────────────────────────────


def receipt_of(message: Delivery | str) -> str:
    """Return the receipt of a delivered message, or the receipt itself."""
    return message if isinstance(message, str) else message.receipt


def _to_settle(message: Delivery | str) -> str:
    receipt = receipt_of(message)
    if PROCESSED:
        refuse_unsettled(receipt)
    return receipt


def _ack_fields(message: Delivery | str, result: object) -> Fields:
    fields: Fields = {"receipt": _to_settle(message)}
    if result is not None:
        body, _ = encode_payload(result)
        if len(body) > MAX_BODY:
            raise MessageTooLarge(f"the result has {len(body):,} bytes and {MAX_BODY:,} is the limit")
        put_bytes(fields, "result", body)
    return fields


def settle(
    acks: Sequence[tuple[Delivery | str, object]], sends: Sequence[Outgoing], not_after: float | None = None
) -> Call[list[Sent]]:
    """Ack messages with their results and store others: all or nothing.

    ``not_after`` is until when the others may be stored, in seconds since the epoch.
    """
    messages = []
    for message in sends:
        if message.queue is None:
            raise InvalidRequest("a message sent with an ack needs its queue: Outgoing(body, queue=…)")
        fields, _ = _message_fields(message)
        fields["queue"] = check_queue(message.queue)
        if not_after is not None:
            fields["not_after"] = not_after
        messages.append(fields)
    request: Fields = {"op": "settle", "acks": [_ack_fields(message, result) for message, result in acks]}
    if messages:
        request["send"] = messages
    return Call(request, lambda reply: _all_sent(messages, reply))


def ack(message: Delivery | str, result: object, sends: Sequence[Outgoing]) -> Call[None]:
    """Ack one message, with its result and the messages that are stored in the same transaction."""
    if sends:
        return Call(settle([(message, result)], sends).fields, _nothing)
    return Call({"op": "ack", **_ack_fields(message, result)}, _nothing)


def nack(message: Delivery | str, delay: float | None, error: str | None) -> Call[None]:
    """Give a message back."""
    fields: Fields = {"op": "nack", "receipt": _to_settle(message)}
    if delay is not None:
        check_finite("delay", delay)
        fields["delay"] = delay
    return Call(_with_error(fields, error), _nothing)


def reject(message: Delivery | str, error: str | None) -> Call[None]:
    """Make a message a dead letter."""
    return Call(_with_error({"op": "reject", "receipt": _to_settle(message)}, error), _nothing)


def _with_error(fields: Fields, error: str | None) -> Fields:
    if error is not None:
        fields["error"] = error[:MAX_ERROR].encode(errors="replace").decode()
    return fields


def is_cancelled(reply: Fields) -> bool:
    """Return whether the reply to an `extend` says that the message was cancelled."""
    return bool(reply.get("cancelled", False))


def extend(message: Delivery | str, seconds: float) -> Call[bool]:
    """Let a lease end ``seconds`` from now. The value says whether the message was cancelled meanwhile."""
    check_finite("seconds", seconds)
    return Call({"op": "extend", "receipt": receipt_of(message), "seconds": seconds}, is_cancelled)


class Extended(NamedTuple):
    """The receipts of extended leases that had ended before, and of those whose messages were cancelled."""

    lost: set[str]
    cancelled: set[str]


def read_extended(receipts: Sequence[str], replies: Sequence[Fields | EoqError]) -> Extended:
    """Return what the replies to the requests `extend` say, one for each receipt."""
    extended = Extended(set(), set())
    for receipt, reply in zip(receipts, replies, strict=True):
        if isinstance(reply, EoqError):
            extended.lost.add(receipt)
        elif is_cancelled(reply):
            extended.cancelled.add(receipt)
    return extended


# ── results and queries ─────────────────────────────────────────────────────────────────────────────────────


def result(queue: str, id: str, wait: float) -> Call[Result | None]:
    """Ask how a message ended. The value is None while it has not ended, and where the daemon does not know it."""
    check_finite("wait", wait)

    def read(reply: Fields) -> Result | None:
        outcome = reply["outcome"]
        if outcome is None:
            return None
        body = get_bytes(reply.get("result"), reply.get("result_base64"), "result")
        return Result(outcome, body, reply.get("error"), reply.get("forwarded_to"))

    return Call({"op": "result", "queue": check_queue(queue), "id": id, "wait": wait}, read, wait)


def query(op: str, **fields: Any) -> Call[Fields]:
    """Make a request of PROTOCOL.md. The value is the plain fields of the reply."""
    for name, value in fields.items():
        check_finite(name, value)
    return Call({"op": op, **fields}, lambda reply: reply)


# ── the dedup service ───────────────────────────────────────────────────────────────────────────────────────


class OnceOutcome(NamedTuple):
    """How a key ended: its exit status, its output (None where it was too large to be kept) and the output's size."""

    status: int
    output: bytes | None
    output_bytes: int


class OnceState(NamedTuple):
    """The state of a key: ``run`` (this caller is to run), ``running`` (another one does), or ``done``, and how."""

    state: str
    outcome: OnceOutcome | None = None


def once(key: str, token: str, fingerprint: str | None, wait: float) -> Call[OnceState]:
    """Ask for a key of the dedup service, and wait up to ``wait`` seconds while another caller runs it."""
    check_name("key", key)
    check_finite("wait", wait)
    fields: Fields = {"op": "once", "key": key, "token": token, "wait": wait}
    if fingerprint is not None:
        check_name("fingerprint", fingerprint)
        fields["fingerprint"] = fingerprint

    def read(reply: Fields) -> OnceState:
        if reply["state"] != "done":
            return OnceState(reply["state"])
        output = get_bytes(reply.get("output"), reply.get("output_base64"), "output")
        return OnceState("done", OnceOutcome(reply["status"], output, reply["output_bytes"]))

    return Call(fields, read, wait)


def once_done(key: str, token: str, outcome: OnceOutcome, ttl: float | None) -> Call[None]:
    """Store how a key ended."""
    fields: Fields = {"op": "once_done", "key": key, "token": token, "status": outcome.status}
    fields["output_bytes"] = outcome.output_bytes
    if outcome.output is not None and len(outcome.output) <= MAX_BODY:
        put_bytes(fields, "output", outcome.output)
    elif outcome.output is not None:
        # As text it could need six bytes per byte, which is more than a line may have.
        fields["output_base64"] = base64.b64encode(outcome.output).decode()
    if ttl is not None:
        fields["ttl"] = ttl
    return Call(fields, _nothing)


def once_release(key: str, token: str) -> Call[None]:
    """Open a key again."""
    return Call({"op": "once_release", "key": key, "token": token}, _nothing)
