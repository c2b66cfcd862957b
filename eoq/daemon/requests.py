"""Requests as typed values. `decode` makes a request, with checked fields, from a line of the wire.

`request_values.py` makes from them the values that the daemon stores. `rules/rights.py` says which rights each request
needs.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta, Struct, field

from ..errors import InvalidRequest
from ..message import MAX_DELAY
from ..protocol.features import QueueOrder
from ..protocol.limits import DEFAULT_LEASE, MAX_BATCH, MAX_ID, MAX_QUEUE, MAX_TTL, QUEUE_NAMES, QUEUE_PATTERN
from ..protocol.validation import check_queue
from .request_fields import (
    ErrorText,
    FarResultItem,
    Handles,
    Id,
    LeaseSeconds,
    Limit,
    Moment,
    Priority,
    QueueName,
    Receipt,
    Rid,
    Seconds,
    Seq,
    Token,
    Wait,
)


class _Request(Struct, tag_field="op", forbid_unknown_fields=True, kw_only=True):
    rid: Rid = None


class _Content(Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields of a message."""

    body: str | None = None
    body_base64: str | None = None
    id: Id | None = None
    headers: dict[str, str] | None = None
    priority: Priority = 0
    group: Id | None = None
    delay: Seconds | None = None
    at: Moment | None = None
    ttl: Annotated[float, Meta(gt=0, le=MAX_TTL)] | None = None
    not_after: Moment | None = None


class Message(_Content, kw_only=True):
    """A message of `SendMany`."""


class AddressedMessage(_Content, kw_only=True):
    """A message of `Settle`, with its queue."""

    queue: QueueName


class Send(_Content, tag="send", tag_field="op", kw_only=True):
    # Not a `QueueName`: to match the pattern would take more than half of the time of decoding a send. `decode` checks
    # the name in a faster way. The length is checked here, so that no error repeats a text that is too long.
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
    handles: Handles | None = None


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
    forwarded: ErrorText | None = None
    awaits: bool = False


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


class Results(_Request, tag="results"):
    queue: QueueName
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_BATCH)]
    wait: Wait = 0.0


class TakeResults(_Request, tag="take_results"):
    queue: QueueName
    results: Annotated[list[FarResultItem], Meta(min_length=1, max_length=MAX_BATCH)]


class Once(_Request, tag="once"):
    key: Id
    token: Token
    fingerprint: Id | None = None
    wait: Wait = 0.0


class OnceDone(_Request, tag="once_done"):
    key: Id
    token: Token
    status: Annotated[int, Meta(ge=0, le=255)] = 0
    output: str | None = None
    output_base64: str | None = None
    output_bytes: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    ttl: Annotated[float, Meta(gt=0, le=MAX_TTL)] | None = None


class OnceRelease(_Request, tag="once_release"):
    key: Id
    token: Token


class Queues(_Request, tag="queues"):
    limit: Limit | None = None
    after: Annotated[str, Meta(max_length=MAX_QUEUE)] = ""
    prefix: Annotated[str, Meta(max_length=MAX_QUEUE)] = ""


class Overview(_Request, tag="overview"):
    order: QueueOrder = "name"
    contains: Annotated[str, Meta(max_length=MAX_QUEUE)] = ""
    skip: Annotated[int, Meta(ge=0, le=2**31)] = 0
    limit: Limit = 100


class Peek(_Request, tag="peek"):
    queue: QueueName
    limit: Limit = 10
    state: Literal[
        "ready", "delayed", "leased", "blocked", "dead", "done", "forwarded", "expired", "dropped", "cancelled"
    ] = "ready"
    group: Id | None = None
    headers: dict[str, str] | None = None
    contains: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None


class Tail(_Request, tag="tail"):
    queue: QueueName
    after: Seq | None = None
    last: Annotated[int, Meta(ge=0, le=MAX_BATCH)] = 0
    wait: Wait = 0.0


class Show(_Request, tag="show"):
    queue: QueueName
    id: Id


class Why(_Request, tag="why"):
    queue: QueueName
    id: Id


class Status(_Request, tag="status"):
    pass


class Metrics(_Request, tag="metrics"):
    after: Seq | None = None


class Pause(_Request, tag="pause"):
    queue: QueueName


class Resume(_Request, tag="resume"):
    queue: QueueName


class DeleteQueue(_Request, tag="delete_queue"):
    queue: QueueName
    forget_ids: bool = False


class Purge(_Request, tag="purge"):
    queue: QueueName
    upto: Seq | None = None


class CancelMessage(_Request, tag="cancel_message"):
    queue: QueueName
    id: Id


class Edit(_Request, tag="edit"):
    queue: QueueName
    id: Id
    body: str | None = None
    body_base64: str | None = None
    priority: Priority | None = None
    delay: Seconds | None = None
    at: Moment | None = None


class Redrive(_Request, tag="redrive"):
    queue: QueueName
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_BATCH)] | None = None
    failed_before: Moment | None = None
    all: bool = False
    seen_at: Moment | None = None
    after: Seq = 0
    to: QueueName | None = None


class Drop(_Request, tag="drop"):
    queue: QueueName
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_BATCH)] | None = None
    failed_before: Moment | None = None
    all: bool = False
    seen_at: Moment | None = None
    after: Seq = 0


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
    """A schedule as `ScheduleAdd` and the configuration file have it."""

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


class SchedulePause(_Request, tag="schedule_pause"):
    name: QueueName


class ScheduleResume(_Request, tag="schedule_resume"):
    name: QueueName


class ScheduleRun(_Request, tag="schedule_run"):
    name: QueueName
    id: Id | None = None


class ScheduleShow(_Request, tag="schedule_show"):
    name: QueueName


class Schedules(_Request, tag="schedules"):
    pass


_OfMessages: TypeAlias = Send | SendMany | Receive | Ack | Settle | Nack | Reject | Extend | Release | Cancel
_OfKeys: TypeAlias = Once | OnceDone | OnceRelease
_Queries: TypeAlias = (
    GetResult | Results | TakeResults | Queues | Overview | Peek | Show | Why | Status | Metrics | Tail
)
_OfQueues: TypeAlias = Pause | Resume | DeleteQueue | Purge | CancelMessage | Edit | Redrive | Drop
_OfTopics: TypeAlias = Bind | Unbind | Topics
_OfSchedules: TypeAlias = (
    ScheduleAdd | ScheduleRemove | SchedulePause | ScheduleResume | ScheduleRun | ScheduleShow | Schedules
)
Request: TypeAlias = _OfMessages | _OfKeys | _Queries | _OfQueues | _OfTopics | _OfSchedules
REQUESTS: Final[tuple[type[Struct], ...]] = get_args(Request)
"""All types of requests."""


class _Envelope(Struct):
    rid: Any = None


_request: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_envelope = msgspec.json.Decoder(_Envelope)
_encode_body: Final = msgspec.json.Encoder().encode
_MISNAMED: Final = re.compile(rf"Expected `str` matching regex {re.escape(repr(QUEUE_PATTERN))} - at (`.*`)")
"""The error text of msgspec for a text that is no `QueueName`, with its path in the request."""


def decode(line: bytes) -> Request:
    """Return the request of a line. Raises `InvalidRequest`, which says what is wrong and where."""
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
    """Return the ``rid`` of a line that is no valid request, so that its error can be paired. None if it has none."""
    try:
        rid = _envelope.decode(line).rid
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return rid if isinstance(rid, int | str) and not isinstance(rid, bool) else None


def encode(reply: dict[str, object]) -> bytes:
    """Return a reply as one line."""
    return _encode_body(reply) + b"\n"
