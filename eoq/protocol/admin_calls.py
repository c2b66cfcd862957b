"""The administrative requests of a client, and how their replies are read. Shared by both clients.

As in ``calls.py``, the docstring of a function that returns a `Call` says what the request does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..errors import EoqError, Forbidden, IdConflict, NotFound
from ..ids import new_id
from ..message import Outgoing, Sent, complete_headers, encode_payload
from .calls import Call, portions
from .codec import Fields, put_bytes
from .features import QueueOrder
from .limits import MAX_BATCH, POLL_SECONDS, QUEUES_PAGE
from .validation import check_finite, check_options, check_queue

SCHEDULES: Final[Call[list[Fields]]] = Call({"op": "schedules"}, lambda reply: list(reply["schedules"]))
ALL_QUEUES: Final[Call[list[Fields]]] = Call({"op": "queues"}, lambda reply: list(reply["queues"]))
"""Asks for all queues at once. A daemon of an earlier version knows no other way."""
ALL_METRICS: Final[Call[str]] = Call({"op": "metrics"}, lambda reply: str(reply["text"]))
"""Asks for all metrics at once, likewise."""
STATUS: Final[Call[Fields]] = Call({"op": "status"}, lambda reply: _without(reply, "rid", "ok"))
SHOWN_TOGETHER: Final = 8
"""How many queues are asked for a message at once: so few that the daemon goes on reading other requests of the client,
and that their replies fit into memory."""
MOVED_TOGETHER: Final = 10
"""How many dead letters one request may name, to redrive them to another queue."""
NOW: Final[Call[float | None]] = Call({"op": "status"}, lambda reply: reply.get("now"))
"""Asks for the time of the daemon's clock. A daemon of an earlier version gives none."""
TOPICS: Final[Call[list[Fields]]] = Call({"op": "topics"}, lambda reply: list(reply["bindings"]))


def _without(reply: Fields, *names: str) -> Fields:
    return {name: value for name, value in reply.items() if name not in names}


class QueuesPart(NamedTuple):
    """Queues by name, and whether there are more behind them."""

    queues: list[Fields]
    more: bool


def queues(after: str, prefix: str, limit: int | None) -> Call[QueuesPart]:
    """Ask for the next queues by name. Without a limit, for as many as are asked for at once."""
    fields: Fields = {"op": "queues", "after": after, "prefix": prefix}
    fields["limit"] = QUEUES_PAGE if limit is None else min(limit, MAX_BATCH)
    return Call(fields, lambda reply: QueuesPart(list(reply["queues"]), bool(reply["more"])))


def some_queues(rows: list[Fields], after: str, prefix: str, limit: int | None) -> list[Fields]:
    """Return what `queues` would ask for, of all queues of a daemon of an earlier version."""
    return [row for row in rows if row["name"] > after and row["name"].startswith(prefix)][:limit]


def overview(order: QueueOrder, contains: str, skip: int, limit: int) -> Call[Fields]:
    """Ask for the sums of all queues, and the first ones in an order."""
    fields: Fields = {"op": "overview", "order": order, "contains": contains, "skip": skip, "limit": limit}
    return Call(fields, lambda reply: _without(reply, "rid", "ok"))


class MetricsPart(NamedTuple):
    """A part of the metrics, and where the next one begins, if there is one."""

    text: str
    after: int | None


def metrics(after: int) -> Call[MetricsPart]:
    """Ask for a part of the metrics. The first one is behind 0."""
    return Call({"op": "metrics", "after": after}, lambda reply: MetricsPart(reply["text"], reply.get("after")))


class Changed(NamedTuple):
    """The dead letters that a request changed (``ids``), and the ids that were no dead letters (``missing``)."""

    ids: list[str]
    missing: list[str]


def peek(
    queue: str, state: str, limit: int, group: str | None, headers: Mapping[str, str] | None, contains: str | None
) -> Call[list[Fields]]:
    """Ask for the next messages of one state."""
    fields: Fields = {"op": "peek", "queue": check_queue(queue), "state": state, "limit": limit}
    filters = {"group": group, "headers": headers, "contains": contains}
    fields.update((name, value) for name, value in filters.items() if value is not None)
    return Call(fields, lambda reply: list(reply["messages"]))


def show(queue: str, id: str) -> Call[Fields]:
    """Ask for one message and its deliveries."""
    return Call({"op": "show", "queue": check_queue(queue), "id": id}, lambda reply: dict(reply["message"]))


