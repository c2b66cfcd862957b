"""Metrics: the text that Prometheus reads, of the daemon and of each queue.

The text is made in slices, because it has megabytes where there are thousands of queues. Other requests come between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ....errors import EoqError
from ... import requests as ask
from ...measures import COUNTERS, Latencies
from ...session import Fields, Handlers, Reply, Session
from .overview import QueueOverview
from .status import StatusService
from .tasks import SessionTasks
from .text import SYSTEM, distribution, head, label_text, labelled, single

MOST_QUEUES: Final = 10_000
"""How many queues have samples of their own, the first by their names. The totals of the daemon have all."""
SLICE: Final = 500
"""Samples that are made before other requests have their turn: about half a millisecond."""
STATES: Final = ("ready", "delayed", "leased", "blocked", "dead")
ENDS: Final = ("done", "dead", "expired", "dropped", "cancelled", "forwarded")

Queue = dict[str, Any]


class Series(NamedTuple):
    """One sample of each queue: its name, its labels beside the queue's, and where its value is from."""

    name: str
    labels: dict[str, str]
    value: Callable[[Queue], float]


class QueueFamily(NamedTuple):
    """A family with samples of each queue."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    series: Sequence[Series]


def _counted(name: str, help: str, counter: str, labels: dict[str, str] | None = None) -> QueueFamily:
    return QueueFamily(name, "counter", help, [Series(name, labels or {}, lambda queue: queue["totals"][counter])])


def _several(
    name: str, kind: Literal["counter", "gauge"], help: str, label: str, values: dict[str, Callable[[Queue], float]]
) -> QueueFamily:
    return QueueFamily(name, kind, help, [Series(name, {label: text}, value) for text, value in values.items()])


def _age(field: str) -> Callable[[Queue], float]:
    def age(queue: Queue) -> float:
        moment = queue[field]
        return 0.0 if moment is None else round(max(0.0, time.time() - moment), 3)

    return age


def _of(field: str) -> Callable[[Queue], float]:
    return lambda queue: int(queue[field])


def _total(counter: str) -> Callable[[Queue], float]:
    return lambda queue: int(queue["totals"][counter])


FAMILIES: Final = (
    _several(
        "eoq_queue_messages",
        "gauge",
        "Messages of a queue by their state.",
        "state",
        {state: _of(state) for state in STATES},
    ),
    *(
        QueueFamily(name, "gauge", help, [Series(name, {}, _age(field))])
        for name, field, help in (
            ("eoq_queue_oldest_message_seconds", "oldest", "Age of the oldest message that is not settled."),
            ("eoq_queue_oldest_ready_seconds", "oldest_ready", "Age of the oldest message that is ready or leased."),
        )
    ),
    *(
        QueueFamily(name, "gauge", help, [Series(name, {}, _of(field))])
        for name, field, help in (
            ("eoq_queue_consumers", "consumers", "Open connections that have asked for messages of the queue."),
            ("eoq_queue_waiting_receives", "waiting", "Requests that wait for messages of the queue."),
            ("eoq_queue_paused", "paused", "Whether deliveries are paused: 1 or 0."),
        )
    ),
    _counted("messaging_client_sent_messages_total", "Messages that were stored.", "sent", SYSTEM),
    _counted("messaging_client_consumed_messages_total", "Deliveries of messages.", "delivered", SYSTEM),
    _counted("eoq_queue_duplicates_total", "Messages that were stored before, under the same id.", "duplicates"),
    _counted("eoq_queue_retries_total", "Deliveries that failed, so that another one follows.", "retried"),
    _several(
        "eoq_queue_sends_refused_total",
        "counter",
        "Sends that were refused: the id has other content (id_conflict), or there is no room (full).",
        "error_type",
        {"id_conflict": _total("conflicts"), "full": _total("refused")},
    ),
    _several(
        "eoq_queue_messages_ended_total",
        "counter",
        "Messages that have ended, by how.",
        "outcome",
        {outcome: _total(outcome) for outcome in ENDS},
    ),
)


class Metrics:
    """The request ``metrics``, and the slices of its text."""

    def __init__(self, status: StatusService, overview: QueueOverview, latencies: Latencies) -> None:
        self._status = status
        self._overview = overview
        self._latencies = latencies
        self._turn = asyncio.Lock()
        self._tasks = SessionTasks()
        self.handlers: Handlers = {ask.Metrics: self._metrics}

    def _metrics(self, session: Session, _request: ask.Metrics, reply: Reply) -> None:
        self._tasks.spawn(session, self._answer(reply))

    async def _answer(self, reply: Reply) -> None:
        try:
            # Each slice is encoded by itself: to encode megabytes at once would keep other requests waiting.
            encoded = [msgspec.json.encode(part)[1:-1] async for part in self.slices()]
            fields: Fields | EoqError = {"text": msgspec.Raw(b'"' + b"".join(encoded) + b'"')}
        except EoqError as error:
            fields = error
        reply(fields)

    async def slices(self) -> AsyncGenerator[str, None]:
        """Yield the text in parts of whole lines. Raises `EoqError` where the file cannot be read."""
        yield self._of_daemon(self._status.describe())
        queues: list[tuple[str, Queue]] = []
        count = 0
        async with self._turn:  # one at a time reads; whoever is slow to take the text keeps nobody waiting
            async for queue in self._overview.queues():
                count += 1
                if count <= MOST_QUEUES:
                    queues.append((f'messaging_destination_name="{queue["name"]}"', queue))
        yield single("eoq_queues", "gauge", "Queues.", count)
        yield single(
            "eoq_queues_left_out",
            "gauge",
            f"Queues without samples of their own, as there are more than {MOST_QUEUES}.",
            count - len(queues),
        )
        for family in FAMILIES:
            yield head(family.name, family.kind, family.help)
            for name, labels, value in family.series:
                more = "," + label_text(labels)[1:-1] if labels else ""
                for start in range(0, len(queues), SLICE):
                    part = queues[start : start + SLICE]
                    yield "".join([f"{name}{{{label}{more}}} {value(queue)}\n" for label, queue in part])
                    await asyncio.sleep(0)  # lets other requests come between

    def _of_daemon(self, status: Fields) -> str:
        latencies = self._latencies
        info = {name: str(status[name]) for name in ("version", "sqlite", "identity")}
        totals = status["totals"]
        spool = [(name, status[f"spool_{name}"]) for name in ("taken", "rejected") if f"spool_{name}" in status]
        return "".join(
            (
                head("eoq_info", "gauge", "The daemon, its SQLite and its file."),
                f"eoq_info{label_text(info)} 1\n",
                single("eoq_start_time_seconds", "gauge", "When the daemon started.", status["started_at"]),
                single("eoq_connections", "gauge", "Open connections.", status["connections"]),
                single("eoq_leased_messages", "gauge", "Messages that are leased.", status["leased"]),
                single("eoq_waiting_receives", "gauge", "Receives that wait for messages.", status["waiting"]),
                single("eoq_file_bytes", "gauge", "Size of the daemon's file.", status["file_bytes"]),
                single("eoq_log_bytes", "gauge", "Size of its write-ahead log.", status["log_bytes"]),
                single("eoq_disk_free_bytes", "gauge", "Free bytes of its disk.", status["disk_free_bytes"]),
                single("eoq_disk_bytes", "gauge", "Size of its disk.", status["disk_bytes"]),
                single(
                    "eoq_storage_errors", "gauge", "Present troubles of the storage.", len(status["storage_errors"])
                ),
                single(
                    "eoq_config_error",
                    "gauge",
                    "Whether the configuration is wrong, so that the former one stays: 1 or 0.",
                    int(status["config_error"] is not None),
                ),
                labelled("eoq_spool_files_total", "counter", "Files of the spool.", "outcome", spool) if spool else "",
                labelled(
                    "eoq_messages_total",
                    "counter",
                    "What happened to the messages of all queues, deleted ones included, since the file was made.",
                    "event",
                    [(counter, totals[counter]) for counter in COUNTERS],
                ),
                distribution("eoq_commit_seconds", "Durable transactions of the file.", latencies.commit),
                distribution("eoq_sync_seconds", "Their part that writes and syncs the log.", latencies.sync),
                distribution("eoq_delivery_wait_seconds", "From a send until each delivery.", latencies.waiting),
                distribution(
                    "messaging_process_duration_seconds", "From a delivery until its ack.", latencies.handling, SYSTEM
                ),
            )
        )
