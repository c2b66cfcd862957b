"""Requests as typed values: a line of the wire goes in, a request with every field checked comes out.

Behind this border nothing is checked again. The reply of each request is written by the broker.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from ..errors import InvalidRequest, MessageTooLarge
from ..ids import new_id
from ..protocol.codec import get_bytes, put_bytes
from ..protocol.limits import (
    DEFAULT_LEASE,
    MAX_BATCH,
    MAX_BODY,
    MAX_DELAY,
    MAX_ERROR,
    MAX_HEADERS,
    MAX_ID,
    MAX_LEASE,
    MAX_PRIORITY,
    MAX_QUEUE,
    MAX_TTL,
    MAX_WAIT,
    QUEUE_NAMES,
    QUEUE_PATTERN,
)
from ..protocol.validation import check_queue
from .records import NewMessage
from .schedule_rules import DEFAULT_ZONE, Definition, Timing, first_of, occurrence_id, rule_of

Rid: TypeAlias = int | str | None
QueueName = Annotated[str, Meta(pattern=QUEUE_PATTERN)]
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]
Receipt = Annotated[str, Meta(min_length=1, max_length=100)]
Limit = Annotated[int, Meta(ge=1, le=MAX_BATCH)]
Wait = Annotated[float, Meta(ge=0, le=MAX_WAIT)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_DELAY)]
LeaseSeconds = Annotated[float, Meta(gt=0, le=MAX_LEASE)]
Priority = Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
ErrorText = Annotated[str, Meta(max_length=MAX_ERROR)]
Moment = Annotated[float, Meta(ge=0, le=1e11)]
Place = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Request(Struct, tag_field="op", forbid_unknown_fields=True, kw_only=True):
    rid: Rid = None


class _Content(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a message consists of, wherever it stands."""

    body: str | None = None
    body_base64: str | None = None
    id: Id | None = None
    headers: dict[str, str] | None = None
    priority: Priority = 0
    group: Id | None = None
    delay: Seconds | None = None
    at: Moment | None = None
    ttl: Annotated[float, Meta(gt=0, le=MAX_TTL)] | None = None


class Message(_Content, kw_only=True):
    """A message of `SendMany`."""


class AddressedMessage(_Content, kw_only=True):
    """A message of `Settle`, with the queue it goes to."""

    queue: QueueName


class Send(_Content, tag="send", tag_field="op", kw_only=True):
    # Not a `QueueName`: to match the pattern would take more than half of decoding a send. `decode` checks it by a
    # quicker way, and what is too long is in no error's text.
    queue: Annotated[str, Meta(min_length=1, max_length=MAX_QUEUE)]
    rid: Rid = None


class SendMany(_Request, tag="send_many"):
    queue: QueueName
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_BATCH)]


class Receive(_Request, tag="receive"):
    queue: QueueName
    limit: Limit = 1
    wait: Wait = 0.0
    lease: LeaseSeconds = DEFAULT_LEASE
    bound: bool = False


class Ack(_Request, tag="ack"):
    receipt: Receipt
    result: str | None = None
    result_base64: str | None = None


class AckItem(Struct, forbid_unknown_fields=True):
    """One ack of `Settle`."""

    receipt: Receipt
    result: str | None = None
    result_base64: str | None = None


class Settle(_Request, tag="settle"):
    acks: Annotated[list[AckItem], Meta(max_length=MAX_BATCH)] = field(default_factory=list)
    send: Annotated[list[AddressedMessage], Meta(max_length=MAX_BATCH)] = field(default_factory=list)


class Nack(_Request, tag="nack"):
    receipt: Receipt
    delay: Seconds | None = None
    error: ErrorText | None = None


class Reject(_Request, tag="reject"):
    receipt: Receipt
    error: ErrorText | None = None


class Extend(_Request, tag="extend"):
    receipt: Receipt
    seconds: LeaseSeconds


class Release(_Request, tag="release"):
    receipts: Annotated[list[Receipt], Meta(min_length=1, max_length=MAX_BATCH)]


class Cancel(_Request, tag="cancel"):
    request: int | str


class GetResult(_Request, tag="result"):
    queue: QueueName
    id: Id
    wait: Wait = 0.0


class Once(_Request, tag="once"):
    key: Id
    token: Receipt
    fingerprint: Id | None = None
    wait: Wait = 0.0


class OnceDone(_Request, tag="once_done"):
    key: Id
    token: Receipt
    status: Annotated[int, Meta(ge=0, le=255)] = 0
    output: str | None = None
    output_base64: str | None = None
    output_bytes: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    ttl: Annotated[float, Meta(gt=0, le=MAX_TTL)] | None = None


