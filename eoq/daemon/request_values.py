"""Values made of requests: the messages, results and schedules that the daemon stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec

from ..errors import InvalidRequest, MessageTooLarge, TooLate
from ..ids import new_id
from ..protocol.codec import get_bytes, put_bytes
from ..protocol.limits import MAX_BODY, MAX_HEADERS, MAX_ID
from ..protocol.validation import body_too_large, headers_too_large
from .records import NewMessage
from .requests import Ack, AckItem, AddressedMessage, Message, Schedule, Send
from .rules.schedule_rules import DEFAULT_ZONE, Definition, Timing, first_of, occurrence_id, rule_of

Content: TypeAlias = Send | Message | AddressedMessage
"""The requests, and parts of them, that have the fields of a message."""

TRACE_HEADERS: Final = frozenset(["traceparent", "tracestate", "baggage"])
"""Headers that follow a request through several programs. Each try has others, so they are no part of the content."""
_new_digest: Final = blake2b(digest_size=16).copy
_new_digest_of_more: Final = blake2b(digest_size=16, person=b"more than a body").copy
"""For a message with headers or a group, so that its digest is never that of another message's body."""


def require_printable(what: str, text: str) -> None:
    """Raise `InvalidRequest` for a text that could not be read in a list."""
    if not text.isprintable():
        raise InvalidRequest(
            f"the {what} {text!r} has characters that cannot be printed; use 1 to {MAX_ID} printable ones"
        )


def new_message(queue: str, content: Content, now: float, make_id: Callable[[], str]) -> NewMessage:
    """Return the message of a request, as it is to be stored. Raises `InvalidRequest`, `MessageTooLarge`, `TooLate`.

    ``make_id`` makes the id of a message without one.
    """
    if content.not_after is not None and now > content.not_after:
        raise TooLate(
            f"the message {content.id!r} for the queue {queue!r} was to be stored by {content.not_after:.3f}, and now "
            f"it is {now:.3f}: an earlier try may have stored it, and its id may be forgotten since. Find out whether "
            "it took effect before it is sent again"
        )
    body = get_bytes(content.body, content.body_base64, "body")
    if body is None:
        raise InvalidRequest("a message needs `body` or `body_base64`")
    if len(body) > MAX_BODY:
        raise body_too_large(len(body))
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
        digest = _digest_of_headers(headers, content.headers, content.group, len(body))
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


def new_schedule(schedule: Schedule, now: float) -> tuple[Definition, int]:
    """Return the definition of a schedule, as it is to be stored, and its first occurrence after ``now``.

    Raises `InvalidRequest` or `MessageTooLarge`. A schedule without such an occurrence is invalid too.
    """
    content: dict[str, Any] = {}
    put_bytes(content, "body", get_bytes(schedule.body, schedule.body_base64, "body") or b"")
    for name in ("headers", "priority", "group", "ttl"):
        if value := getattr(schedule, name):
            content[name] = value
    new_message(schedule.queue, msgspec.convert(content, Message), now, new_id)  # checks the bounds of a message
    timing = Timing(
        None if schedule.cron is None else " ".join(schedule.cron.split()),
        DEFAULT_ZONE if schedule.cron is not None and schedule.timezone is None else schedule.timezone,
        schedule.every,
        None if schedule.at is None else int(schedule.at),
    )
    first_at = rule_of(first_of(timing, now)).after(now)
    if first_at is None:
        raise InvalidRequest(f"{timing.cron!r} has no occurrence within the next 50 years")
    text = json.dumps(content, sort_keys=True)
    return Definition(schedule.name, schedule.queue, timing, schedule.catch_up, text), first_at


def content_of(definition: Definition) -> dict[str, Any]:
    """Return the content of each message of a schedule, as fields of the wire."""
    content: dict[str, Any] = json.loads(definition.content)
    return content


def scheduled_message(definition: Definition, at: int) -> NewMessage:
    """Return the message of one occurrence of a schedule. ``at`` is in seconds since the epoch."""
    content = msgspec.json.decode(definition.content, type=Message)
    return new_message(definition.queue, content, at, lambda: occurrence_id(definition.name, at))


def message_now(definition: Definition, now: float, id: str | None) -> NewMessage:
    """Return the message of a schedule as it is sent besides its occurrences, under ``id`` or a new one."""
    content = msgspec.json.decode(definition.content, type=Message)
    if id is not None:
        content = msgspec.structs.replace(content, id=id)
    return new_message(definition.queue, content, now, lambda: f"{definition.name}+{new_id()}")


def content_digest(body: bytes, headers: dict[str, str] | None, group: str | None) -> bytes:
    """Return the digest of a content, by which a repeated send is recognized. Raises `MessageTooLarge`."""
    digest = _digest_of_headers(_headers(headers), headers, group, len(body))
    digest.update(body)
    return digest.digest()


def _digest_of_headers(text: str | None, headers: dict[str, str] | None, group: str | None, size: int) -> blake2b:
    """Return the digest of a message up to its body. ``text`` is its headers as JSON; those of a trace are left out."""
    if headers and not TRACE_HEADERS.isdisjoint(headers):
        text = _headers({name: value for name, value in headers.items() if name not in TRACE_HEADERS})
    if text is None and group is None:
        return _new_digest()
    digest = _new_digest_of_more()
    digest.update(json.dumps([size, text, group]).encode())
    return digest


def _headers(headers: dict[str, str] | None) -> str | None:
    if not headers:
        return None
    text = json.dumps(headers, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_HEADERS:
        raise headers_too_large(len(text))
    return text


def result_of(item: Ack | AckItem) -> bytes | None:
    """Return the result of an ack. Raises `InvalidRequest` or `MessageTooLarge`."""
    if item.result is None and item.result_base64 is None:
        return None
    result = get_bytes(item.result, item.result_base64, "result")
    if result is not None and len(result) > MAX_BODY:
        raise MessageTooLarge(f"the result has {len(result):,} bytes and {MAX_BODY:,} is the limit")
    return result
