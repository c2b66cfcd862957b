"""What each client call asks, and what its reply means: shared by the blocking and the asyncio client.

A `Call` is a request's fields and the function that reads the reply. Ids are chosen here, before the first
try, so that a request whose reply was lost can be repeated without being stored twice.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import InvalidRequest, MessageTooLarge
from ..ids import new_id, new_ids
from ..message import JSON_TYPE, AsyncMessage, Delivery, Message, Outgoing, Result, Sent, encode_payload
from .codec import (
    DEFAULT_LEASE,
    MAX_BATCH,
    MAX_BODY,
    MAX_DELAY,
    MAX_ERROR,
    MAX_ID,
    MAX_LINE,
    MAX_PRIORITY,
    MAX_TTL,
    Fields,
    check_queue,
    get_bytes,
    put_bytes,
)

T = TypeVar("T")
M = TypeVar("M", Message, AsyncMessage)

BATCH_MESSAGES = 250
"""Messages in one request of `send_many`: enough that the commit no longer counts."""
BATCH_BYTES = 1024 * 1024
"""Bytes of bodies in one request of `send_many`, so that neither side holds much at once."""

SHORTEST_TTL = 0.001
"""Seconds to live of a message that came too late."""


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


def check_options(message: Outgoing) -> None:
    """Raises `InvalidRequest`, in words for people, where an option of a message is of no use to the daemon."""
    if message.id is not None:
        _check_name("id", message.id)
    if message.group is not None:
        _check_name("group", message.group)
    if message.headers is not None:
        _check_headers(message.headers)
    priority = message.priority
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(f"the priority is a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}, not {priority!r}")
    if message.delay is not None:
        _check_seconds("delay", message.delay, MAX_DELAY)
        if message.at is not None:
            raise InvalidRequest("give `delay` or `at`, not both")
    if message.at is not None:
        _check_seconds("at", message.at, 1e11)
    if message.ttl is not None:
        check_ttl(message.ttl)


def _check_headers(headers: object) -> None:
    if not (
        isinstance(headers, Mapping) and all(isinstance(text, str) for text in chain.from_iterable(headers.items()))
    ):
        raise InvalidRequest('headers are an object of texts: {"name": "value"}')
    try:
        "".join(chain.from_iterable(headers.items())).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the headers are not valid Unicode: {error}") from error


def _check_name(what: str, name: object) -> None:
    if not (isinstance(name, str) and 1 <= len(name) <= MAX_ID and name.isprintable()):
        raise InvalidRequest(f"the {what} {name!r} is not 1 to {MAX_ID} printable characters")


def _check_seconds(what: str, seconds: object, most: float) -> None:
    if not (isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= most):
        raise InvalidRequest(f"`{what}` is a number of seconds from 0 to {most:.0f}, not {seconds!r}")


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
    settler: object,
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

    # Not when the reply is read: the process may be stopped while it lies in its socket.
    asked_at = time.time()

    def read(reply: Fields) -> list[M]:
        shared: Fields = {
            "queue": queue,
            "priority": 0,
            "group": None,
            "watermark": reply["watermark"],
            "received_at": asked_at,
            "settler": settler,
        }
        deliveries = []
        for message in reply["messages"]:
            in_base64 = message.pop("body_base64", None)
            body = message["body"].encode() if in_base64 is None else get_bytes(None, in_base64, "body")
            deliveries.append(kind.of({**shared, "headers": {}, **message, "body": body}))
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
    _check_name("key", key)
    fields: Fields = {"op": "once", "key": key, "token": token, "wait": wait}
    if fingerprint is not None:
        _check_name("fingerprint", fingerprint)
        fields["fingerprint"] = fingerprint

    def read(reply: Fields) -> OnceState:
        if reply["state"] != "done":
            return OnceState(reply["state"])
        output = get_bytes(reply.get("output"), reply.get("output_base64"), "output")
        return OnceState("done", reply["status"], output, reply["output_bytes"])

    return Call(fields, read, wait)


def check_ttl(ttl: float | None) -> None:
    """Raises `InvalidRequest` where ``ttl`` is no number of seconds for something to be kept."""
    if ttl is not None and not (isinstance(ttl, int | float) and not isinstance(ttl, bool) and 0 < ttl <= MAX_TTL):
        raise InvalidRequest(f"`ttl` is a number of seconds above 0, {MAX_TTL:.0f} at most, not {ttl!r}")


def time_left(ttl: float, since: float) -> float:
    """The seconds left of a ``ttl`` that counts from ``since`` (seconds since the epoch).

    A message whose time is over is sent all the same, and expires at once: so its id is known, and its end.
    """
    return min(max(since + ttl - time.time(), SHORTEST_TTL), ttl)


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