class OnceRelease(_Request, tag="once_release"):
    key: Id
    token: Receipt


class Queues(_Request, tag="queues"):
    pass


class Peek(_Request, tag="peek"):
    queue: QueueName
    limit: Limit = 10
    state: Literal["ready", "delayed", "leased", "blocked", "dead", "done", "expired", "dropped"] = "ready"
    group: Id | None = None
    headers: dict[str, str] | None = None
    contains: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None


class Tail(_Request, tag="tail"):
    queue: QueueName
    after: Place | None = None
    last: Annotated[int, Meta(ge=0, le=MAX_BATCH)] = 0
    wait: Wait = 0.0


class Show(_Request, tag="show"):
    queue: QueueName
    id: Id


class Status(_Request, tag="status"):
    pass


class Pause(_Request, tag="pause"):
    queue: QueueName


class Resume(_Request, tag="resume"):
    queue: QueueName


class Purge(_Request, tag="purge"):
    queue: QueueName
    upto: Place | None = None


class Redrive(_Request, tag="redrive"):
    queue: QueueName
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_BATCH)] | None = None
    failed_before: Moment | None = None
    all: bool = False
    after: Place = 0


class Drop(_Request, tag="drop"):
    queue: QueueName
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_BATCH)] | None = None
    failed_before: Moment | None = None
    all: bool = False
    after: Place = 0


class Bind(_Request, tag="bind"):
    topic: QueueName
    queue: QueueName
    headers: dict[str, str] | None = None


class Unbind(_Request, tag="unbind"):
    topic: QueueName
    queue: QueueName


class Topics(_Request, tag="topics"):
    pass


Name = Annotated[
    str, Meta(pattern=QUEUE_PATTERN, description="a name of letters, digits and . _ -, with at most 128 characters")
]


