"""Processes that sleep between two steps, for longer than the daemon remembers ids: nothing is sent twice.

A short retention stands for seven days, and SIGSTOP for a laptop whose lid was closed.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.client.aio import connect_async
from eoq.ids import new_id
from eoq.outbox.relay import Relay
from tests.faults import planted_client, planted_relay
from tests.support import PATIENCE, Daemon, clean_environment, eventually, running_daemon

RETENTION: Final = 6.0
POINTS: Final = (
    "before reading",
    "after reading",
    "marks are committed",
    "the request has left",
    "the daemon has committed",
    "after the reply",
    "removal is committed",
)
"""Where a relay may be stopped without a lock on the application's file."""
BOUND: Final = "[[bind]]\ntopic = 'orders'\nqueue = 'mail'\n"
CALLS: Final = [(kind, how) for kind in ("blocking", "asyncio") for how in ("send", "send_many", "transaction")]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that forgets settled ids after a few seconds."""
    config = tmp_path / "eoq.toml"
    config.write_text(f'[queues."*"]\nretention = {RETENTION}\n')
    with running_daemon("--config", str(config)) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[eoq.Client]:
    with eoq.connect(daemon.socket) as client:
        yield client


class Sleeper:
    """A process that stops itself at a planted point."""

    def __init__(self, stack: ExitStack, script: str, *arguments: object) -> None:
        command = [sys.executable, script, *map(str, arguments)]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment())
        )
        stack.callback(self._process.kill)

    def await_sleep(self) -> None:
        """Wait until it has stopped itself."""
        state = Path(f"/proc/{self._process.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", what="it stops itself")

    def wake(self) -> str:
        """Let it go on, and return what it says."""
        self._process.send_signal(signal.SIGCONT)
        return self._process.communicate(timeout=PATIENCE)[0].strip()


def _forget(client: eoq.Client, *queues: str) -> None:
    """Wait until the daemon has forgotten the message of each queue."""

    def is_forgotten(queue: str) -> bool:
        try:
            client.ask("show", queue=queue, id="m")
        except eoq.NotFound:
            return True
        return False

    eventually(lambda: all(map(is_forgotten, queues)), what="the ids are forgotten")


def _settle(client: eoq.Client, queue: str) -> list[str]:
    """Ack all that waits in a queue. Return the ids."""
    messages = client.receive(queue, 10)
    for message in messages:
        message.ack()
    return [message.id for message in messages]


@pytest.mark.slow
def test_a_relay_that_slept_at_any_point_sends_nothing_twice(
    daemon: Daemon, client: eoq.Client, tmp_path: Path
) -> None:
    files = {f"q{number}": tmp_path / f"{number}.db" for number in range(len(POINTS))}

    async def flush(file: Path) -> None:
        async with connect_async(daemon.socket) as other:
            await Relay(file, other).flush()

    with ExitStack() as stack:
        sleepers = []
        for (queue, file), point in zip(files.items(), POINTS, strict=True):
            with closing(sqlite3.connect(file)) as database, database:
                eoq.Outbox(database).send(queue, b"", id="m")
            script = planted_relay.__file__
            sleepers.append(Sleeper(stack, script, file, daemon.socket, queue, point, "stop"))
            sleepers[-1].await_sleep()
            asyncio.run(flush(file))  # while it is fresh: another relay does its work
        assert [_settle(client, queue) for queue in files] == [["m"]] * len(files)
        _forget(client, *files)
        for sleeper in sleepers:
            sleeper.wake()
        assert [_settle(client, queue) for queue in files] == [[]] * len(files)


@pytest.mark.slow
def test_a_client_that_slept_before_its_repeat_stores_nothing_twice(daemon: Daemon, client: eoq.Client) -> None:
    with ExitStack() as stack:
        sleepers = [
            Sleeper(stack, planted_client.__file__, daemon.socket, f"{kind}.{how}", kind, how) for kind, how in CALLS
        ]
        for sleeper in sleepers:
            sleeper.await_sleep()
        queues = [f"{kind}.{how}" for kind, how in CALLS]
        assert [_settle(client, queue) for queue in queues] == [["m"]] * len(queues)
        _forget(client, *queues)
        assert [sleeper.wake() for sleeper in sleepers] == ["too_late"] * len(sleepers)
        assert [_settle(client, queue) for queue in queues] == [[]] * len(queues)


def test_a_client_that_did_not_sleep_repeats_and_is_told_of_the_duplicate(daemon: Daemon, client: eoq.Client) -> None:
    with ExitStack() as stack:
        sleeper = Sleeper(stack, planted_client.__file__, daemon.socket, "q", "blocking", "send")
        sleeper.await_sleep()
        assert sleeper.wake() == "sent"
        assert _settle(client, "q") == ["m"]


def test_a_file_in_the_folder_of_a_topic_goes_by_the_retention_behind_it(tmp_path: Path) -> None:
    """The name of the folder has the default retention, of days. The queue behind it remembers for seconds."""
    config, spool = tmp_path / "eoq.toml", tmp_path / "spool"
    config.write_text(f"[queues.mail]\nretention = 100\n{BOUND}")
    _leave_tried(spool, "orders", 95)
    with running_daemon("--spool", str(spool), "--config", str(config)):
        _await_rejected(spool, "orders")


@pytest.mark.parametrize("folder", ["orders", "mail"])
def test_a_longer_retention_does_not_bring_forgotten_ids_back(tmp_path: Path, folder: str) -> None:
    """A file that comes too late for the shorter retention is rejected under the longer one as well."""
    config, spool = tmp_path / "eoq.toml", tmp_path / "spool"
    config.write_text(f"[queues.mail]\nretention = 100\n{BOUND}")
    with running_daemon("--spool", str(spool), "--config", str(config)) as daemon:
        config.write_text(f"[queues.mail]\nretention = 1000000\n{BOUND}")
        for _ in range(2):  # the second start has only what the first one has noted
            daemon.terminate()
            daemon.start()
            assert 80 < daemon.ask(op="status")["remembers"] < 1000
        daemon.terminate()
        _leave_tried(spool, folder, 95)
        daemon.start()
        _await_rejected(spool, folder)
        daemon.terminate()
        _leave_tried(spool, folder, 10)
        daemon.start()
        with eoq.connect(daemon.socket) as client:
            assert eventually(lambda: client.receive("mail"))


def test_a_longer_retention_counts_as_soon_as_nothing_older_may_be_forgotten(tmp_path: Path) -> None:
    """It is put in force while the daemon runs, and the seconds that pass count from then on."""
    config = tmp_path / "eoq.toml"
    config.write_text("[queues.mail]\nretention = 7\n")
    with running_daemon("--config", str(config)) as daemon:
        assert daemon.ask(op="status")["remembers"] == pytest.approx(6)
        config.write_text("[queues.mail]\nretention = 14\n")
        begun = time.monotonic()
        daemon.signal(signal.SIGHUP)
        eventually(lambda: daemon.ask(op="status")["remembers"] == pytest.approx(12))
        assert time.monotonic() - begun > 5.9, "what is older than 6 s then may be forgotten"
        config.write_text("[queues.mail]\nretention = 7\n")
        daemon.signal(signal.SIGHUP)
        eventually(lambda: daemon.ask(op="status")["remembers"] == pytest.approx(6))


def _leave_tried(spool: Path, folder: str, seconds: float) -> None:
    """Leave a file in the spool that a daemon has tried to send ``seconds`` ago, before it was killed."""
    taking = spool / folder / ".taking"
    taking.mkdir(parents=True, mode=0o700, exist_ok=True)
    milliseconds = round((time.time() - seconds) * 1000)
    token = f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}{new_id()[13:]}"
    (taking / f"{token}.x").write_text("charge alice")


def _await_rejected(spool: Path, folder: str) -> None:
    """Wait until the file is rejected, with the reason."""
    reason = spool / folder / ".rejected" / "x.reason"
    eventually(lambda: reason.exists() and reason.read_text(), what="the file is rejected with a reason")
    assert "stored twice" in reason.read_text()


def test_a_repeated_purge_drops_only_what_the_first_one_saw(daemon: Daemon, client: eoq.Client) -> None:
    client.send_many("q", [b"old"] * 3)

    code = """
