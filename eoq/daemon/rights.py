"""Rights: which queues each request touches, and what it must be allowed to do with them.

They are stated here, in one place, and not enforced yet: a client that may connect to the socket may do everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from . import requests as ask


class Right(StrEnum):
    """What a client may do with a queue or topic."""

    SEND = "send"
    """Send messages to it, and ask for their results."""
    RECEIVE = "receive"
    """Read its messages, lease them, and settle them."""
    ADMINISTER = "administer"
    """Pause and purge it, decide on its dead letters, and change its bindings and schedules."""


class Need(NamedTuple):
    """A right that a request needs: for a queue or topic, or for the queue of a receipt.

    Where neither is named, the request needs the right for all queues.
    """

    right: Right
    queue: str | None = None
    receipt: str | None = None


def needs(request: ask.Request) -> Sequence[Need]:
    """Return the rights that a request needs. Its client must have all of them."""
    return _NEEDS[type(request)](request)


def _nothing(_request: Any) -> list[Need]:
    """Return no rights: the request touches no queue, or only what its own connection has asked for."""
    return []


def _send(request: ask.Send | ask.SendMany | ask.GetResult) -> list[Need]:
    return [Need(Right.SEND, request.queue)]


def _receive(request: ask.Receive | ask.Peek | ask.Tail | ask.Show | ask.Why) -> list[Need]:
    return [Need(Right.RECEIVE, request.queue)]


def _finish(request: ask.Ack | ask.Nack | ask.Reject | ask.Extend) -> list[Need]:
    return [Need(Right.RECEIVE, receipt=request.receipt)]


def _release(request: ask.Release) -> list[Need]:
    return [Need(Right.RECEIVE, receipt=receipt) for receipt in request.receipts]


def _settle(request: ask.Settle) -> list[Need]:
    acks = [Need(Right.RECEIVE, receipt=ack.receipt) for ack in request.acks]
    return acks + [Need(Right.SEND, message.queue) for message in request.send]


def _administer(
    request: ask.Pause | ask.Resume | ask.DeleteQueue | ask.Purge | ask.Drop | ask.CancelMessage | ask.Edit,
) -> list[Need]:
    return [Need(Right.ADMINISTER, request.queue)]


def _redrive(request: ask.Redrive) -> list[Need]:
    needs = [Need(Right.ADMINISTER, request.queue)]
    return needs if request.to is None else [*needs, Need(Right.SEND, request.to)]


def _bind(request: ask.Bind | ask.Unbind) -> list[Need]:
    return [Need(Right.ADMINISTER, request.topic), Need(Right.ADMINISTER, request.queue)]


def _add_schedule(request: ask.ScheduleAdd) -> list[Need]:
    return [Need(Right.ADMINISTER, request.queue), Need(Right.SEND, request.queue)]


def _all(_request: Any) -> list[Need]:
    """Return a right for all queues: the request lists all of something, or names a schedule of any queue."""
    return [Need(Right.ADMINISTER)]


_NEEDS: Final[dict[type, Callable[[Any], list[Need]]]] = {
    ask.Send: _send,
    ask.SendMany: _send,
    ask.GetResult: _send,
    ask.Receive: _receive,
    ask.Peek: _receive,
    ask.Tail: _receive,
    ask.Show: _receive,
    ask.Why: _receive,
    ask.Ack: _finish,
    ask.Nack: _finish,
    ask.Reject: _finish,
    ask.Extend: _finish,
    ask.Release: _release,
    ask.Settle: _settle,
    ask.Cancel: _nothing,
    ask.Once: _nothing,
    ask.OnceDone: _nothing,
    ask.OnceRelease: _nothing,
    ask.Status: _nothing,
    ask.Pause: _administer,
    ask.Resume: _administer,
    ask.DeleteQueue: _administer,
    ask.Purge: _administer,
    ask.CancelMessage: _administer,
    ask.Edit: _administer,
    ask.Redrive: _redrive,
    ask.Drop: _administer,
    ask.Bind: _bind,
    ask.Unbind: _bind,
    ask.ScheduleAdd: _add_schedule,
    ask.ScheduleRemove: _all,
    ask.SchedulePause: _all,
    ask.ScheduleResume: _all,
    ask.ScheduleRun: _all,
    ask.ScheduleShow: _all,
    ask.Schedules: _all,
    ask.Queues: _all,
    ask.Metrics: _all,
    ask.Topics: _all,
}
