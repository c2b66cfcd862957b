"""Metrics: the text that Prometheus reads, of the daemon and of each queue.

With thousands of queues it has megabytes. So it is made at a pace, and given in parts. What took long is given again to
whoever asks soon: the metrics take a fiftieth of the daemon's time, however often they are asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from operator import attrgetter
from typing import Final, Literal, NamedTuple

import msgspec

from ....errors import EoqError, NotFound
from ... import requests as ask
from ...measures import COUNTERS, Counter, Latencies
from ...session import Fields, Handlers, Reply, Session
from ...store.sqlite.overview import QueueState
from .overview import QueueOverview, QueueSample
from .pace import Pace
from .status import StatusService
from .tasks import SessionTasks
from .text import SYSTEM, distribution, head, label_text, labelled, pack, single, unpack

MOST_QUEUES: Final = 10_000
"""How many queues have samples of their own, the first by their names. The totals of the daemon have all."""
FEW: Final = 500
"""Up to so many queues, the samples are made anew for each who asks: that takes about 10 ms."""
SPARED: Final = 50
"""Those of more queues are given again for so many times as long as the work took."""
OLDEST: Final = 60.0
"""Seconds for which they are given at most."""
READ_SECONDS: Final = 30.0
"""How long after its first request a client may ask for the further parts of the same samples."""
LINES: Final = 1000
"""Lines of a series in one part: less than 128 KiB."""
PART_BYTES: Final = 64 * 1024
"""Bytes from which on a reply has no further part."""
MOST_PARTS: Final = 1_000_000
STATES: Final = ("ready", "delayed", "leased", "blocked", "dead")
ENDS: Final = ("done", "dead", "expired", "dropped", "cancelled", "forwarded")


class Series(NamedTuple):
    """One sample of each queue: its name, its labels beside the queue's, and where its value is from."""

    name: str
    labels: dict[str, str]
    value: Callable[[QueueSample], float]


