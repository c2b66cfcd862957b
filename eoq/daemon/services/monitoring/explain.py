"""The request ``why``: it says why a message is not delivered now, in a sentence for each reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....errors import EoqError, NotFound
from ... import requests as ask
from ...broker.broker import Broker
from ...config.settings import SettingsOf
from ...session import Fields, Handlers, Reply, Session
from ...store.sqlite.reader import Reader
from ...store.sqlite.waits import MOST_AHEAD, Waiting
from .tasks import SessionTasks


class Explain:
    """The handler of ``why``. It reads the file, and asks the broker for leases, limits and receivers."""

    def __init__(self, reader: Reader, broker: Broker, settings: SettingsOf) -> None:
        self._reader = reader
        self._broker = broker
        self._settings = settings
        self._tasks = SessionTasks()
        self.handlers: Handlers = {ask.Why: self._why}

    def _why(self, session: Session, request: ask.Why, reply: Reply) -> None:
        self._tasks.spawn(session, self._answer(request, reply))

    async def _answer(self, request: ask.Why, reply: Reply) -> None:
        try:
            waiting, settled = await self._reader.why(request.queue, request.id)
        except EoqError as error:
            reply(error)
            return
        if waiting is not None:
            state, reasons = self._explain(request, waiting)
            reply({"state": state, "reasons": reasons})
        elif settled is not None:
            text = f"it is settled as {settled['outcome']}"
            if settled["error"] is not None:
                text += f": {settled['error']}"
            reason = {"reason": "settled", "text": text, "settled_at": settled["settled_at"]}
            reply({"state": settled["outcome"], "reasons": [reason]})
        else:
            reply(
                NotFound(
                    f"there is no message {request.id!r} in the queue {request.queue!r}: it was never stored there, or "
                    "it was settled so long ago that its id is forgotten; `eoq queues` lists the queues"
                )
            )

    def _explain(self, request: ask.Why, waiting: Waiting) -> tuple[str, list[Fields]]:
        row = waiting.row
        if row["state"] == "dead":
            return "dead", [_reason("dead", _dead(row), failed_at=row["failed_at"])]
        if row["number"] is not None:
            return "leased", [self._leased(request, row)]
        reasons = list(self._waits(request, waiting))
        if not reasons:
            reasons.append(_reason("next", "nothing holds it back: it is delivered to the next receive of its queue"))
        return row["state"], reasons

    def _leased(self, request: ask.Why, row: dict[str, Any]) -> Fields:
        lease = self._broker.lease_of(row["seq"], row["number"], row["queue"], request.id)
        consumer = row["consumer"] or "a consumer"
        then = "" if row["cancelled_at"] is None else "; it was cancelled, so it then ends unless it was acked"
        if lease is None:
            return _reason("leased", f"it is leased by {consumer}, and the lease is about to end{then}")
        seconds = max(0.0, lease.deadline - self._broker.clock.monotonic())
        how = "or until its connection ends" if lease.bound is not None else "unless that settles or extends it"
        return _reason(
            "leased",
            f"it is leased by {consumer} for another {seconds:.0f} s, {how}{then}",
            consumer=row["consumer"],
            seconds=round(seconds, 3),
            delivered_at=row["delivered_at"],
        )

    def _waits(self, request: ask.Why, waiting: Waiting) -> Iterator[Fields]:
        queue, row = request.queue, waiting.row
        if row["state"] == "delayed":
            yield self._delayed(row)
        elif row["state"] == "blocked":
            yield _behind(row, waiting.group)
        if row["paused"]:
            yield _reason("paused", f"the queue {queue} is paused; `eoq resume {queue}` lets it go on")
        if row["state"] != "ready":
            return
        receivers = self._broker.receivers
        if receivers.limits.in_flight_is_full(queue):
            most = self._settings(queue).max_in_flight
            yield _reason("in_flight", f"the queue has {most} messages in flight, as many as max_in_flight allows")
        seconds = receivers.limits.seconds_until_rate_allows(queue)
        if seconds > 0:
            yield _reason("rate", f"the rate of the queue is full for {seconds:.1f} s", seconds=round(seconds, 3))
        if waiting.ahead:
            number = f"{waiting.ahead:,}" if waiting.ahead < MOST_AHEAD else f"{MOST_AHEAD:,} or more"
            yield _reason("ahead", f"messages before it in the queue, leased ones included: {number}")
        if not receivers.waiting_for(queue):
            consumers = receivers.consumers.of(queue)
            text = f"no receive waits for messages of the queue; connected consumers: {consumers}"
            yield _reason("no_receive", text, consumers=consumers)

    def _delayed(self, row: dict[str, Any]) -> Fields:
        seconds = max(0.0, row["due_at"] - self._broker.clock.wall())
        text = f"it is delayed for another {seconds:.1f} s"
        if row["attempts"] and not row["fixed"]:
            text += f", after attempt {row['attempts']} has failed: {row['error'] or 'no reason was given'}"
        return _reason("delayed", text, due_at=row["due_at"], seconds=round(seconds, 3))


def _behind(row: dict[str, Any], ahead: dict[str, Any] | None) -> Fields:
    if ahead is None:
        return _reason("group", f"its group {row['group']!r} is about to go on")
    text = f"its group {row['group']!r} waits for {ahead['id']!r}, which is before it and has not ended"
    return _reason("group", text, behind=ahead["id"])


def _dead(row: dict[str, Any]) -> str:
    text = f"it is a dead letter after {row['attempts']} attempts: {row['error'] or 'no reason was given'}"
    return f"{text}; `eoq dead redrive` gives it new ones"


def _reason(reason: str, text: str, **more: Any) -> Fields:
    return {"reason": reason, "text": text, **{name: value for name, value in more.items() if value is not None}}
