"""Trouble of the storage that does not stop the daemon: `status` and the log say it, with who causes it (G1)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.server.connection import MAX_IN_FLIGHT
from eoq.daemon.store.sqlite.database import LOCK_SECONDS
from tests.support import Daemon, eventually, python_process, read_line_of

HOLDER: Final = """
import signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(sys.argv[2])
database.execute("select count(*) from message").fetchone()
print("has it", flush=True)
signal.pause()
"""


@contextmanager
def _other_program(database: Path, begin: str) -> Iterator[int]:
    """Let another process begin a transaction in the daemon's file. Yield its process id."""
    with python_process(HOLDER, str(database), begin) as process:
        assert read_line_of(process) == b"has it\n"
        yield process.pid


def _storage_errors(daemon: Daemon) -> list[str]:
    errors: list[str] = daemon.ask(op="status")["storage_errors"]
    return errors


def test_a_lock_of_another_program_makes_senders_wait_and_nobody_else(daemon: Daemon) -> None:
    with daemon.wire() as wire:
        with _other_program(daemon.db, "begin immediate"):
            wire.send({"op": "send", "queue": "q", "id": "a", "body": "x"})
            for _ in range(5):
                assert daemon.ask(op="status")["ok"]
            assert wire.silent(0.1), "the sender still waits when the others were answered"
        assert wire.read()["ok"]
    with eoq.connect(daemon.socket) as client:
        assert client.send("q", "x", id="a").duplicate
    assert _storage_errors(daemon) == []


def test_the_log_stays_short_where_each_second_transaction_writes_nothing(daemon: Daemon) -> None:
    """Only a transaction that has written something writes the log back."""
    with daemon.wire() as wire:
        assert wire.ask({"op": "send", "queue": "empty", "body": "x"})["ok"]
        for number in range(100):
            messages = [{"id": f"{number} {each}", "body": "x" * 1000} for each in range(200)]
            assert wire.ask({"op": "send_many", "queue": "q", "messages": messages})["ok"]
            assert wire.ask({"op": "purge", "queue": "empty"})["ok"]
        assert wire.ask({"op": "status"})["log_bytes"] < 8_000_000


@pytest.mark.slow
def test_a_lock_that_stays_is_an_error_that_names_its_holder(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket, timeout=3 * LOCK_SECONDS) as client:
        with _other_program(daemon.db, "begin immediate") as pid:
            with pytest.raises(eoq.StorageFailed, match=rf"locked by .*\(pid {pid}\), so nothing was changed"):
                client.send("q", "x", id="a")
            (error,) = _storage_errors(daemon)
            assert f"(pid {pid})" in error
            assert error in daemon.said
        assert not client.send("q", "x", id="a").duplicate
        assert _storage_errors(daemon) == []


@pytest.mark.slow
def test_a_reader_that_keeps_the_log_from_shrinking_is_named(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        with _other_program(daemon.db, "begin") as pid:
            client.send("q", "x")

            def reported() -> list[str]:
                client.send_many("q", [os.urandom(100_000)] * 10)
                return _storage_errors(daemon)

            (error,) = eventually(reported)
            assert f"(pid {pid})" in error
            assert "grows" in error
            assert daemon.said.count("grows") == 1, "the same trouble is logged once a minute"
        assert client.send("q", "x").duplicate is False


@pytest.mark.slow
def test_a_client_that_leaves_while_its_requests_wait_gives_its_place_free(daemon: Daemon) -> None:
    """Nothing is read from a client with many requests under way, so no event tells that it has disconnected."""
    with daemon.wire() as wire, _other_program(daemon.db, "begin immediate"):
        wire.send({"op": "send", "queue": "q", "id": "a", "body": "x"})
        with daemon.wire() as leaving:
            line = b'{"op":"send","queue":"q","body":"x"}\n'
            leaving.socket.sendall(line * (MAX_IN_FLIGHT + 10))
            eventually(lambda: daemon.ask(op="status")["connections"] == 3)
        eventually(lambda: daemon.ask(op="status")["connections"] == 2)
        assert wire.silent(0), "the first request still waits for the other program, and those behind it too"
