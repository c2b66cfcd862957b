"""What each client call asks, and what its reply means: shared by the blocking and the asyncio client.

A `Call` is a request's fields and the function that reads the reply. Ids are chosen here, before the first
try, so that a request whose reply was lost can be repeated without being stored twice.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import InvalidRequest, MessageTooLarge
from ..ids import new_id, new_ids
from ..message import JSON_TYPE, AsyncMessage, Delivery, Message, Outgoing, Result, Sent, encode_payload
from .codec import Fields, from_base64, get_bytes, put_bytes
from .limits import DEFAULT_LEASE, MAX_BATCH, MAX_BODY, MAX_ERROR, MAX_LINE
from .validation import check_name, check_options, check_queue

T = TypeVar("T")
M = TypeVar("M", Message, AsyncMessage)

BATCH_MESSAGES = 250
"""Messages in one request of `send_many`: enough that the commit no longer counts."""
BATCH_BYTES = 1024 * 1024
"""Bytes of bodies in one request of `send_many`, so that neither side holds much at once."""


class Call(NamedTuple, Generic[T]):
    """A request, how to read its reply, and the seconds the daemon may take by the request's own wish."""

    fields: Fields
    read: Callable[[Fields], T]
    wait: float = 0.0


def _nothing(_reply: Fields) -> None:
    return None


def shortened(requests: Sequence[Fields], wait: float) -> list[Fields]:
    """Requests that wait no longer than ``wait`` seconds, for when a part of their time is over."""
    return [{**fields, "wait": min(fields["wait"], wait)} if "wait" in fields else fields for fields in requests]


def portions(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """``items``, as many at a time as one request may have."""
    for start in range(0, len(items), MAX_BATCH):
        yield items[start : start + MAX_BATCH]


def _message_fields(item: object, make_id: Callable[[], str] = new_id) -> tuple[Fields, int]:
    """The fields of one message, its id chosen, and the bytes of its body. What is no `Outgoing` is a body."""
    message = item if isinstance(item, Outgoing) else None
    body, is_json = encode_payload(item if message is None else message.body)
    if len(body) > MAX_BODY:
        raise MessageTooLarge(
            f"the body has {len(body):,} bytes and {MAX_BODY:,} is the limit; store it elsewhere and send its name"
        )
    fields: Fields = {"id": make_id() if message is None or message.id is None else message.id}
    put_bytes(fields, "body", body)
    if is_json:
        fields["headers"] = {"content-type": JSON_TYPE}
    if message is not None:
        _add_options(fields, message)
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
    """One message."""
    fields, _ = _message_fields(message)
    fields["op"] = "send"
    fields["queue"] = check_queue(queue)
    return Call(fields, lambda reply: Sent(reply["id"], reply["duplicate"]))


def send_batches(queue: str, items: Iterable[object]) -> Iterable[Call[list[Sent]]]:
    """Many messages, as requests of bounded size; takes from ``items`` only what the next request needs."""
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
    def read(reply: Fields) -> list[Sent]:
        duplicates = set(reply["duplicates"])
        return [Sent(message["id"], index in duplicates) for index, message in enumerate(messages)]

    return Call({"op": "send_many", "queue": queue, "messages": messages}, read)


def receive(
    queue: str,
    kind: type[M],
    settler: Any,
    *,
    limit: int,
    wait: float,
    lease: float | None,
    bound: bool,
) -> Call[list[M]]:
    """Up to ``limit`` messages; ``settler`` is the client that settles them."""
    fields: Fields = {
        "op": "receive",
        "queue": check_queue(queue),
        "limit": limit,
        "wait": wait,
        "lease": DEFAULT_LEASE if lease is None else lease,
        "bound": bound,
    }

    # Not when the reply is read: the process may be stopped while the reply is in the socket.
    asked_at = time.time()

    def read(reply: Fields) -> list[M]:
        watermark = reply["watermark"]
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
                    settler=settler,
                )
            )
        return deliveries

    return Call(fields, read, wait)


def receipt_of(message: Delivery | str) -> str:
    """The receipt of a delivered message, or the receipt itself."""
    return message if isinstance(message, str) else message.receipt


def _ack_fields(message: Delivery | str, result: object) -> Fields:
    fields: Fields = {"receipt": receipt_of(message)}
    if result is not None:
        body, _ = encode_payload(result)
        if len(body) > MAX_BODY:
            raise MessageTooLarge(f"the result has {len(body):,} bytes and {MAX_BODY:,} is the limit")
        put_bytes(fields, "result", body)
    return fields


