"""Rights: which queues each request touches, and what it must be allowed to do with them.

They are stated here, in one place. ``services/permissions.py`` says who has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from .. import requests as ask


class Right(StrEnum):
    """What a client may do with a queue or topic."""

    SEND = "send"
    """Send messages to it."""
    RECEIVE = "receive"
    """Read its messages and results, lease messages, and settle them."""
    ADMINISTER = "administer"
    """Pause and purge it, decide on its dead letters, and change its bindings and schedules."""
    ONCE = "once"
    """Run what has a key, and read its stored output."""
    OBSERVE = "observe"
    """See which queues and topics there are, and their counts."""


class Need(NamedTuple):
    """A right that a request needs: for a queue or topic, for the queue of a receipt, or for a key of `once`.

    Where none is named, the request needs the right for all queues.
    """

    right: Right
    queue: str | None = None
    receipt: str | None = None
    key: str | None = None


def needs(request: ask.Request) -> Sequence[Need]:
    """Return the rights that a request needs. Its client must have all of them."""
    return _NEEDS[type(request)](request)


def _nothing(_request: Any) -> list[Need]:
    """Return no rights: the request touches no queue, or only what its own connection has asked for."""
    return []


def _send(request: ask.Send | ask.SendMany) -> list[Need]:
    return [Need(Right.SEND, request.queue)]


def _receive(
    request: ask.Receive | ask.GetResult | ask.Results | ask.TakeResults | ask.Peek | ask.Tail | ask.Show | ask.Why,
) -> list[Need]:
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
    needs = [Need(Right.ADMINISTER, request.queue), Need(Right.SEND, request.queue)]
    return [*needs, Need(Right.ADMINISTER)] if request.replace else needs  # it may replace that of another queue


def _once(request: ask.Once | ask.OnceDone | ask.OnceRelease) -> list[Need]:
    return [Need(Right.ONCE, key=request.key)]


def _all(_request: Any) -> list[Need]:
    """Return a right for all queues: the request names a schedule of any queue, or lists the schedules of all."""
    return [Need(Right.ADMINISTER)]


def _observe(_request: Any) -> list[Need]:
    return [Need(Right.OBSERVE)]


_NEEDS: Final[dict[type, Callable[[Any], list[Need]]]] = {
    ask.Send: _send,
    ask.SendMany: _send,
    ask.GetResult: _receive,
    ask.Results: _receive,
    ask.TakeResults: _receive,
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
    ask.Once: _once,
    ask.OnceDone: _once,
    ask.OnceRelease: _once,
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
    ask.Queues: _observe,
    ask.Overview: _observe,
    ask.Metrics: _observe,
    ask.Topics: _observe,
}
