"""Turns: requests that have to wait get their turn, also where others never stop sending. The disk is slow."""

from __future__ import annotations

import select
import signal
import socket as sockets
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Final

import pytest

from tests.faults.daemons import await_read, leased_between_commits, paced_daemon, planted_daemon
from tests.faults.planted_daemon import Plant
from tests.support import PATIENCE, Daemon, Wire, eventually, running_daemon

NOTHING: Final = {"op": "receive", "queue": "nothing"}
SLOW: Final = Plant(commit_seconds=0.05)
"""So that the clients here have sent their next request before the daemon has finished with the others."""


@pytest.mark.slow
def test_a_long_line_has_its_turn_while_others_keep_the_writer_busy() -> None:
    """Each purge is as much work as 500 messages, so that these clients alone are more than the daemon begins at once.

    A short line of a client with nothing else under way passes. A long one waits for less work, which there never is.
    """
    with planted_daemon(SLOW) as daemon, ExitStack() as stack:
        hogs = {wire.socket: wire for wire in (stack.enter_context(daemon.wire()) for _ in range(40))}
        other = stack.enter_context(daemon.wire())
        turns = {socket: number for number, socket in enumerate(hogs)}
        sends = [{"queue": f"h{number}", "body": "x"} for number in range(len(hogs))]
        assert other.ask({"op": "settle", "send": sends})["ok"]
        for socket in hogs:
            _send_or_purge(hogs[socket], turns, socket)
        eventually(lambda: select.select(list(hogs), [], [], 0)[0])
        other.send({"op": "send", "queue": "other", "body": "x" * 5000})
        served, answered = 0, 0
        while answered < 1:
            assert served < 400, "it waits for ever"
            for socket in select.select([*hogs, other.socket], [], [], 20)[0]:
                if socket is other.socket:
                    answered += socket.recv(10_000).count(b"\n")
                else:
                    assert hogs[socket].read()["ok"]
                    _send_or_purge(hogs[socket], turns, socket)
                    served += 1


@pytest.mark.slow
def test_requests_that_come_one_by_one_wait_as_well_while_much_is_under_way() -> None:
    """A client that sends each line alone has no more under way than one that sends all at once."""
    pairs = 30  # what the socket takes while the daemon reads nothing more of it
    with paced_daemon() as (daemon, pace), daemon.wire() as hog, daemon.wire() as other, daemon.wire() as third:
        assert other.ask({"op": "send", "queue": "h", "body": "x"})["ok"]
        pace.hold()  # so that all of them are under way, however long it takes to send them
        for _ in range(pairs):
            for request in ({"op": "send", "queue": "h", "body": "x"}, {"op": "purge", "queue": "h"}):
                hog.send(request)
                assert third.ask({"op": "status"})["ok"]
        other.send({"op": "send", "queue": "other", "body": "x"})
        await_read(daemon)
        pace.release()
        assert other.read()["ok"]
        assert all(hog.read()["ok"] for _ in range(2 * pairs))
        (message,) = other.ask({"op": "receive", "queue": "other"})["messages"]
        assert message["seq"] < 2 + pairs // 2, "half of its requests at most came before"


def _send_or_purge(wire: Wire, turns: dict[sockets.socket, int], socket: sockets.socket) -> None:
    """Send a message to a queue, or purge it, in turns: a purge without a message would not wait for the disk."""
    turns[socket] += 1
    queue = f"h{list(turns).index(socket)}"
    wire.send({"op": "purge", "queue": queue} if turns[socket] % 2 else {"op": "send", "queue": queue, "body": "x"})


@pytest.mark.slow
def test_a_client_with_one_request_does_not_stand_behind_those_with_many() -> None:
    """More receives are asked for than there are bytes for replies. A client with nothing else under way is next."""
    count, began = 120, 64
    with planted_daemon(Plant(commit_seconds=0.2)) as daemon, ExitStack() as stack:
        messages = [{"id": f"{number}", "body": "x"} for number in range(1000)]
        assert daemon.ask(op="send_many", queue="q", messages=messages)["ok"]
        hogs = [stack.enter_context(daemon.wire()) for _ in range(count)]
        other = stack.enter_context(daemon.wire())
        # Not asked by `other`: a socket that was ready last may be looked at first when the daemon goes on.
        eventually(lambda: daemon.ask(op="status")["connections"] == count + 2)
        receive = {"op": "receive", "queue": "q"}
        daemon.signal(signal.SIGSTOP)
        for hog in hogs:  # while its send is under way, its receives have to wait
            hog.send({"op": "send", "queue": "h", "body": "x"}, *[receive] * 5)
        other.send(receive)
        daemon.signal(signal.SIGCONT)
        assert int(other.read()["messages"][0]["id"]) < began + count // 2