import sys
import eoq
from eoq.transport.connection import Connection

finish, lost = Connection.finish, []

def finishing(connection, rids, deadline):
    replies = finish(connection, rids, deadline)
    if not lost and "count" in replies[0]:
        lost.append(replies)
        with eoq.connect(sys.argv[1]) as other:
            other.send("q", b"new", id="new")
        connection.close("planted")
        return finish(connection, connection.start([{"op": "status"}], deadline), deadline)
    return replies

Connection.finish = finishing
with eoq.connect(sys.argv[1]) as client:
    client.purge("q")
assert lost
"""
    subprocess.run([sys.executable, "-c", code, str(daemon.socket)], check=True, timeout=PATIENCE)
    assert _settle(client, "q") == ["new"]


@pytest.mark.parametrize("op", ["drop", "redrive"])
@pytest.mark.first_by_default
def test_a_repeated_change_of_all_dead_letters_changes_only_what_the_first_one_saw(
    daemon: Daemon, client: eoq.Client, op: str
) -> None:
    """One of them is older than those that the first request has seen, and died after it."""
    client.send_many("q", [eoq.Outgoing(b"", id="slow"), eoq.Outgoing(b"", id="dead")])
    slow, dead = client.receive("q", 2)
    dead.reject("no such account")
    code = """
import sys
import eoq
from eoq.transport.connection import Connection

path, op, receipt = sys.argv[1:]
finish, lost = Connection.finish, []

def finishing(connection, rids, deadline):
    replies = finish(connection, rids, deadline)
    if not lost and "missing" in replies[0]:
        lost.append(replies)
        with eoq.connect(path) as other:
            other.ask("reject", receipt=receipt)
        connection.close("planted")
        return finish(connection, connection.start([{"op": "status"}], deadline), deadline)
    return replies

Connection.finish = finishing
with eoq.connect(path) as client:
    getattr(client, op)("q", everything=True)
assert lost
"""
    command = [sys.executable, "-c", code, str(daemon.socket), op, slow.receipt]
    subprocess.run(command, check=True, timeout=PATIENCE)
    assert client.show("q", "slow")["state"] == "dead"
    assert client.show("q", "dead")["state"] == ("dropped" if op == "drop" else "ready")
