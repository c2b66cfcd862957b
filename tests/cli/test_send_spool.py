"""``eoq send --spool`` in a real shell: with a daemon, without one, and while the daemon is killed repeatedly."""

from __future__ import annotations

import socket as sockets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.integration.spools import arrivals, texts, waiting
from tests.support import Daemon, Ran, Shell, eventually, running_daemon

MEBIBYTE: Final = 1024 * 1024


@pytest.fixture
def spool(folder: Path) -> Path:
    """A spool that does not exist yet."""
    return folder / "spool"


@pytest.fixture
def alone(folder: Path) -> Shell:
    """A shell without a daemon."""
    return Shell(folder / "none", folder)


@pytest.fixture
def spooling(spool: Path) -> Iterator[Daemon]:
    """A daemon that reads the spool."""
    with running_daemon("--spool", str(spool)) as daemon:
        yield daemon


def _arrived(spool: Path, queue: str, count: int) -> list[eoq.Message]:
    """Start a daemon with the spool, and return the messages that it stores."""
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: waiting(spool, queue) == [])
        return arrivals(client, queue, count)


def test_without_a_daemon_the_message_is_spooled_and_the_command_says_so(alone: Shell, spool: Path) -> None:
    began = time.monotonic()
    ran = alone.run(f"eoq send q 'hello world' --spool {spool}")
    assert time.monotonic() - began < 20, "it does not wait for a daemon that does not run"
    assert ran.status == 0
    assert f"in the spool, on disk, until a daemon runs with --spool {spool}" in ran.errors
    (message,) = _arrived(spool, "q", 1)
    assert (ran.text, message.text) == (f"{message.id}\n", "hello world")


@pytest.mark.slow
def test_a_running_daemon_gets_the_message(shell: Shell, shared_daemon: Daemon, spool: Path, queue: str) -> None:
    ran = shell.run(f"eoq send {queue} x --id m --spool {spool} --json")
    assert (ran.status, ran.errors, ran.rows) == (0, "", [{"id": "m", "duplicate": False}])
    assert shell.run(f"eoq send {queue} x --id m --spool {spool} --json").rows == [{"id": "m", "duplicate": True}]
    ran = shell.run(f"eoq send {queue} other --id m --spool {spool}")
    assert ran.status == 65, "only an absent daemon is a reason"
    ran = shell.run(f"seq 1000 | eoq send {queue} --lines --spool {spool} | wc -l")
    assert (ran.text.strip(), ran.errors) == ("1000", "")
    assert not spool.exists()


def test_all_options_are_spooled_with_the_message(alone: Shell, spool: Path) -> None:
    options = "--id m --priority -5 --group g --header a=1 --header b==2="
    ran = alone.run(f"eoq send q --spool {spool} --json {options}", bytes(range(256)))
    assert ran.rows == [{"id": "m", "spooled": True}]
    (message,) = _arrived(spool, "q", 1)
    assert (message.id, message.priority, message.group, message.body) == ("m", -5, "g", bytes(range(256)))
    assert message.headers == {"a": "1", "b": "=2="}


@pytest.mark.slow
def test_lines_are_spooled_in_their_order(alone: Shell, spool: Path) -> None:
    ran = alone.run(f"seq 1000 | eoq send q --lines --spool {spool} --group g")
    assert ran.status == 0
    assert "1,000 messages are in the spool" in ran.errors
    ran_json = alone.run(
        f"eoq send j --jsonl --spool {spool} --json", b'{"body": {"a": 1}, "id": "m"}\n{"body": "x"}\n'
    )
    assert [row["spooled"] for row in ran_json.rows] == [True, True]
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: waiting(spool, "q") == [] == waiting(spool, "j"))
        assert client.ask("peek", queue="q", limit=1)["messages"][0]["body"] == "1"
        taken: list[eoq.Message] = []
        while messages := client.receive("q", 1000):
            client.ack_many([(message, None) for message in messages])
            taken += messages
        assert texts(taken) == [f"{number}" for number in range(1, 1001)]
        assert [message.id for message in taken] == ran.lines
        first, second = arrivals(client, "j", 2)
        assert (first.id, first.json(), second.text) == ("m", {"a": 1}, "x")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("eoq send q x --wait 1", 2),
        ("eoq send a/b x", 2),
        ("eoq send q x --delay 1 --at 5", 2),
        (f"head -c {MEBIBYTE + 1} /dev/zero | eoq send q", 65),
        ("eoq send q x --id $'\\n'", 65),
        ("eoq send q x --header a=$(head -c 70000 /dev/zero | tr '\\0' x)", 65),
        ('echo \'{"body": 1, "idd": 1}\' | eoq send q --jsonl', 65),
    ],
)
@pytest.mark.first_by_default
def test_errors_are_printed_before_anything_is_written(alone: Shell, spool: Path, command: str, status: int) -> None:
    ran = alone.run(f"{command} --spool {spool}")
    assert (ran.status, ran.text) == (status, "")
    assert list(spool.parent.iterdir()) == []