@pytest.mark.slow
def test_receives_that_find_nothing_leave_their_bytes_to_others_while_messages_come() -> None:
    """Hundreds of receives wait for a queue into which a client sends. A receive of another queue is not held up."""
    with running_daemon() as daemon, ExitStack() as stack:
        idle, other = stack.enter_context(daemon.wire()), stack.enter_context(daemon.wire())
        wait = {"op": "receive", "queue": "w", "wait": 900}
        idle.send(*[wait] * 250)
        eventually(lambda: daemon.ask(op="status")["waiting"] == 250)
        sender, *hogs = (stack.enter_context(daemon.wire()) for _ in range(9))
        begin: list[Callable[[], None]] = [partial(hog.send, *[wait] * 250) for hog in hogs]
        assert _most_meanwhile(sender, {"op": "send", "queue": "w", "body": "x"}, other, begin) < 25


@pytest.mark.slow
def test_large_messages_come_back_in_steps() -> None:
    """SQLite writes a body again with its message. So those of one release are not all in one transaction."""
    count = 12
    with paced_daemon() as (daemon, pace), daemon.wire() as hog, daemon.wire() as other:
        receipts = _lease_large(hog, count)
        pace.hold()
        hog.send({"op": "release", "receipts": receipts})
        seen = leased_between_commits(pace, other)
        assert len(seen - {count}) >= 3, "another client was answered between the steps"
        assert hog.read()["ok"]
        queues = {queue["name"]: queue for queue in other.ask({"op": "queues"})["queues"]}
        assert queues["large"]["ready"] == count
        messages = [hog.ask({"op": "receive", "queue": "large"})["messages"][0] for _ in range(count)]
        assert [message["id"] for message in messages] == [f"{number}" for number in range(count)]
        assert {message["attempt"] for message in messages} == {1}


@pytest.mark.slow
def test_large_dead_letters_are_redriven_in_steps(daemon: Daemon) -> None:
    count = 12
    with daemon.wire() as wire:
        for receipt in _lease_large(wire, count):
            assert wire.ask({"op": "reject", "receipt": receipt})["ok"]
        first = wire.ask({"op": "redrive", "queue": "large", "all": True})
        assert 0 < len(first["ids"]) < count
        rest = [f"{number}" for number in range(len(first["ids"]), count)]
        named = wire.ask({"op": "redrive", "queue": "large", "ids": [*rest, "unknown"]})
        assert named["ids"] == rest
        assert named["missing"] == ["unknown"]
        assert wire.ask({"op": "redrive", "queue": "large", "all": True, "after": first["after"]})["ids"] == []
        (queue,) = wire.ask({"op": "queues"})["queues"]
        assert (queue["ready"], queue["dead"]) == (count, 0)


def _lease_large(wire: Wire, count: int) -> list[str]:
    """Send messages of a mebibyte, lease them, and return their receipts."""
    for number in range(count):
        assert wire.ask({"op": "send", "queue": "large", "id": f"{number}", "body": "x" * 1_000_000})["ok"]
    receipts: list[str] = []
    while len(receipts) < count:
        messages = wire.ask({"op": "receive", "queue": "large", "limit": count})["messages"]
        receipts += [message["receipt"] for message in messages]
    return receipts


def _most_meanwhile(
    sender: Wire, request: dict[str, str], other: Wire, begin: list[Callable[[], None]], count: int = 400
) -> int:
    """Make ``count`` requests over ``sender``, one after the other, and receives that find nothing over ``other``.

    Call the functions of ``begin`` meanwhile. Return how many of the requests were answered while one receive was not,
    at most. Both replies are looked for by one thread, the receive's first. So it does not matter when this process has
    its turn.
    """
    most = meanwhile = 0
    sender.send(request)
    other.send(NOTHING)
    while count:
        ready = select.select([sender.socket, other.socket], [], [], PATIENCE)[0]
        assert ready
        if other.socket in ready:
            assert other.read()["messages"] == []
            other.send(NOTHING)
            meanwhile = 0
        else:
            assert sender.read()["ok"]
            sender.send(request)
            meanwhile += 1
            most = max(most, meanwhile)
            count -= 1
            while begin and most > 0:
                begin.pop()()
    return most


@pytest.mark.slow
def test_a_daemon_that_stops_waits_until_the_leases_of_all_connections_have_ended() -> None:
    """The work for each connection takes a turn of the event loop. The daemon's commits are as quick as can be."""
    count = 100
    with planted_daemon(Plant(quick_commit=1000.0, close_seconds=0.005)) as daemon, ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire()) for _ in range(count)]
        assert daemon.ask(op="send_many", queue="q", messages=[{"body": ""}] * count)["ok"]
        for wire in wires:
            wire.send({"op": "receive", "queue": "q", "bound": True})
        for wire in wires:
            assert wire.read()["messages"]
        assert _deliveries(daemon) == count
        assert daemon.terminate() == 0
        assert _deliveries(daemon) == 0


def _deliveries(daemon: Daemon) -> int:
    """Return how many deliveries the file says that are open."""
    with closing(sqlite3.connect(f"file:{daemon.db}?mode=ro", uri=True)) as database:
        return int(database.execute("select count(*) from delivery").fetchone()[0])
