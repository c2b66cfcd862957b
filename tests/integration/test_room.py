"""What is over makes room: the file gives it back, and results and dead letters go when their settings say so."""

from __future__ import annotations

from pathlib import Path

import pytest

import eoq
from tests.support import eventually, running_daemon

MANY = 200
LARGE = 100_000
"""Together 20 MB, which is more than the file keeps for the next messages."""


@pytest.mark.slow
def test_the_file_shrinks_when_its_messages_are_settled() -> None:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        client.send_many("q", [bytes(LARGE)] * MANY)
        received = 0
        while messages := client.receive("q", 20):
            client.ack_many([(message, None) for message in messages])
            received += len(messages)
        assert received == MANY
        assert daemon.db.stat().st_size > MANY * LARGE / 2
        client.send("other", b"x", id="kept")
        eventually(lambda: daemon.db.stat().st_size < 12_000_000 or client.send("tick", b"").duplicate, seconds=60)
        assert [message.id for message in client.receive("other")] == ["kept"]


def test_results_and_dead_letters_go_before_ids(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text('[queues."*"]\nresult_retention = 3\ndead_retention = 3\n')
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing("x", id="done"), eoq.Outgoing("x", id="dead")])
        done, dead = client.receive("q", 2)
        done.ack("result")
        assert client.result("q", "done") == eoq.Result("done", b"result")
        dead.reject("no")
        eventually(lambda: client.result("q", "done") == eoq.Result("done"), what="the result goes")
        eventually(lambda: client.show("q", "dead")["state"] == "dropped", what="the dead letter goes")
        assert client.send("q", "x", id="done").duplicate
        assert client.send("q", "x", id="dead").duplicate
        eventually(lambda: "1 dead letters dropped (dead_retention)" in daemon.said, what="it says so")


def test_the_newest_dead_letters_are_kept(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text("[queues.q]\nmax_dead = 2\nresult_retention = 1\n")
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing("x", id=id) for id in "abcd"])
        for message in client.receive("q", 4):
            message.reject("no")
        eventually(lambda: [one["id"] for one in client.peek("q", state="dead")] == ["c", "d"], what="the older go")