def test_a_bad_line_is_named(alone: Shell, spool: Path) -> None:
    ran = alone.run(f"eoq send q --jsonl --spool {spool}", b'{"body": 1}\n{"body": 2, "id": ""}\n')
    assert ran.status == 65
    assert "line 2" in ran.errors


def test_if_the_spool_cannot_be_used_both_errors_are_printed(alone: Shell, spool: Path) -> None:
    spool.mkdir()
    (spool / "q").symlink_to("..")
    ran = alone.run(f"eoq send q x --spool {spool}")
    assert (ran.status, ran.text) == (77, "")
    assert "cannot reach the daemon" in ran.errors
    assert f"{spool / 'q'}' cannot be used" in ran.errors


@pytest.mark.slow
def test_the_variable_of_the_spool_is_for_the_daemon_only(alone: Shell, spool: Path) -> None:
    """A variable must not change the meaning of a successful send."""
    assert alone.run("eoq send q x", EOQ_SPOOL=str(spool)).status == 69
    try:
        assert alone.run("eoq start", EOQ_SPOOL="spool").status == 0
        (status,) = alone.run("eoq status --json").rows
        assert status["spool"] == str(spool)
        ran = alone.run("eoq status")
        assert ["spool", str(spool)] in [line.split() for line in ran.lines]
        assert alone.run(f"mkdir {spool}/q && echo hi > {spool}/q/.x && mv {spool}/q/.x {spool}/q/x").status == 0
        assert alone.run("eoq receive q --wait 60 --ack").text == "hi\n"
    finally:
        assert alone.run("eoq stop").status == 0


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_shells_send_while_the_daemon_is_killed_and_each_message_is_stored_once(
    spooling: Daemon, spool: Path, rounds: int
) -> None:
    script = f"""
        for number in $(seq 1000000); do
          [ -e stop-{{0}} ] && exit 0
          eoq send q "{{0}}-$number" --group {{0}} --spool {spool} || exit
        done
    """
    shells = ("a", "b", "c")
    ran: dict[str, Ran] = {}

    def send(name: str) -> None:
        ran[name] = spooling.shell().run(script.format(name), timeout=120 + 3 * rounds)

    threads = [threading.Thread(target=send, args=(name,)) for name in shells]
    for thread in threads:
        thread.start()
    for turn in range(rounds):
        before = _stored(spooling)
        while _stored(spooling) == before:  # the threads are joined below, and have a time limit
            assert any(thread.is_alive() for thread in threads)
        spooling.kill()
        if turn % 2:
            eventually(lambda: waiting(spool, "q"), what="something is left in the spool")
        spooling.start()
    for name in shells:
        (spooling.folder / f"stop-{name}").touch()
    for thread in threads:
        thread.join(120)
    assert {name: one.status for name, one in ran.items()} == dict.fromkeys(shells, 0)
    with eoq.connect(spooling.socket) as client:
        eventually(lambda: waiting(spool, "q") == [])
        found: list[eoq.Message] = []
        while client.ask("queues")["queues"][0]["ready"]:
            messages = client.receive("q", 1000)
            client.ack_many([(message, None) for message in messages])
            found += messages
    assert sorted(message.id for message in found) == sorted(id for one in ran.values() for id in one.lines)
    assert len(set(texts(found))) == len(found)
    assert any("in the spool" in one.errors for one in ran.values())


def _stored(daemon: Daemon) -> int:
    (counts,) = daemon.ask(op="queues")["queues"] or [{"ready": 0, "blocked": 0}]
    return int(counts["ready"] + counts["blocked"])


@pytest.mark.slow
def test_a_daemon_that_hangs_does_not_block_a_send(alone: Shell, spool: Path) -> None:
    """It accepts connections and does not answer."""
    with sockets.socket(sockets.AF_UNIX) as mute:
        mute.bind(str(alone.socket))
        mute.listen()
        ran = alone.run(f"eoq send q x --spool {spool}")
    assert ran.status == 0
    assert "in the spool" in ran.errors
    (file,) = (spool / "q").iterdir()
    assert b'"tried_at":' in file.read_bytes(), "it may have arrived"
