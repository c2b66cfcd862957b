"""A bridge in a process of its own, which the daemon has started: so it neither stalls the daemon nor ends it.

The first line of standard input says what to run (`Task`). The end of the input ends this process: so it never outlives
its daemon, however that ends. On standard output it writes lines of JSON: its state every few seconds (``state``), and
its log (``log``), which the daemon prints as its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypedDict

from ..backoff import pauses
from ..errors import EoqError, NotFound
from ..protocol.limits import MAX_ERROR

if TYPE_CHECKING:
    from .bridge import Bridge
    from .engine import OpenCounts

log = logging.getLogger("eoq.bridge")

REPORT_SECONDS: Final = 2.0
"""How often the state is reported."""
RATE_SECONDS: Final = 60.0
"""Over how long the rate is measured."""
LONGEST_PAUSE: Final = 60.0
"""Seconds between two starts of a bridge that cannot begin."""
_writing: Final = threading.Lock()
STARTING_SECONDS: Final = 15.0
"""A bridge that has run for so long has begun, and what kept it from that before is over."""


class Task(TypedDict):
    """What to run. ``url`` and ``variable`` are those of `find_url`.

    Partition, name, limit and keep are for an ingest.
    """

    direction: str
    queue: str
    socket: str
    url: str | None
    variable: str | None
    partitions: int | None
    partition: str | None
    name: str | None
    limit: int
    keep: float
    results: bool


class _Lines(logging.Handler):
    """The log, as lines of JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the daemon reads no more
            _write({"log": self.format(record), "level": record.levelno})


def main() -> None:
    """Run the bridge until standard input ends."""
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return  # the daemon was killed before it could say what to run
    task: Task = json.loads(line)
    logging.basicConfig(level=logging.INFO, handlers=[_Lines()], format="%(message)s")
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.run(_run(task))


def _end_with_input() -> None:
    sys.stdin.read()
    # At once: the messages in hand are bound to the connection that ends, and claimed rows stay claimed.
    os._exit(0)


async def _run(task: Task) -> None:
    reporter = _Reporter()
    reporting = asyncio.create_task(reporter.run())
    waits = pauses(1.0, LONGEST_PAUSE)
    while not reporting.done():  # it ends where the daemon reads no more
        begun = time.monotonic()
        try:
            if reporter.bridge is None:
                reporter.bridge = _make(task, reporter)
            await reporter.bridge.run_async()
        except EoqError as error:
            reporter.failed(str(error))
            log.warning("%s %s: %s; waiting", task["direction"], task["queue"], error)
        except Exception:
            reporter.failed("a fault in eoq, which the log of the daemon has")
            log.exception("%s %s: a fault in eoq; waiting", task["direction"], task["queue"])
        if time.monotonic() > begun + LONGEST_PAUSE:
            waits = pauses(1.0, LONGEST_PAUSE)
        await asyncio.sleep(next(waits))


def _make(task: Task, reporter: _Reporter) -> Bridge:
    from .bridge import Bridge
    from .places import find_url, open_engine

    url = find_url(task["url"], task["variable"])
    reporter.counts = open_engine(url, task["partitions"]).counts()  # raises `InvalidRequest` without the driver
    if task["direction"] == "forward":
        return Bridge.forward(
            task["queue"], url, results=task["results"], partitions=task["partitions"], socket=task["socket"]
        )
    return Bridge.ingest(
        task["queue"],
        url,
        name=task["name"],
        limit=task["limit"],
        keep=task["keep"],
        results=task["results"],
        partitions=task["partitions"],
        partition=task["partition"],
        socket=task["socket"],
    )


class _Reporter:
    """It reports the state of the bridge until the daemon reads no more."""

    def __init__(self) -> None:
        self.bridge: Bridge | None = None
        self.counts: OpenCounts | None = None
        """It counts what waits in the database, over a connection that it keeps."""
        self._error = ""
        self._failed_at = 0.0
        self._counts: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def failed(self, error: str) -> None:
        """Note why the bridge could not begin, or has ended."""
        self._error, self._failed_at = error, time.monotonic()

    async def run(self) -> None:
        with suppress(OSError):
            while True:
                _write({"state": await asyncio.to_thread(self._state)})
                await asyncio.sleep(REPORT_SECONDS)

    def _state(self) -> dict[str, Any]:
        now = time.monotonic()
        error = self._error if now < self._failed_at + LONGEST_PAUSE + STARTING_SECONDS else None
        if self.bridge is None or self.counts is None:
            return {"error": _cut(error)}
        moved = self.bridge.moved
        self._counts.append((now, moved))
        while self._counts[0][0] < now - RATE_SECONDS:
            self._counts.popleft()
        since, before = self._counts[0]
        rate = (moved - before) / max(now - since, REPORT_SECONDS)
        state = {"place": self.bridge.place, "moved": moved, "refused": self.bridge.refused, "rate": round(rate, 3)}
        if self.bridge.running_for > STARTING_SECONDS:
            error = None
        error = self.bridge.error or error
        try:
            unclaimed, claimed = self.counts.count(self.bridge.queue, self.bridge.name)
        except NotFound:  # no table yet
            unclaimed = claimed = 0
        except EoqError as failure:
            return {**state, "error": _cut(error or str(failure))}
        return {**state, "there": unclaimed, "claimed": claimed, "error": _cut(error)}


def _cut(error: str | None) -> str | None:
    return error[:MAX_ERROR] if error else None


def _write(line: dict[str, Any]) -> None:
    with _writing:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
