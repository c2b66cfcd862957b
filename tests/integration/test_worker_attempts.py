"""What counts an attempt in a worker: only what was handled, and no locked file, full disk or absent service."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import eoq
from eoq.worker.reports import ALIKE, FIRST_PAUSE
from tests.support import PATIENCE, Daemon, eventually, running_daemon


@pytest.fixture
def strict() -> Iterator[Daemon]:
    """A daemon whose messages have one attempt."""
    with running_daemon("--max-attempts", "1") as daemon:
        yield daemon


@pytest.fixture
def client(strict: Daemon) -> Iterator[eoq.Client]:
    with eoq.connect(strict.socket) as client:
        yield client


@pytest.fixture
def file(strict: Daemon) -> Path:
    path = strict.folder / "app.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            """
            pragma journal_mode = wal;
            create table account (id text primary key);
            create table booking (id text, account text references account (id) deferrable initially deferred);
            insert into account values ('alice');
            """
        )
    return path


def _states(client: eoq.Client, queue: str = "q") -> dict[str, int]:
    (row,) = [row for row in client.ask("queues")["queues"] if row["name"] == queue]
    return {state: row[state] for state in ("ready", "leased", "delayed", "dead")}


def _book(tx: Any, message: eoq.Message) -> None:
    tx.execute("insert into booking values (?, ?)", (message.id, message.text))


def test_a_commit_that_one_message_makes_fail_costs_the_others_nothing(client: eoq.Client, file: Path) -> None:
    """The violation of a deferred constraint shows only at the commit of all."""
    client.send_many("q", [eoq.Outgoing("nobody" if i == 7 else "alice", id=f"m{i}") for i in range(20)])
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("pragma foreign_keys = on")
    with closing(connection), eoq.Inbox(connection) as inbox:
        summary = client.work("q", _book, inbox=inbox, batch=100, prefetch=100, until_empty=True)
        assert summary == eoq.Summary(done=19, retried=1)
        assert connection.execute("select count(*) from booking").fetchone() == (19,)
    assert _states(client)["dead"] == 1
    assert "FOREIGN KEY" in client.ask("show", queue="q", id="m7")["message"]["error"]


def test_a_commit_of_process_many_that_fails_is_tried_one_by_one(client: eoq.Client, file: Path) -> None:
    client.send_many("q", [eoq.Outgoing("nobody" if i == 2 else "alice", id=f"m{i}") for i in range(5)])
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("pragma foreign_keys = on")
    with closing(connection), eoq.Inbox(connection) as inbox:
        results = inbox.process_many(client.receive("q", 10), _book)
        assert [type(result) for result in results] == [type(None)] * 2 + [sqlite3.IntegrityError] + [type(None)] * 2
        assert connection.execute("select id from booking").fetchall() == [("m0",), ("m1",), ("m3",), ("m4",)]
    assert _states(client) == {"ready": 0, "leased": 0, "delayed": 0, "dead": 1}


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.slow
def test_a_locked_file_counts_no_attempt_and_is_logged_once(
    client: eoq.Client, file: Path, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    client.send_many("q", [eoq.Outgoing("alice", id=f"m{i}") for i in range(5)])
    failures: list[sqlite3.OperationalError] = []

    class Counting(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            try:
                return super().execute(sql, *parameters)
            except sqlite3.OperationalError as error:
                failures.append(error)
                raise

    def unlock() -> None:
        eventually(lambda: len(failures) >= 4)
        lock.execute("rollback")

    lock = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection = sqlite3.connect(file, isolation_level=None, timeout=0.01, check_same_thread=False, factory=Counting)
    unlocking = threading.Thread(target=unlock)
    with closing(lock), closing(connection), eoq.Inbox(connection) as inbox:
        lock.execute("begin immediate")
        unlocking.start()
        summary = client.work("q", _book, inbox=inbox, batch=batch, prefetch=10, idle=0.2)
        unlocking.join()
        assert summary.done == 5
        assert summary.retried >= 2
    said = [record.getMessage() for record in caplog.records if "locked" in record.getMessage()]
    assert len(said) == 1
    assert "counts no attempt" in said[0]
    assert _states(client) == {"ready": 0, "leased": 0, "delayed": 0, "dead": 0}


def test_a_locked_file_counts_no_attempt_with_consume(client: eoq.Client, file: Path) -> None:
    client.send("q", "alice", id="m")
    lock = sqlite3.connect(file, isolation_level=None)
    connection = sqlite3.connect(file, isolation_level=None, timeout=0.01)
    with closing(lock), closing(connection), eoq.Inbox(connection) as inbox:
        lock.execute("begin immediate")
        for message in client.consume("q", idle=1):
            if lock.in_transaction:
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    inbox.process(message, _book)
                lock.execute("rollback")
            else:
                inbox.process(message, _book)
        assert connection.execute("select count(*) from booking").fetchone() == (1,)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), eoq.Unavailable("no daemon"), eoq.StorageFull("full")],
    ids=["disk", "daemon", "storage"],
)
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.first_by_default
def test_an_outage_that_a_handler_meets_counts_no_attempt(
    strict: Daemon, client: eoq.Client, error: Exception, kind: str
) -> None:
    client.send_many("q", [eoq.Outgoing(b"", id=f"m{i}") for i in range(3)])
    failures = iter([error] * 2)

    def handler(message: object) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure

    async def work() -> eoq.Summary:
        async def handle(message: eoq.AsyncMessage) -> None:
            handler(message)

        async with eoq.connect_async(strict.socket) as other:
            return await other.work("q", handle, prefetch=3, until_empty=True)

    summary = client.work("q", handler, prefetch=3, until_empty=True) if kind == "blocking" else asyncio.run(work())
    assert (summary.done, summary.retried) == (3, 2)
    assert _states(client)["dead"] == 0


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.first_by_default
def test_a_loop_that_fails_alike_for_all_messages_says_so_once_and_backs_off(
    strict: Daemon, client: eoq.Client, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.send_many("q", [b""] * 500)
    runs: list[float] = []
    enough = threading.Event()

    def handler(message: eoq.Message | eoq.AsyncMessage) -> None:
        runs.append(time.monotonic())
        raise NameError(f"a name that {message.id} does not have")

    async def work() -> None:
        async def handle(message: eoq.AsyncMessage) -> None:
            handler(message)

        async with eoq.connect_async(strict.socket) as other:
            stop = asyncio.Event()
            working = asyncio.create_task(other.work("q", handle, prefetch=50, stop=stop))
            await asyncio.to_thread(eventually, lambda: len(runs) > ALIKE + 1, what="a run after the second pause")
            stop.set()
            await working

    if kind == "blocking":
        thread = threading.Thread(target=lambda: client.work("q", handler, prefetch=50, stop=enough))
        thread.start()
        eventually(lambda: len(runs) > ALIKE + 1, what="a run after the second pause")
        enough.set()
        thread.join()
    else:
        asyncio.run(work())
    assert runs[ALIKE + 1] - runs[ALIKE - 1] > 0.9 * (FIRST_PAUSE + 2 * FIRST_PAUSE)
    said = [record.getMessage() for record in caplog.records if record.name == "eoq.worker"]
    assert len([line for line in said if "failed alike" in line]) == 1
    assert len([line for line in said if "NameError" in line]) == ALIKE
    states = _states(client)
    assert states["dead"] == len(runs)
    assert states["ready"] == 500 - len(runs)


def test_a_loop_goes_on_at_full_speed_once_a_message_is_handled(client: eoq.Client) -> None:
    client.send_many("q", [eoq.Outgoing(b"", id=f"{i:03}") for i in range(3 * ALIKE)])

    def handler(message: eoq.Message) -> None:
        if int(message.id) < ALIKE + 1:
            raise ValueError(message.id)

    summary = client.work("q", handler, prefetch=100, until_empty=True)
    assert summary == eoq.Summary(done=2 * ALIKE - 1, retried=ALIKE + 1)


# ── workers that are killed ─────────────────────────────────────────────────────────────────────────────────

KILLER = """
import os, signal, sys
import eoq

