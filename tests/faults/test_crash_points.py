"""A daemon or a consumer is killed at a chosen point: each point of each operation once (G1 to G5)."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.faults import planted_worker
from tests.faults.crashes import OPERATIONS, POINTS, Operation, Point, crash
from tests.faults.daemons import ids_of, left, planted_daemon, settle_all
from tests.faults.planted_daemon import Die, Plant
from tests.faults.planted_daemon import Point as PlantedPoint
from tests.support import PATIENCE, Daemon, clean_environment, eventually

WORKER: Final = Path(planted_worker.__file__)
LIVES: Final = 12
"""More than a daemon has transactions of its own when it starts."""
BEFORE_READY: Final = 2
"""At so many of them, at most, it does not serve yet: it says no more that it is ready."""
ALL_POINTS: Final = ("send", "settle", "nack")
"""Operations that the default tests kill at each point: one that stores, one that settles, one that loses its lease."""
AROUND_COMMIT: Final[tuple[Point, ...]] = ("written", "committed")
"""Points at which the default tests kill each operation. The slow tests kill it at the others."""
BESIDE_COMMIT: Final = ("handler has written", "inbox has committed")
"""Points at which the default tests kill a consumer of each kind. They kill the plain consumer at each point."""


# ── the daemon ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("operation", "point"),
    [
        pytest.param(
            operation,
            point,
            marks=() if operation.name in ALL_POINTS or point in AROUND_COMMIT else pytest.mark.slow,
            id=f"{operation.name}-{point}",
        )
        for operation in OPERATIONS
        for point in POINTS
    ],
)
@pytest.mark.first_by_default
def test_a_daemon_killed_at_a_point_of_an_operation(operation: Operation, point: Point) -> None:
    """What is confirmed is on disk. What is not is there once or not at all. In the end the client has exactly one."""
    crash(operation, point)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["committed", *(pytest.param(p, marks=pytest.mark.slow) for p in ("begun", "written", "replying"))]
)
def test_a_daemon_killed_at_its_nth_transaction(point: PlantedPoint) -> None:
    """Kill one daemon after the other, each at a later transaction of any kind, while a client goes on working."""
    stop = threading.Event()
    with planted_daemon() as daemon, eoq.connect(daemon.socket) as client, ThreadPoolExecutor(1) as pool:
        client.ask("status")  # from now on the client waits for a daemon that is gone
        working = pool.submit(_pass_on, client, stop)
        try:
            for nth in range(1, LIVES + 1):
                daemon.kill()
                daemon.plant = Plant(Die(point, nth=nth))
                try:
                    daemon.start()
                except AssertionError:
                    assert nth <= BEFORE_READY
                else:
                    assert daemon.wait() == -signal.SIGKILL
            daemon.start_plain()
        finally:
            stop.set()
        sent = working.result(PATIENCE)
        effects = Counter(message.text for message in settle_all(client, "next"))
    assert len(sent) > 1
    assert effects == Counter(sent)


def _pass_on(client: eoq.Client, stop: threading.Event) -> list[str]:
    """Send messages, and pass each on to the next queue with an id that only the client itself repeats."""
    sent: list[str] = []
    while not stop.is_set() or left(client, "work"):
        if not stop.is_set():
            sent.append(f"{len(sent)}")
            client.send("work", "x", id=sent[-1], delay=0.01 if len(sent) % 4 == 0 else None, group=sent[-1][-1])
        for message in client.receive("work", 2, wait=0.05):
            with suppress(eoq.LeaseLost):
                message.ack(send=[eoq.Outgoing(message.id, queue="next")])
    return sent


def _files(folder: Path) -> list[Path]:
    """Return the files of the database, without its spool."""
    return [path for path in folder.glob("eoq.db*") if path.is_file()]


@pytest.mark.parametrize("nth", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_a_daemon_killed_while_it_creates_its_file(folder: Path, nth: int) -> None:
    """At whatever moment that was, the next daemon has a good file."""
    with planted_daemon(folder=folder) as daemon:
        daemon.kill()
        for file in _files(folder):
            file.unlink()
        starting = subprocess.Popen(
            [sys.executable, "-m", "eoq.cli", "daemon", "--db", str(daemon.db), "--socket", str(daemon.socket)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
            cwd=folder,
        )
        with starting:
            eventually(lambda: len(_files(folder)) >= nth)  # lock, database, journal
            starting.kill()
        daemon.start()
        with eoq.connect(daemon.socket) as client:
            client.send("work", "x", id="a")
            assert ids_of(settle_all(client, "work")) == ["a"]


# ── the consumer ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("point", "how"),
    [
        pytest.param(point, how, marks=() if how == "one" or point in BESIDE_COMMIT else pytest.mark.slow)
        for point in planted_worker.POINTS
        for how in ("one", "many", "async-one", "async-many")
    ],
)
@pytest.mark.first_by_default
def test_a_consumer_killed_at_a_point(shared_daemon: Daemon, queue: str, folder: Path, point: str, how: str) -> None:
    """The effect is there once: either the killed consumer committed it, or the next one does (G5)."""
    ledger = folder / "ledger.db"
    with closing(sqlite3.connect(ledger)) as database:
        database.execute("create table effect (id text not null)")
    with eoq.connect(shared_daemon.socket) as client:
        client.send_many(queue, [eoq.Outgoing("x", id=id) for id in "abc"])
        assert _work(shared_daemon, ledger, queue, point, how) == -signal.SIGKILL
        assert ("b" in _effects(ledger)) is planted_worker.POINTS[point]
        eventually(lambda: left(client, queue).get("leased") is None, what="the leases end with the connection")
        assert _work(shared_daemon, ledger, queue, "none", how) == 0
        assert _effects(ledger) == ["a", "b", "c"]
        assert left(client, queue) == {}
        assert client.result(queue, "b") == eoq.Result("done", b"did b")


def _work(daemon: Daemon, ledger: Path, queue: str, point: str, how: str) -> int:
    ran = subprocess.run(
        [sys.executable, str(WORKER), str(daemon.socket), str(ledger), queue, point, how],
        env=clean_environment(),
        cwd=ledger.parent,
        timeout=PATIENCE,
        check=False,
    )
    return ran.returncode


def _effects(ledger: Path) -> list[str]:
    with closing(sqlite3.connect(ledger)) as database:
        return sorted(id for (id,) in database.execute("select id from effect"))
