"""The lines of an export: what a daemon knows of its messages, as text that another daemon can import.

Each line is a JSON object with a ``type``. The first is ``export``, the last is ``end``, which says how many are
between them: a file that was cut off has none. Moments are seconds since the epoch.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ..errors import InvalidRequest, MessageTooLarge
from ..message import MAX_DELAY
from ..protocol.codec import get_bytes, put_bytes
from ..protocol.limits import MAX_BODY, MAX_ERROR, MAX_HEADERS, MAX_LINE, MAX_OUTPUT
from .measures import Counter
from .records import ScheduleRecord
from .request_fields import Id, Moment, Priority, QueueName
from .request_values import content_digest, content_of, new_schedule, require_printable
from .requests import Schedule
from .rules.topic_rules import check_headers

FORMAT: Final = 1
"""The version of the lines."""

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Reason = Annotated[str, Meta(max_length=2 * MAX_ERROR)]
Consumer = Annotated[str, Meta(max_length=MAX_ERROR)]
Times = Annotated[int, Meta(ge=0, le=2**31)]
Wait = Annotated[float, Meta(ge=-MAX_DELAY, le=1e11)]


class _Line(Struct, tag_field="type", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


class Export(_Line, tag="export", kw_only=True):
    """The first line. ``source`` is the identity of the file that the lines are of."""

    format: Literal[1]
    source: Annotated[str, Meta(max_length=100)]
    exported_at: Moment


class EndOfExport(_Line, tag="end", kw_only=True):
    """The last line: how many there are between it and the first."""

    lines: Annotated[int, Meta(ge=0)]


class Queue(_Line, tag="queue", kw_only=True):
    """A queue that is paused."""

    queue: QueueName
    paused: bool

    def __post_init__(self) -> None:
        """Raise `ValueError` for a queue that is not paused: an export has no line for it."""
        if not self.paused:
            raise ValueError("a queue that is not paused has no line")


class BindingLine(_Line, tag="binding", kw_only=True):
    """A queue that is bound to a topic."""

    topic: QueueName
    queue: QueueName
    headers: dict[str, str] = {}


class ScheduleLine(Schedule, tag="schedule", tag_field="type", omit_defaults=True, kw_only=True):
    """A schedule, and how far it has come."""

    origin: Literal["client", "config"] = "client"
    seen_at: Moment
    next_at: Annotated[int, Meta(ge=0, le=10**11)] | None = None
    last_at: Annotated[int, Meta(ge=0, le=10**11)] | None = None
    error: Reason | None = None
    paused: bool = False


class CountsLine(_Line, tag="counts", kw_only=True):
    """What was counted of a queue since its file was made; without a queue, of all that were deleted."""

    queue: QueueName | None = None
    counts: dict[Counter, Annotated[int, Meta(ge=0, le=2**53)]]


class Failure(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A delivery of a message that has failed."""

    delivery: Times
    failed_at: Moment
    delivered_at: Moment | None = None
    consumer: Consumer | None = None
    error: Reason | None = None


class _Known(_Line, kw_only=True):
    queue: QueueName
    id: Id
    digest: Digest | None = None
    """Of the content that was sent first. It is that of this content where it is missing."""
    failures: Annotated[list[Failure], Meta(max_length=100)] = []
    error: Reason | None = None


class LiveMessage(_Known, tag="message", kw_only=True):
    """A message that is not settled."""

    state: Literal["ready", "delayed", "blocked", "dead"] = "ready"
    body: str | None = None
    body_base64: str | None = None
    headers: dict[str, str] | None = None
    priority: Priority = 0
    group: Id | None = None
    enqueued_at: Moment
    due_at: Wait | None = None
    fixed: bool = False
    expires_at: Wait | None = None
    attempts: Times = 0
    deliveries: Times = 0
    delivered_at: Moment | None = None
    consumer: Consumer | None = None
    failed_at: Moment | None = None
    cancelled_at: Moment | None = None


class EndedMessage(_Known, tag="settled", kw_only=True):
    """The id of a message that is settled, with its outcome."""

    outcome: Literal["done", "expired", "dropped", "cancelled", "forwarded"]
    settled_at: Moment
    delivered: bool = False
    result: str | None = None
    result_base64: str | None = None
    far_outcome: Literal["awaited", "done", "forwarded", "dead", "expired", "dropped", "cancelled"] | None = None
    """Of a message that was forwarded: how it ended there, or that this is still to come back."""
    far_error: Reason | None = None


class Key(_Line, tag="key", kw_only=True):
    """A key of `once` that is done, with its output."""

    key: Id
    fingerprint: Id | None = None
    status: Annotated[int, Meta(ge=0, le=255)] = 0
    output: str | None = None
    output_base64: str | None = None
    output_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    expires_at: Wait | None = None