def handle(tx, message):
    if message.id == "poison":
        os.kill(os.getpid(), signal.SIGKILL)

how, socket, app = sys.argv[1:]
with eoq.connect(socket) as client, eoq.Inbox(app) as inbox:
    if how == "consume":
        for message in client.consume("q", prefetch=10, idle=0):
            inbox.process(message, handle)
    else:
        batch = int(how)
        client.work("q", handle, inbox=inbox, batch=batch, prefetch=100, until_empty=True)
"""


@pytest.mark.parametrize("how", ["1", "50", "consume"])
@pytest.mark.slow
def test_a_message_that_kills_its_worker_takes_no_neighbour_with_it(tmp_path: Path, how: str) -> None:
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    with running_daemon("--max-attempts", "3") as daemon, eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"", id="poison"), *(eoq.Outgoing(b"", id=f"m{i}") for i in range(60))])
        for _ in range(12):
            if _states(client)["dead"]:
                break
            command = [sys.executable, str(script), how, str(daemon.socket), str(tmp_path / "app.db")]
            subprocess.run(command, timeout=PATIENCE, check=False)  # it is killed
        client.work("q", lambda message: None, until_empty=True)
        assert _states(client) == {"ready": 0, "leased": 0, "delayed": 0, "dead": 1}
        assert client.ask("show", queue="q", id="poison")["message"]["state"] == "dead"


# ── forks ───────────────────────────────────────────────────────────────────────────────────────────────────


LOOP = """
import os, sys
import eoq

client = eoq.connect(sys.argv[1])
other = eoq.connect(sys.argv[1])
seen = []
for message in client.consume("q", prefetch=6, idle=0.2):
    if not seen:
        pid = os.fork()
        if pid == 0:
            if sys.argv[2] == "exit":
                sys.exit(0)
            break
        os.waitpid(pid, 0)
        assert not other.receive("q", 10), "the child gave messages away"
    message.ack()
    seen.append(message.id)
print(*seen)
"""


@pytest.mark.parametrize("how", ["exit", "break"])
@pytest.mark.first_by_default
def test_the_end_of_a_child_process_gives_none_of_its_parents_messages_away(
    strict: Daemon, client: eoq.Client, how: str
) -> None:
    client.send_many("q", [eoq.Outgoing(b"", id=f"m{i}") for i in range(6)])
    command = [sys.executable, "-c", LOOP, str(strict.socket), how]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert ran.stdout.split() == [f"m{i}" for i in range(6)]