class Schedule(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is sent when: of `ScheduleAdd`, and of the configuration file."""

    name: Name
    queue: Name
    cron: Annotated[str, Meta(max_length=200, description="a text of at most 200 characters")] | None = None
    timezone: Annotated[str, Meta(min_length=1, max_length=100, description="the name of a time zone")] | None = None
    every: Annotated[int, Meta(ge=1, le=int(MAX_DELAY))] | None = None
    at: Moment | None = None
    catch_up: Literal["last", "all", "none"] = "last"
    body: str | None = None
    body_base64: str | None = None
    headers: dict[str, str] | None = None
    priority: Priority = 0
    group: Id | None = None
    ttl: Annotated[float, Meta(gt=0, le=MAX_TTL)] | None = None


class ScheduleAdd(Schedule, tag="schedule_add", tag_field="op", kw_only=True):
    replace: bool = False
    rid: Rid = None


class ScheduleRemove(_Request, tag="schedule_remove"):
    name: QueueName


class ScheduleShow(_Request, tag="schedule_show"):
    name: QueueName


class Schedules(_Request, tag="schedules"):
    pass


Request: TypeAlias = (
    Send
    | SendMany
    | Receive
    | Ack
    | Settle
    | Nack
    | Reject
    | Extend
    | Release
    | Cancel
    | Once
    | OnceDone
    | OnceRelease
    | GetResult
    | Queues
    | Peek
    | Show
    | Status
    | Tail
    | Pause
    | Resume
    | Purge
    | Redrive
    | Drop
    | Bind
    | Unbind
    | Topics
    | ScheduleAdd
    | ScheduleRemove
    | ScheduleShow
    | Schedules
)


class _Envelope(Struct):
    rid: Any = None


_request: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_envelope = msgspec.json.Decoder(_Envelope)
_encode_body: Final = msgspec.json.Encoder().encode
_new_digest: Final = blake2b(digest_size=16).copy
_new_digest_of_more: Final = blake2b(digest_size=16, person=b"more than a body").copy
"""Of a message with headers or a group: no body is taken for a body and what follows it."""
_MISNAMED: Final = re.compile(rf"Expected `str` matching regex {re.escape(repr(QUEUE_PATTERN))} - at (`.*`)")
"""What msgspec says of a text that is no `QueueName`, and where it stands."""


def decode(line: bytes) -> Request:
    """The request on ``line``; raises `InvalidRequest`, which says what is wrong and where."""
    try:
        request = _request.decode(line)
    except msgspec.ValidationError as error:
        text = _MISNAMED.sub(rf"\1 is no queue name: {QUEUE_NAMES}", str(error))
        raise InvalidRequest(f"{text}; see PROTOCOL.md") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the line is not one JSON object in UTF-8: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the line is nested too deeply") from error
    if type(request) is Send:
        check_queue(request.queue)
    return request


def rid_of(line: bytes) -> Rid:
    """The ``rid`` of a line that is no valid request, so that its error can be paired; None if it has none."""
    try:
        rid = _envelope.decode(line).rid
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return rid if isinstance(rid, int | str) and not isinstance(rid, bool) else None


def encode(reply: dict[str, object]) -> bytes:
    """A reply as one line."""
    return _encode_body(reply) + b"\n"


def require_printable(what: str, text: str) -> None:
    """Raises `InvalidRequest` for what people could not read in a list."""
    if not text.isprintable():
        raise InvalidRequest(
            f"the {what} {text!r} has characters that cannot be printed; use 1 to {MAX_ID} printable ones"
        )


def new_message(queue: str, content: _Content, now: float, make_id: Any) -> NewMessage:
    """A message to store, from what the wire said of it; raises `InvalidRequest` or `MessageTooLarge`."""
    body = get_bytes(content.body, content.body_base64, "body")
    if body is None:
        raise InvalidRequest("a message needs `body` or `body_base64`")
    if len(body) > MAX_BODY:
        raise MessageTooLarge(
            f"the body has {len(body):,} bytes and {MAX_BODY:,} is the limit; store it elsewhere and send its name"
        )
    id = content.id
    if id is None:
        id = make_id()
    else:
        require_printable("id", id)
    headers = None
    if content.headers or content.group is not None:
        headers = _headers(content.headers)
        if content.group is not None:
            require_printable("group", content.group)
        digest = _new_digest_of_more()
        digest.update(json.dumps([len(body), headers, content.group]).encode())
    else:
        digest = _new_digest()
    digest.update(body)
    due_at = content.at
    fixed = due_at is not None
    if content.delay is not None:
        if due_at is not None:
            raise InvalidRequest("give `delay` or `at`, not both")
        due_at = now + content.delay
    expires_at = None if content.ttl is None else now + content.ttl
    return NewMessage(
        queue, id, body, digest.digest(), headers, content.priority, content.group, due_at, fixed, expires_at
    )


def new_schedule(schedule: Schedule, now: float) -> Definition:
    """A schedule to store, from what the wire or the configuration said of it.

    Raises `InvalidRequest` or `MessageTooLarge`, also where it has no occurrence after ``now``.
    """
    content: dict[str, Any] = {}
    put_bytes(content, "body", get_bytes(schedule.body, schedule.body_base64, "body") or b"")
    for name in ("headers", "priority", "group", "ttl"):
        if value := getattr(schedule, name):
            content[name] = value
    new_message(schedule.queue, msgspec.convert(content, Message), now, new_id)  # whose bounds are its own
    timing = Timing(
        None if schedule.cron is None else " ".join(schedule.cron.split()),
        DEFAULT_ZONE if schedule.cron is not None and schedule.timezone is None else schedule.timezone,
        schedule.every,
        None if schedule.at is None else int(schedule.at),
    )
    if rule_of(first_of(timing, now)).after(now) is None:
        raise InvalidRequest(f"{timing.cron!r} has no occurrence within the next 50 years")
    text = json.dumps(content, sort_keys=True)
    return Definition(schedule.name, schedule.queue, timing, schedule.catch_up, text)


def content_of(definition: Definition) -> dict[str, Any]:
    """What each message of a schedule has, as fields of the wire."""
    content: dict[str, Any] = json.loads(definition.content)
    return content


def scheduled_message(definition: Definition, at: int) -> NewMessage:
    """The message of a schedule's occurrence at that time."""
    content = msgspec.json.decode(definition.content, type=Message)
    return new_message(definition.queue, content, at, lambda: occurrence_id(definition.name, at))


def _headers(headers: dict[str, str] | None) -> str | None:
    if not headers:
        return None
    text = json.dumps(headers, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_HEADERS:
        raise MessageTooLarge(f"the headers have {len(text):,} characters and {MAX_HEADERS:,} is the limit")
    return text


def result_of(item: Ack | AckItem) -> bytes | None:
    """The result of an ack; raises `InvalidRequest` or `MessageTooLarge`."""
    if item.result is None and item.result_base64 is None:
        return None
    result = get_bytes(item.result, item.result_base64, "result")
    if result is not None and len(result) > MAX_BODY:
        raise MessageTooLarge(f"the result has {len(result):,} bytes and {MAX_BODY:,} is the limit")
    return result