def settle(acks: Sequence[tuple[Delivery | str, object]], sends: Sequence[Outgoing]) -> Call[list[Sent]]:
    """Acks with their results, and messages to send: everything or nothing."""
    messages = []
    for message in sends:
        if message.queue is None:
            raise InvalidRequest("a message sent with an ack needs its queue: Outgoing(body, queue=…)")
        fields, _ = _message_fields(message)
        fields["queue"] = check_queue(message.queue)
        messages.append(fields)
    request: Fields = {"op": "settle", "acks": [_ack_fields(message, result) for message, result in acks]}
    if messages:
        request["send"] = messages

    def read(reply: Fields) -> list[Sent]:
        duplicates = set(reply["duplicates"])
        return [Sent(message["id"], index in duplicates) for index, message in enumerate(messages)]

    return Call(request, read)


def ack(message: Delivery | str, result: object, sends: Sequence[Outgoing]) -> Call[None]:
    """One ack, with its result and the messages that leave with it."""
    if sends:
        return Call(settle([(message, result)], sends).fields, _nothing)
    return Call({"op": "ack", **_ack_fields(message, result)}, _nothing)


def nack(message: Delivery | str, delay: float | None, error: str | None) -> Call[None]:
    """A message given back."""
    fields: Fields = {"op": "nack", "receipt": receipt_of(message)}
    if delay is not None:
        fields["delay"] = delay
    return Call(_with_error(fields, error), _nothing)


def reject(message: Delivery | str, error: str | None) -> Call[None]:
    """A message made a dead letter."""
    return Call(_with_error({"op": "reject", "receipt": receipt_of(message)}, error), _nothing)


def _with_error(fields: Fields, error: str | None) -> Fields:
    if error is not None:
        fields["error"] = error[:MAX_ERROR].encode(errors="replace").decode()
    return fields


def extend(message: Delivery | str, seconds: float) -> Call[None]:
    """A lease made to end later."""
    return Call({"op": "extend", "receipt": receipt_of(message), "seconds": seconds}, _nothing)


def release(receipts: Sequence[str]) -> Call[None]:
    """Messages given back that nobody has looked at: their delivery does not count as an attempt."""
    return Call({"op": "release", "receipts": list(receipts)}, _nothing)


def cancel(rid: int) -> Fields:
    """What tells the daemon that nobody waits for the reply to an earlier request, as fields."""
    return {"op": "cancel", "request": rid}


def give_back(reply: Fields) -> Fields | None:
    """What gives back the messages of a reply that nobody waits for, as fields; None where it delivered none."""
    messages = reply.get("messages", ())
    receipts = [message["receipt"] for message in messages if "receipt" in message]
    return release(receipts).fields if receipts else None


def result(queue: str, id: str, wait: float) -> Call[Result | None]:
    """How a message ended; None while it has not, or where it is not known."""

    def read(reply: Fields) -> Result | None:
        outcome = reply["outcome"]
        if outcome is None:
            return None
        body = get_bytes(reply.get("result"), reply.get("result_base64"), "result")
        return Result(outcome, body, reply.get("error"))

    return Call({"op": "result", "queue": check_queue(queue), "id": id, "wait": wait}, read, wait)


class OnceState(NamedTuple):
    """What the daemon says of a key: ``run`` (do it), ``running`` (another does), or ``done`` with what came of it."""

    state: str
    status: int = 0
    output: bytes | None = None
    output_bytes: int = 0


def once(key: str, token: str, fingerprint: str | None, wait: float) -> Call[OnceState]:
    """Takes a key of the dedup service, or waits for who has it."""
    check_name("key", key)
    fields: Fields = {"op": "once", "key": key, "token": token, "wait": wait}
    if fingerprint is not None:
        check_name("fingerprint", fingerprint)
        fields["fingerprint"] = fingerprint

    def read(reply: Fields) -> OnceState:
        if reply["state"] != "done":
            return OnceState(reply["state"])
        output = get_bytes(reply.get("output"), reply.get("output_base64"), "output")
        return OnceState("done", reply["status"], output, reply["output_bytes"])

    return Call(fields, read, wait)


def once_done(key: str, token: str, status: int, output: bytes | None, size: int, ttl: float | None) -> Call[None]:
    """What came of a key. ``output`` is None where it is too large to keep."""
    fields: Fields = {"op": "once_done", "key": key, "token": token, "status": status, "output_bytes": size}
    if output is not None and len(output) <= MAX_BODY:
        put_bytes(fields, "output", output)
    elif output is not None:
        # As text it could need six bytes a byte, more than a line may have.
        fields["output_base64"] = base64.b64encode(output).decode()
    if ttl is not None:
        fields["ttl"] = ttl
    return Call(fields, _nothing)


def once_release(key: str, token: str) -> Call[None]:
    """A key opened again."""
    return Call({"op": "once_release", "key": key, "token": token}, _nothing)


def look(op: str, **fields: Any) -> Call[Fields]:
    """A question about the daemon or a queue, answered with plain fields."""
    return Call({"op": op, **fields}, lambda reply: reply)


def too_long(line: bytes) -> MessageTooLarge:
    """The error for a request that the daemon would close the connection over."""
    return MessageTooLarge(f"the request has {len(line):,} bytes and {MAX_LINE:,} is the limit; send less in one")