@dataclass(frozen=True, slots=True)
class FoundMessage:
    """A message that was found by its id.

    ``state`` is that of the message, or how it has ended: ``done``, ``forwarded``, ``expired``, ``dropped`` or
    ``cancelled``. ``enqueued_at`` is when it was stored, in seconds since the epoch; of a message that has ended,
    only ``settled_at`` is known, which is otherwise None.
    """

    queue: str
    id: str
    state: str
    enqueued_at: float | None = None
    settled_at: float | None = None


def shows(queues: Sequence[str], id: str) -> Iterator[list[Fields]]:
    """Yield requests that ask each of ``queues`` for one message, in portions that are sent together."""
    for start in range(0, len(queues), SHOWN_TOGETHER):
        yield [show(queue, id).fields for queue in queues[start : start + SHOWN_TOGETHER]]


def read_found(replies: Iterable[Fields | EoqError], only_readable: bool) -> list[FoundMessage]:
    """Return the messages that are in the replies to such requests.

    Raises the error that a reply has, except `NotFound`, and with ``only_readable`` except `Forbidden`.
    """
    found = []
    for reply in replies:
        if isinstance(reply, EoqError):
            if isinstance(reply, NotFound) or (only_readable and isinstance(reply, Forbidden)):
                continue
            raise reply
        message = reply["message"]
        moments = message.get("enqueued_at"), message.get("settled_at")
        found.append(FoundMessage(message["queue"], message["id"], message["state"], *moments))
    return found


def named_queues(queues: str | Iterable[str]) -> list[str]:
    """Return each of ``queues`` once. A text is the name of one queue. Raises `InvalidRequest`."""
    return list(dict.fromkeys(map(check_queue, [queues] if isinstance(queues, str) else queues)))


def why(queue: str, id: str) -> Call[Fields]:
    """Ask why a message is not delivered now."""
    fields: Fields = {"op": "why", "queue": check_queue(queue), "id": id}
    return Call(fields, lambda reply: _without(reply, "rid", "ok"))


def tail(queue: str, after: int | None, last: int) -> Call[tuple[list[Fields], int]]:
    """Ask for the messages stored after the seq ``after``, or for the ``last`` ones.

    The value is the messages, and the ``after`` of the next request.
    """
    start: Fields = {"last": last} if after is None else {"after": after}
    # The first request is answered at once: a broken connection must not lose the seq from which to go on.
    wait = 0.0 if after is None else POLL_SECONDS
    fields = {"op": "tail", "queue": check_queue(queue), "wait": wait, **start}
    return Call(fields, lambda reply: (list(reply["messages"]), int(reply["after"])), wait)


def changes(op: str, queue: str) -> Call[bool]:
    """Pause or resume a queue. The value says whether that changed anything."""
    return Call({"op": op, "queue": check_queue(queue)}, lambda reply: bool(reply["changed"]))


class DeletedQueue(NamedTuple):
    """One step of the deletion of a queue: whether there was such a queue, and whether it is gone now."""

    existed: bool
    done: bool


def delete_queue(queue: str, forget_ids: bool) -> Call[DeletedQueue]:
    """Delete a queue, one step at a time."""
    fields: Fields = {"op": "delete_queue", "queue": check_queue(queue), "forget_ids": forget_ids}
    return Call(fields, lambda reply: DeletedQueue(bool(reply["existed"]), bool(reply["done"])))


class CancelledMessage(NamedTuple):
    """What became of a message that was cancelled.

    ``state`` is ``cancelled``; or ``leased``: a consumer has it, and learns it when it extends its lease; the message
    then ends as cancelled, unless it is acked. Otherwise it is how the message had ended before, and nothing changed.
    ``changed`` says whether this request changed anything, ``delivered`` whether the message may have taken effect.
    """

    state: str
    changed: bool
    delivered: bool


def cancel(queue: str, id: str) -> Call[CancelledMessage]:
    """Cancel a message."""
    fields: Fields = {"op": "cancel_message", "queue": check_queue(queue), "id": id}
    return Call(fields, lambda reply: CancelledMessage(reply["state"], reply["changed"], reply["delivered"]))


class EditedMessage(NamedTuple):
    """What became of a message that was edited: its ``state``, and whether it may have taken effect (``delivered``)."""

    state: str
    delivered: bool


def edit(
    queue: str, id: str, body: object, priority: int | None, delay: float | None, at: float | None
) -> Call[EditedMessage]:
    """Change a message. None leaves what it is for as it is."""
    check_finite("delay", delay)
    check_finite("at", at)
    changes: Fields = {"priority": priority, "delay": delay, "at": at}
    fields: Fields = {"op": "edit", "queue": check_queue(queue), "id": id}
    fields |= {name: value for name, value in changes.items() if value is not None}
    if body is not None:
        put_bytes(fields, "body", encode_payload(body)[0])
    return Call(fields, lambda reply: EditedMessage(reply["state"], reply["delivered"]))


