"""What those who look cost those who send: a daemon with many queues, and each watcher beside a producer.

    python -m tests.bench.watchers [--queues 10000] [--messages 1000000] [--seconds 5] [--rounds 3]
                                   [--only NAME[,NAME…]] [--folder DIR] [--json]

Rounds without and with a watcher alternate, as other programs of the machine disturb both. The table has, for each
watcher, the longest send without and with it (the median of the rounds, and the worst), how many took longer than
20 ms, the ratio of the rates, and how long its own answer took. A watcher asks again and again: `metrics`, `scrape`
(over HTTP) and `queues` once a second, `scrape-15` every 15 seconds, as Prometheus is mostly set up (give it
``--seconds 45``), the others without a pause. The file is in /dev/shm where there is one, so that the disk does not
count. ``--folder`` keeps it, and a next run uses it again. `top` and `dashboard` need their extras.

Not under `chrt -f`: the kernel may stop real-time programs for 50 ms in each second (`kernel.sched_rt_runtime_us`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pty
import shutil
import socket as sockets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import eoq
from tests.support import memory_folder

BODY = b"x" * 100
TOO_LONG = 0.02
"""Seconds that no send may be held up by a watcher."""
TITLES = ("median", "max", "median", "max", ">20ms", "rate", "median", "max")
EOQ = [sys.executable, "-P", "-m", "eoq.cli"]


@dataclass
class Place:
    """Where the daemon is."""

    folder: Path

    @property
    def socket(self) -> str:
        """Its socket."""
        return str(self.folder / "s")

    @property
    def database(self) -> Path:
        """Its file."""
        return self.folder / "eoq.db"

    @property
    def metrics(self) -> str:
        """Where it serves its metrics."""
        return str(self.folder / "m")


@dataclass
class Sends:
    """What a producer has seen in one round."""

    rate: float
    longest: float
    over: int
    """Sends that took longer than `TOO_LONG`."""


@dataclass
class Row:
    """The rounds of one watcher."""

    name: str
    without: list[Sends] = field(default_factory=list)
    beside: list[Sends] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)


# ── the daemon and its messages ─────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def running(at: Place) -> Iterator[None]:
    """Run the daemon."""
    config = at.folder / "eoq.toml"
    config.write_text(f"[metrics]\nlisten = {json.dumps(at.metrics)}\n")
    command = [*EOQ, "daemon", "--db", str(at.database), "--socket", at.socket, "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def fill(at: Place, queues: int, messages: int) -> None:
    """Send what is missing, unless a former run has filled the file."""
    done = at.folder / f"filled-{queues}-{messages}"
    if done.exists():
        return
    each = max(1, messages // queues)
    with eoq.connect(at.socket, timeout=60) as client:
        for number in range(queues):
            client.send_many(f"queue.{number:05}", [BODY] * each)
            if number % 1000 == 0:
                print(f"\r{number * each:,} messages", end="", file=sys.stderr, flush=True)
    print("\r\x1b[K", end="", file=sys.stderr)
    done.touch()


def produce(socket: str, seconds: float, result: Connection) -> None:
    """Send one message after the other, and tell how long they took."""
    took: list[float] = []
    with eoq.connect(socket, timeout=60) as client:
        client.send("queue.00000", BODY)
        began = before = time.perf_counter()
        until = began + seconds
        while before < until:
            client.send("queue.00000", BODY)
            now = time.perf_counter()
            took.append(now - before)
            before = now
    result.send(Sends(len(took) / (before - began), max(took), sum(one > TOO_LONG for one in took)))


def measure(at: Place, seconds: float) -> Sends:
    """Run a producer in a process of its own."""
    mine, its = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=produce, args=(at.socket, seconds, its))
    process.start()
    its.close()
    sends: Sends = mine.recv()
    process.join()
    return sends


# ── watchers ────────────────────────────────────────────────────────────────────────────────────────────────


def step_back() -> None:
    """Let this thread, and what it starts, have no more than its share, also if the daemon comes first."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Repeated:
    """Does something again and again in a thread, and notes how long each time took."""

    def __init__(self, once: Callable[[Place], object], pause: float) -> None:
        self._once = once
        self._pause = pause

    @contextlib.contextmanager
    def __call__(self, at: Place, answers: list[float]) -> Iterator[None]:
        ended = threading.Event()

        def run() -> None:
            step_back()
            while not ended.is_set():
                began = time.perf_counter()
                self._once(at)
                answers.append(time.perf_counter() - began)
                ended.wait(max(0.0, self._pause - (time.perf_counter() - began)))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def command(*arguments: str) -> Callable[[Place], object]:
    """Return what runs a command of eoq. The exit status is not looked at: a check may find something."""

    def once(at: Place) -> object:
        environment = {**os.environ, "EOQ_SOCKET": at.socket}
        return subprocess.run([*EOQ, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return once


def backup(at: Place) -> object:
    """Make a backup, of which the next one takes the place."""
    return command("backup", str(at.folder / "copy.db"))(at)


def scrape(at: Place) -> None:
    """Read the metrics over HTTP as Prometheus does, which takes them packed, and let them go."""
    with sockets.socket(sockets.AF_UNIX) as connection:
        connection.connect(at.metrics)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")
        last = b""
        while data := connection.recv(1 << 20):
            last = data
        if not last.endswith(b"0\r\n\r\n"):
            raise RuntimeError("the metrics are not whole")


@contextlib.contextmanager
def top(at: Place, answers: list[float]) -> Iterator[None]:
    """Run the live view in a terminal of its own. Its answers are the pauses between two drawings."""
    child, terminal = pty.fork()
    if child == 0:
        step_back()
        os.environ.update(EOQ_SOCKET=at.socket, TERM="xterm-256color", LINES="24", COLUMNS="80")
        os.execv(sys.executable, [*EOQ, "top"])  # noqa: S606 # there is no shell
    began = time.perf_counter()

    def read() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(terminal, 1 << 16):
                if b"p50/p99" in data and not answers:
                    answers.append(time.perf_counter() - began)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.write(terminal, b"q")
        os.waitpid(child, 0)
        thread.join()
        os.close(terminal)


@contextlib.contextmanager
def dashboard(at: Place, answers: list[float]) -> Iterator[None]:
    """Run the dashboard, and follow its first page as a browser does."""
    process = subprocess.Popen(
        [*EOQ, "dashboard", "--socket", at.socket], stdout=subprocess.PIPE, text=True, preexec_fn=step_back
    )
    assert process.stdout is not None
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(process.stdout.readline().strip()) as page:
        events = f"{page.url}events?page=0"

    def follow() -> None:
        step_back()
        with contextlib.suppress(OSError, ValueError), opener.open(events) as stream:
            before = time.perf_counter()
            for line in stream:
                if line.startswith(b"data:"):
                    answers.append(time.perf_counter() - before)
                    before = time.perf_counter()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
        thread.join()


WATCHERS: dict[str, Callable[[Place, list[float]], contextlib.AbstractContextManager[None]]] = {
    "scrape": Repeated(scrape, 1.0),
    "scrape-15": Repeated(scrape, 15.0),
    "metrics": Repeated(command("metrics"), 1.0),
    "queues": Repeated(command("queues"), 1.0),
    "ranked": Repeated(command("queues", "--order", "busy"), 0.0),
    "check": Repeated(command("check", "--waiting", "1000:10000", "--oldest", "60"), 0.0),
    "check --quick": Repeated(command("check", "--quick", "--waiting", "1000:10000"), 0.0),
    "backup": Repeated(backup, 0.0),
    "top": top,
    "dashboard": dashboard,
}


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────


def run(at: Place, names: list[str], seconds: float, rounds: int) -> Iterator[Row]:
    """Yield the row of each watcher."""
    for name in names:
        row = Row(name)
        for _ in range(rounds):
            row.without.append(measure(at, seconds))
            with WATCHERS[name](at, row.answers):
                row.beside.append(measure(at, seconds))
        yield row


def printed(row: Row) -> str:
    """Return a row of the table."""
    without, beside = ([sends.longest * 1000 for sends in part] for part in (row.without, row.beside))
    ratios = [one.rate / other.rate for one, other in zip(row.beside, row.without, strict=True)]
    answers = row.answers or [float("nan")]
    cells = (
        *(f"{statistics.median(without):.1f}", f"{max(without):.1f}"),
        *(f"{statistics.median(beside):.1f}", f"{max(beside):.1f}", str(sum(one.over for one in row.beside))),
        *(f"{statistics.median(ratios):.3f}", f"{statistics.median(answers):.2f}", f"{max(answers):.2f}"),
    )
    return f"{row.name:14}" + "".join(f"{cell:>9}" for cell in cells)


def as_fields(row: Row) -> dict[str, Any]:
    """Return a row as JSON."""
    parts = {"without": row.without, "beside": row.beside}
    return {"name": row.name, "answers": row.answers} | {
        name: [vars(sends) for sends in part] for name, part in parts.items()
    }


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queues", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(WATCHERS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = options.only.split(",")
    folder = options.folder or Path(tempfile.mkdtemp(dir=memory_folder()))
    folder.mkdir(exist_ok=True)
    at = Place(folder)
    try:
        with running(at):
            fill(at, options.queues, options.messages)
            measure(at, 1.0)
            if not options.json:
                print(f"{'':14}{'without':>18}{'beside':>27}{'answer, s':>27}")
                print(f"{'':14}" + "".join(f"{title:>9}" for title in TITLES))
            for row in run(at, names, options.seconds, options.rounds):
                print(json.dumps(as_fields(row)) if options.json else printed(row), flush=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
