"""What each administrative call asks, and what its reply means: shared by the blocking and the asyncio client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..message import JSON_TYPE, Outgoing, encode_payload
from .calls import Call
from .codec import Fields, put_bytes
from .limits import MAX_BATCH
from .validation import check_options, check_queue

TAIL_SECONDS = 20.0
"""How long one request of `tail` waits."""


class Changed(NamedTuple):
    """What became of dead letters: ``ids`` are those that were changed, ``missing`` those that were none."""

    ids: list[str]
    missing: list[str]


def peek(
    queue: str, state: str, limit: int, group: str | None, headers: Mapping[str, str] | None, contains: str | None
) -> Call[list[Fields]]:
    fields: Fields = {"op": "peek", "queue": check_queue(queue), "state": state, "limit": limit}
    given = {"group": group, "headers": headers, "contains": contains}
    fields.update((name, value) for name, value in given.items() if value is not None)
    return Call(fields, lambda reply: list(reply["messages"]))


def show(queue: str, id: str) -> Call[Fields]:
    return Call({"op": "show", "queue": check_queue(queue), "id": id}, lambda reply: dict(reply["message"]))


def tail(queue: str, after: int | None, last: int) -> Call[tuple[list[Fields], int]]:
    place: Fields = {"last": last} if after is None else {"after": after}
    # Without `after` it answers at once: the place to go on from must not be lost with a broken connection.
    wait = 0.0 if after is None else TAIL_SECONDS
    fields = {"op": "tail", "queue": check_queue(queue), "wait": wait, **place}
    return Call(fields, lambda reply: (list(reply["messages"]), int(reply["after"])), wait)


def changes(op: str, queue: str) -> Call[bool]:
    return Call({"op": op, "queue": check_queue(queue)}, lambda reply: bool(reply["changed"]))


def purge(queue: str, upto: int | None) -> Call[tuple[int, int | None]]:
    fields: Fields = {"op": "purge", "queue": check_queue(queue), "upto": upto}
    return Call(fields, lambda reply: (int(reply["count"]), reply.get("upto")))


class DeadStep(NamedTuple):
    changed: Changed
    after: int | None


def change_dead(
    op: str, queue: str, ids: Sequence[str] | None, failed_before: float | None, everything: bool, after: int
) -> Call[DeadStep]:
    fields: Fields = {"op": op, "queue": check_queue(queue), "after": after}
    if ids is not None:
        fields["ids"] = list(ids)
    if failed_before is not None:
        fields["failed_before"] = failed_before
    if everything:
        fields["all"] = True
    return Call(fields, lambda reply: DeadStep(Changed(reply["ids"], reply["missing"]), reply.get("after")))


def parts(ids: Sequence[str] | None) -> list[Sequence[str] | None]:
    """As many ids as one request takes at a time; one part where none are given."""
    if ids is None:
        return [None]
    return [ids[start : start + MAX_BATCH] for start in range(0, len(ids), MAX_BATCH)]


def bind(topic: str, queue: str, headers: Mapping[str, str] | None) -> Call[None]:
    fields: Fields = {"op": "bind", "topic": check_queue(topic), "queue": check_queue(queue)}
    if headers:
        fields["headers"] = dict(headers)
    return Call(fields, lambda _: None)


def unbind(topic: str, queue: str) -> Call[None]:
    return Call({"op": "unbind", "topic": check_queue(topic), "queue": check_queue(queue)}, lambda _: None)


def schedule(
    name: str,
    queue: str,
    message: Outgoing,
    cron: str | None,
    timezone: str | None,
    every: int | None,
    at: float | None,
    catch_up: str,
    replace: bool,
) -> Call[float | None]:
    body, is_json = encode_payload(message.body)
    check_options(message)
    headers = {**({"content-type": JSON_TYPE} if is_json else {}), **(message.headers or {})}
    given = {"cron": cron, "timezone": timezone, "every": every, "at": at, "headers": headers or None}
    given |= {"priority": message.priority or None, "group": message.group, "ttl": message.ttl}
    fields: Fields = {"op": "schedule_add", "name": name, "queue": check_queue(queue), "catch_up": catch_up}
    fields |= {"replace": replace, **{key: value for key, value in given.items() if value is not None}}
    put_bytes(fields, "body", body)
    return Call(fields, lambda reply: reply["next_at"])


def unschedule(name: str) -> Call[None]:
    return Call({"op": "schedule_remove", "name": name}, lambda _: None)


SCHEDULES: Call[list[Fields]] = Call({"op": "schedules"}, lambda reply: list(reply["schedules"]))
QUEUES: Call[list[Fields]] = Call({"op": "queues"}, lambda reply: list(reply["queues"]))
TOPICS: Call[list[Fields]] = Call({"op": "topics"}, lambda reply: list(reply["bindings"]))
