"""The daemon's configuration file: retention by queue, outboxes it relays, and what it says of a wrong one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from tests.support import Shell, eventually, running_daemon


def test_settled_records_are_forgotten_after_the_retention_of_their_queue(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text('[queues."short.*"]\nretention = 1\n')
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        for queue in ("short.one", "short.two", "long"):
            client.send_many(queue, [eoq.Outgoing(b"", id=str(number)) for number in range(500)])
            client.ack_many([(message, None) for message in client.receive(queue, 500)])
        client.send("short.one", "dead", id="dead")
        client.receive("short.one")[0].reject()
        eventually(lambda: client.result("short.one", "499") is None and client.result("short.two", "0") is None)
        assert client.result("long", "499") is not None
        dead = client.result("short.one", "dead")
        assert dead is not None and dead.outcome == "dead"
        # An id that is forgotten is new again, and its place is one that was never used.
        last = client.ask("show", queue="short.one", id="dead")["message"]["seq"]
        assert not client.send("short.two", b"", id="499").duplicate
        assert client.ask("show", queue="short.two", id="499")["message"]["seq"] > last
        daemon.kill()
        daemon.restart()
        client.send("short.two", b"", id="after")
        assert client.ask("show", queue="short.two", id="after")["message"]["seq"] > last + 1


def test_a_seq_is_not_used_twice_when_the_last_are_forgotten(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text("[queues.q]\nretention = 0\n")
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", b"", id="a")
        (message,) = client.receive("q")
        message.ack()
        eventually(lambda: client.result("q", "a") is None)
        daemon.kill()
        daemon.restart()
        client.send("q", b"", id="b")
        (after,) = client.receive("q")
        assert after.seq > message.seq
        assert after.watermark == after.seq


def test_the_daemon_relays_an_outbox_by_itself_also_one_that_comes_later(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text('[[relay]]\npath = "there.db"\n[[relay]]\npath = "later.db"\n')
    with closing(sqlite3.connect(folder / "there.db")) as there:
        outbox = eoq.Outbox(there)
        with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
            with there:
                outbox.send("q", "there")
            assert client.receive("q", wait=20)[0].text == "there"
            with closing(sqlite3.connect(folder / "later.db")) as later, later:
                eoq.Outbox(later).send("q", "later")
            assert client.receive("q", wait=20)[0].text == "later"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[queues", "no TOML"),
        ("[queues.q]\nretentoin = 1", "retentoin"),
        ("[queues.q]\nretention = -1", "retention"),
        ('[queues.q]\nretention = "long"', "retention"),
        ("[[relay]]\npath = 1", "path"),
        ("unknown = 1", "unknown"),
    ],
)
def test_a_wrong_file_is_told_at_the_start(shell: Shell, folder: Path, text: str, word: str) -> None:
    config = folder / "eoq.toml"
    config.write_text(text)
    ran = shell.run(f"eoq daemon --db {folder}/x.db --socket {folder}/x --config {config}")
    assert ran.status == 65
    assert word in ran.errors
    assert "Traceback" not in ran.errors
    assert shell.run(f"eoq daemon --config {folder}/none.toml").status == 2