Setup: TypeAlias = Queue | BindingLine | ScheduleLine | CountsLine
"""What is known of queues beside their messages."""
Entry: TypeAlias = Setup | LiveMessage | EndedMessage | Key
Line: TypeAlias = Export | EndOfExport | Entry

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_encode: Final = msgspec.json.Encoder().encode


def decode_line(line: bytes) -> Line:
    """Return a line as a value. Raises `InvalidRequest` or `MessageTooLarge`, which says what is wrong with it."""
    if len(line) > MAX_LINE:
        raise MessageTooLarge(f"it has more than {MAX_LINE:,} bytes")
    try:
        value = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"it is no line of an export: {error}; correct it, or export again") from error
    except RecursionError as error:
        raise InvalidRequest("it is nested too deeply") from error
    if isinstance(value, LiveMessage | EndedMessage):
        require_printable("id", value.id)
    if isinstance(value, LiveMessage):
        _check_live(value)
    elif isinstance(value, BindingLine):
        check_headers(value.headers)
    elif isinstance(value, ScheduleLine):
        schedule_of(value)
    elif isinstance(value, EndedMessage):
        _check_ended(value)
    elif isinstance(value, Key):
        require_printable("key", value.key)
        if len(output_of(value) or b"") > MAX_OUTPUT:
            raise MessageTooLarge(f"its output has more than {MAX_OUTPUT:,} bytes")
    return value


def _check_live(value: LiveMessage) -> None:
    if len(body_of(value)) > MAX_BODY:
        raise MessageTooLarge(f"its body has more than {MAX_BODY:,} bytes")
    if len(headers_of(value) or "") > MAX_HEADERS:
        raise MessageTooLarge(f"its headers have more than {MAX_HEADERS:,} characters")
    if value.group is not None:
        require_printable("group", value.group)


def _check_ended(value: EndedMessage) -> None:
    if value.digest is None:
        raise InvalidRequest("a settled id needs `digest`, by which a repeated send is recognized")
    if len(result_of(value) or b"") > MAX_BODY:
        raise MessageTooLarge(f"its result has more than {MAX_BODY:,} bytes")
    if value.outcome != "forwarded" and (value.far_outcome is not None or value.far_error is not None):
        raise InvalidRequest("only a message that was forwarded has `far_outcome` and `far_error`; remove them")


def encode_line(line: Line) -> bytes:
    """Return a value as one line, without its line feed."""
    return _encode(line)


# ── bytes and text of the fields ────────────────────────────────────────────────────────────────────────────


def with_bytes(name: str, value: bytes | None) -> dict[str, Any]:
    """Return the fields that carry bytes: ``name`` for text in UTF-8, else ``name_base64``, also for long outputs."""
    fields: dict[str, Any] = {}
    if value is not None and len(value) > MAX_BODY:  # as text, each of its bytes may take six
        fields[f"{name}_base64"] = b64encode(value).decode()
    elif value is not None:
        put_bytes(fields, name, value)
    return fields


def body_of(line: LiveMessage) -> bytes:
    """Return the body of a message. Raises `InvalidRequest` without one."""
    body = get_bytes(line.body, line.body_base64, "body")
    if body is None:
        raise InvalidRequest("a message needs `body` or `body_base64`")
    return body


def result_of(line: EndedMessage) -> bytes | None:
    """Return the result of a settled message."""
    return get_bytes(line.result, line.result_base64, "result")


def output_of(line: Key) -> bytes | None:
    """Return the stored output of a key."""
    return get_bytes(line.output, line.output_base64, "output")


def headers_of(line: LiveMessage) -> str | None:
    """Return the headers of a message as they are stored."""
    if not line.headers:
        return None
    return json.dumps(line.headers, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def schedule_of(line: ScheduleLine) -> ScheduleRecord:
    """Return a schedule as it is stored. Raises `InvalidRequest` or `MessageTooLarge`."""
    definition, _ = new_schedule(line, line.seen_at)
    return ScheduleRecord(
        definition, line.origin, line.seen_at, line.next_at, line.last_at, line.error, int(line.paused), 0
    )


def schedule_line(schedule: ScheduleRecord) -> ScheduleLine:
    """Return the line of a schedule."""
    name, queue, timing, catch_up, _ = schedule.definition
    fields = {**content_of(schedule.definition), **timing._asdict(), "name": name, "queue": queue, "catch_up": catch_up}
    fields |= {"origin": schedule.origin, "seen_at": schedule.seen_at, "next_at": schedule.next_at}
    fields |= {"last_at": schedule.last_at, "error": schedule.error, "paused": bool(schedule.paused)}
    return msgspec.convert(fields, ScheduleLine)


def digest_of(line: LiveMessage | EndedMessage) -> bytes:
    """Return the digest of the content that was sent first."""
    if line.digest is not None:
        return bytes.fromhex(line.digest)
    assert isinstance(line, LiveMessage)  # noqa: S101 # `decode_line` refuses others
    return content_digest(body_of(line), line.headers, line.group)