def last_seq(queue: str) -> Call[int]:
    """Ask for the highest ``seq`` so far."""
    return Call({"op": "tail", "queue": check_queue(queue)}, lambda reply: int(reply["after"]))


def purge(queue: str, upto: int) -> Call[tuple[int, int | None]]:
    """Drop waiting messages up to a ``seq``, one step at a time. The value is how many, and the next ``upto``."""
    fields: Fields = {"op": "purge", "queue": check_queue(queue), "upto": upto}
    return Call(fields, lambda reply: (int(reply["count"]), reply.get("upto")))


class DeadStep(NamedTuple):
    """One step of a change of dead letters. ``after`` is where the next one starts, or None after the last.

    ``refused`` are the ids of those that stay, because the other queue has these ids with other content.
    """

    changed: Changed
    after: int | None
    refused: list[str]


def change_dead(
    op: str,
    queue: str,
    ids: Sequence[str] | None,
    failed_before: float | None,
    everything: bool,
    after: int,
    seen_at: float | None,
    to: str | None = None,
) -> Call[DeadStep]:
    """Redrive or drop dead letters, one step at a time. Those that failed after ``seen_at`` stay, if it is not None."""
    fields: Fields = {"op": op, "queue": check_queue(queue), "after": after}
    if ids is not None:
        fields["ids"] = list(ids)
    if failed_before is not None:
        check_finite("failed_before", failed_before)
        fields["failed_before"] = failed_before
    if everything:
        fields["all"] = True
    if seen_at is not None:
        fields["seen_at"] = seen_at
    if to is not None:
        fields["to"] = check_queue(to)
    return Call(fields, _read_dead_step)


def _read_dead_step(reply: Fields) -> DeadStep:
    return DeadStep(Changed(reply["ids"], reply["missing"]), reply.get("after"), reply.get("refused", []))


def refused_move(refused: Sequence[str], to: str | None) -> IdConflict:
    """Return the error for dead letters that could not be redriven to another queue."""
    return IdConflict(
        f"the others were redriven, but these dead letters stay, as the queue {to!r} has their ids with other content: "
        f"{', '.join(refused)}"
    )


def parts(ids: Sequence[str] | None, to: str | None = None) -> list[Sequence[str] | None]:
    """Return ``ids`` in parts that fit into one request, or one part that is None if ``ids`` is None.

    A request that stores messages in another queue (``to``) may have fewer, because their bodies count.
    """
    if ids is None:
        return [None]
    if to is None:
        return list(portions(ids))
    return [ids[start : start + MOVED_TOGETHER] for start in range(0, len(ids), MOVED_TOGETHER)]


def bind(topic: str, queue: str, headers: Mapping[str, str] | None) -> Call[None]:
    """Bind a queue to a topic."""
    fields: Fields = {"op": "bind", "topic": check_queue(topic), "queue": check_queue(queue)}
    if headers:
        fields["headers"] = dict(headers)
    return Call(fields, lambda _: None)


def unbind(topic: str, queue: str) -> Call[None]:
    """End a binding."""
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
    """Store a schedule. The value is the time of its next occurrence, in seconds since the epoch, or None."""
    check_finite("every", every)
    check_finite("at", at)
    check_options(message)
    body, is_json = encode_payload(message.body)
    headers = complete_headers(message, is_json)
    options = {"cron": cron, "timezone": timezone, "every": every, "at": at, "headers": headers or None}
    options |= {"priority": message.priority or None, "group": message.group, "ttl": message.ttl}
    fields: Fields = {"op": "schedule_add", "name": name, "queue": check_queue(queue), "catch_up": catch_up}
    fields |= {"replace": replace, **{key: value for key, value in options.items() if value is not None}}
    put_bytes(fields, "body", body)
    return Call(fields, lambda reply: reply["next_at"])


def unschedule(name: str) -> Call[None]:
    """End a schedule."""
    return Call({"op": "schedule_remove", "name": name}, lambda _: None)


def pause_schedule(name: str, paused: bool) -> Call[bool]:
    """Pause a schedule, or let it go on. The value says whether that changed anything."""
    op = "schedule_pause" if paused else "schedule_resume"
    return Call({"op": op, "name": name}, lambda reply: bool(reply["changed"]))


def run_schedule(name: str, id: str | None) -> Call[Sent]:
    """Send the message of a schedule now, under an id that is chosen here, so that a repeat stores it once."""
    fields: Fields = {"op": "schedule_run", "name": name, "id": f"{name}+{new_id()}" if id is None else id}
    return Call(fields, lambda reply: Sent(reply["id"], reply["duplicate"]))