class QueueFamily(NamedTuple):
    """A family with samples of each queue."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    series: Sequence[Series]


def _counted(name: str, help: str, counter: Counter, labels: dict[str, str] | None = None) -> QueueFamily:
    return QueueFamily(name, "counter", help, [Series(name, labels or {}, _total(counter))])


def _several(
    name: str,
    kind: Literal["counter", "gauge"],
    help: str,
    label: str,
    values: dict[str, Callable[[QueueSample], float]],
) -> QueueFamily:
    return QueueFamily(name, kind, help, [Series(name, {label: text}, value) for text, value in values.items()])


def _age(field: Literal["oldest", "oldest_ready"]) -> Callable[[QueueSample], float]:
    moment_of: Callable[[QueueSample], float | None] = attrgetter(f"state.{field}")

    def age(queue: QueueSample) -> float:
        moment = moment_of(queue)
        return 0.0 if moment is None else int(max(0.0, time.time() - moment) * 1000) / 1000  # faster than `round`

    return age


def _total(counter: Counter) -> Callable[[QueueSample], float]:
    return lambda queue: queue.totals[counter]


FAMILIES: Final = (
    _several(
        "eoq_queue_messages",
        "gauge",
        "Messages of a queue by their state.",
        "state",
        {state: attrgetter(f"state.{state}") for state in STATES},
    ),
    *(
        QueueFamily(name, "gauge", help, [Series(name, {}, value)])
        for name, value, help in (
            ("eoq_queue_oldest_message_seconds", _age("oldest"), "Age of the oldest message that is not settled."),
            (
                "eoq_queue_oldest_ready_seconds",
                _age("oldest_ready"),
                "Age of the oldest message that is ready or leased.",
            ),
            (
                "eoq_queue_consumers",
                attrgetter("consumers"),
                "Open connections that have asked for messages of the queue.",
            ),
            ("eoq_queue_waiting_receives", attrgetter("waiting"), "Requests that wait for messages of the queue."),
            ("eoq_queue_paused", attrgetter("state.paused"), "Whether deliveries are paused: 1 or 0."),
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


class Column:
    """The lines of one series. They are packed when there are many, in another thread, as that needs no Python."""

    def __init__(self, series: Series) -> None:
        more = "," + label_text(series.labels)[1:-1] if series.labels else ""
        self._name = series.name
        self._end = f"{more}}}"
        self._value = series.value
        self._lines: list[str] = []
        self._packed: list[bytes] = []

    async def add(self, queues: Sequence[tuple[str, QueueSample]]) -> None:
        """Add the lines of more queues, which are given with their first label."""
        name, end, value = self._name, self._end, self._value
        self._lines += [f"{name}{{{label}{end} {value(queue)}\n" for label, queue in queues]
        if len(self._lines) >= LINES:
            await self._pack()

    async def end(self) -> list[bytes]:
        """Return the packed parts of all lines."""
        await self._pack()
        return self._packed

    async def _pack(self) -> None:
        if self._lines:
            lines, self._lines = "".join(self._lines).encode(), []
            self._packed.append(await asyncio.to_thread(pack, lines))


class Samples(NamedTuple):
    """The samples of the queues at one moment, as parts of the text, each of whole lines and packed."""

    number: int
    """Counts them, so that a client gets all parts of the same ones."""
    parts: list[bytes]
    usable_until: float
    """Until when they are given to others, on the clock of the event loop."""


class Metrics:
    """The request ``metrics``, and the parts of its text."""

    def __init__(self, status: StatusService, overview: QueueOverview, latencies: Latencies) -> None:
        self._status = status
        self._overview = overview
        self._latencies = latencies
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._made = 0
        self._newest: Samples | None = None
        self._begun: dict[int, Samples] = {}
        """The samples of which clients may ask for further parts, by their numbers."""
        self._tasks = SessionTasks()
        self.handlers: Handlers = {ask.Metrics: self._metrics}

    def _metrics(self, session: Session, request: ask.Metrics, reply: Reply) -> None:
        self._tasks.spawn(session, self._answer(request, reply))

    async def _answer(self, request: ask.Metrics, reply: Reply) -> None:
        try:
            fields: Fields | EoqError = await (self._all() if request.after is None else self._part(request.after))
        except EoqError as error:
            fields = error
        reply(fields)

    async def _all(self) -> Fields:
        # Each part is encoded by itself: to encode megabytes at once would keep other requests waiting.
        encoded = [_encoded(part) async for part in self.parts(packed=False)]
        return {"text": msgspec.Raw(b'"' + b"".join(encoded) + b'"')}

    async def _part(self, after: int) -> Fields:
        """Return the part from ``after`` on, which says of which samples it is, and how many of its parts were read."""
        number, place = divmod(after, MOST_PARTS)
        if not after:
            found = await self._samples()
            text = [self._of_daemon()]
        elif number in self._begun:
            found, text = self._begun[number], list[bytes]()
        else:
            raise NotFound(
                "the samples of this part are kept no longer; ask for the metrics again, from their first part"
            )
        size = 0
        while place < len(found.parts) and size < PART_BYTES:
            text.append(unpack(found.parts[place]))
            size += len(text[-1])
            place += 1
        fields: Fields = {"text": msgspec.Raw(b'"' + _encoded(b"".join(text)) + b'"')}
        if place >= len(found.parts):
            return fields
        if found.number not in self._begun:
            self._begun[found.number] = found
            self._loop.call_later(READ_SECONDS, self._begun.pop, found.number)
        return fields | {"after": found.number * MOST_PARTS + place}

    async def parts(self, packed: bool) -> AsyncGenerator[bytes, None]:
        """Yield the text in parts of whole lines. Raises `EoqError` where the file cannot be read.

        ``packed`` asks for parts that make one text in gzip's format.
        """
        of_daemon = self._of_daemon()
        yield pack(of_daemon) if packed else of_daemon
        found, pace = await self._samples(), Pace()
        for part in found.parts:
            yield part if packed else unpack(part)
            await pace.rest()

    # ── the samples ─────────────────────────────────────────────────────────────────────────────────────

    async def _samples(self) -> Samples:
        async with self._turn:  # one at a time makes them; whoever is slow to take them keeps nobody waiting
            if self._newest is not None and self._newest.usable_until > self._loop.time():
                return self._newest
            made = await self._sample_queues()
            if made.usable_until > self._loop.time():
                self._newest = made
                self._loop.call_at(made.usable_until, self._forget, made)
            return made

    def _forget(self, samples: Samples) -> None:
        if self._newest is samples:
            self._newest = None

    async def _sample_queues(self) -> Samples:
        pace = Pace()
        columns = [Column(series) for family in FAMILIES for series in family.series]
        count = 0
        async for page in self._overview.pages(pace):
            if count < MOST_QUEUES:
                await self._sample(page[: MOST_QUEUES - count], columns, pace)
            count += len(page)
        parts = [pack(self._of_all(count))]
        for family in FAMILIES:
            parts.append(pack(head(family.name, family.kind, family.help).encode()))
            for column in columns[: len(family.series)]:
                parts += await column.end()
            del columns[: len(family.series)]
        pace.end()
        self._made += 1
        usable = min(SPARED * pace.worked, OLDEST) if count > FEW else 0.0
        return Samples(self._made, parts, self._loop.time() + usable)

    async def _sample(self, page: Sequence[QueueState], columns: Sequence[Column], pace: Pace) -> None:
        queues = []
        for queue in page:
            queues.append((f'messaging_destination_name="{queue.name}"', self._overview.sampled(queue)))
            await pace.rest()
        for column in columns:
            await column.add(queues)
            await pace.rest()

    def _of_all(self, count: int) -> bytes:
        left_out = f"Queues without samples of their own, as there are more than {MOST_QUEUES}."
        return "".join(
            (
                single("eoq_queues", "gauge", "Queues.", count),
                single("eoq_queues_left_out", "gauge", left_out, max(0, count - MOST_QUEUES)),
                single("eoq_queues_read_seconds", "gauge", "When the samples of the queues were made.", time.time()),
            )
        ).encode()

    def _of_daemon(self) -> bytes:
        status, latencies = self._status.describe(), self._latencies
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
        ).encode()


def _encoded(text: bytes) -> bytes:
    """Return a text as JSON, without its quotes."""
    return msgspec.json.encode(text.decode())[1:-1]
