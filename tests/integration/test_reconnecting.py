"""How clients behave without a daemon, with one that goes away and comes back, and after they were closed."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import eoq
from eoq.message import Delivery
from tests.integration.clients import AnyClient
from tests.support import PATIENCE, Daemon, eventually


def test_without_a_daemon_the_error_comes_at_once_and_names_the_socket(
    connect: Callable[..., AnyClient], folder: Path
) -> None:
    path = folder / "none"
    start = time.monotonic()
    with pytest.raises(eoq.Unavailable, match="eoq start") as caught:
        connect(path).send("q", "x")
    assert time.monotonic() - start < 20  # the timeout of the client is longer
    assert str(path) in str(caught.value)
    assert caught.value.code == "unavailable"


def test_a_stale_socket_is_no_daemon(connect: Callable[..., AnyClient], folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(folder / "s"))
    with pytest.raises(eoq.Unavailable, match="refused"):
        connect(folder / "s").send("q", "x")


def test_a_path_too_long_for_a_socket_is_an_error_that_says_so(connect: Callable[..., AnyClient], folder: Path) -> None:
    with pytest.raises(eoq.EoqError, match="too long"):
        connect(folder / ("x" * 120)).send("q", "x")


@pytest.mark.first_by_default
def test_a_client_that_failed_once_works_when_the_daemon_is_there(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    daemon.terminate()
    client = connect(daemon.socket)
    with pytest.raises(eoq.Unavailable):
        client.send("q", "x")
    daemon.start()
    assert client.send("q", "x", id="m").duplicate is False


@pytest.mark.slow
def test_a_stopped_daemon_is_noticed_within_the_timeout(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket, timeout=5.0) as client:
        client.ask("status")
        daemon.signal(signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(eoq.Unavailable, match="no answer within 5 s"):
                client.send_many("q", ["x"])
            assert time.monotonic() - start < 9.9, "it is waited for once"
        finally:
            daemon.signal(signal.SIGCONT)


@pytest.mark.first_by_default
def test_a_daemon_that_stops_reading_is_noticed_within_the_timeout(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    client = connect(daemon.socket, timeout=2.0)
    client.ask("status")
    daemon.signal(signal.SIGSTOP)
    try:
        with pytest.raises(eoq.Unavailable, match="no answer within 2 s"):
            client.send_many("q", [b"x" * 900_000] * 3)
    finally:
        daemon.signal(signal.SIGCONT)


async def test_a_cancelled_send_to_a_daemon_that_stops_reading_does_not_block_others(daemon: Daemon) -> None:
    async with eoq.connect_async(daemon.socket, timeout=2.0) as client:
        await client.ask("status")
        daemon.signal(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.send("q", b"x" * 900_000)
            with pytest.raises(eoq.Unavailable, match="no answer within 2 s"):
                async with asyncio.timeout(PATIENCE):
                    await client.send("q", "next")
        finally:
            daemon.signal(signal.SIGCONT)


@pytest.mark.slow
def test_a_lost_connection_does_not_make_a_wait_longer(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.ask("status")
    start = time.monotonic()
    restarted: list[float] = []

    def restart() -> None:
        daemon.restart()
        restarted.append(time.monotonic())

    restarting = threading.Timer(4.0, restart)
    restarting.start()
    assert client.receive("q", wait=6.0) == []
    ended = time.monotonic()
    restarting.join()
    assert ended - start > 5.9
    assert ended - restarted[0] < 5.0, "the wait has not begun anew after the restart"


def test_a_complete_reply_is_not_spoiled_by_the_data_behind_it(connect: Callable[..., AnyClient], folder: Path) -> None:
    """A daemon that closes the connection says why, without a rid: for all requests without a reply."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                rid = json.loads(lines.readline())["rid"]
                refusal = {"ok": False, "error": {"code": "overloaded", "message": "too many"}}
                replies = {"rid": rid, "ok": True, "id": "m", "duplicate": False}, refusal
                connection.sendall(b"".join(json.dumps(reply).encode() + b"\n" for reply in replies))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert connect(folder / "s", timeout=PATIENCE).send("q", "x") == eoq.Sent("m", duplicate=False)
        thread.join(PATIENCE)


def test_the_socket_comes_from_the_environment(
    daemon: Daemon, connect: Callable[..., AnyClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EOQ_SOCKET", str(daemon.socket))
    assert connect(None).ask("status")["pid"] == daemon.pid


@pytest.mark.first_by_default
@pytest.mark.parametrize("restart", ["kill", pytest.param("terminate", marks=pytest.mark.slow)])
def test_a_restart_of_the_daemon_is_not_noticed(
    daemon: Daemon, connect: Callable[..., AnyClient], restart: str
) -> None:
    client = connect(daemon.socket)
    client.send("q", "x", id="a")
    daemon.kill() if restart == "kill" else daemon.terminate()
    daemon.start()
    assert client.send("q", "x", id="a").duplicate is True
    assert client.send("q", "x", id="b").duplicate is False


@pytest.mark.first_by_default
def test_a_send_waits_for_a_daemon_that_comes_back(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send("q", "x")
    daemon.kill()
    timer = threading.Timer(0.2, daemon.start)
    timer.start()
    assert client.send("q", "x", id="m").duplicate is False
    timer.join()


@pytest.mark.first_by_default
def test_a_daemon_that_stays_away_is_unavailable(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket, timeout=1.5)
    client.send("q", "x")
    daemon.kill()
    start = time.monotonic()
    with pytest.raises(eoq.Unavailable, match=str(daemon.socket)):
        client.send("q", "x")
    assert 1.4 < time.monotonic() - start < 20


def _stream_over_kills(daemon: Daemon, client: AnyClient, count: int) -> tuple[list[eoq.Sent], list[Delivery]]:
    """Send a stream of numbers while the daemon is killed again and again. Return the confirmed and the stored ones."""
    confirmed: list[eoq.Sent] = []
    stop = threading.Event()

    def reached(number: int) -> bool:
        return stop.is_set() or len(confirmed) > number

    def kill_again_and_again() -> None:
        for number in range(500, count, 1000):
            eventually(partial(reached, number))
            daemon.restart()

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    try:
        for sent in client.send_stream("q", (f"{number}" for number in range(count))):
            confirmed.append(sent)
            time.sleep(0)  # gives the killer its turn
    finally:
        stop.set()
        killer.join()
    return confirmed, _all_of(client)


def _all_of(client: AnyClient) -> list[Delivery]:
    received: list[Delivery] = []
    while messages := client.receive("q", 1000):
        received.extend(messages)
    return received


@pytest.mark.first_by_default
def test_kills_during_a_stream_lose_and_duplicate_nothing_and_keep_its_order(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    """The client repeats the requests in flight under the same ids, which the daemon recognises (G1, G2).

    Messages that are repeated must not be stored after those sent later.
    """
    confirmed, received = _stream_over_kills(daemon, connect(daemon.socket), 2500)
    numbers = [int(message.text) for message in received]
    assert sorted(numbers) == list(range(2500)), "lost or duplicated"
    assert numbers == sorted(numbers), "in another order"
    assert sorted(message.id for message in received) == sorted(sent.id for sent in confirmed)


@pytest.mark.first_by_default
def test_single_sends_during_kills_lose_and_duplicate_nothing(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    client = connect(daemon.socket)
    stop = threading.Event()

    def kill_again_and_again() -> None:
        for _ in range(2):
            if not stop.wait(0.1):
                daemon.restart()

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    sent: list[str] = []
    while killer.is_alive():
        sent.append(client.send("q", f"{len(sent)}").id)
    stop.set()
    assert [message.id for message in _all_of(client)] == sent


@pytest.mark.slow
def test_acks_during_a_kill_are_done_once_or_raise_lease_lost(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    client = connect(daemon.socket)
    client.send_many("q", [eoq.Outgoing("x", id=f"{number}") for number in range(100)])
    acked: list[str] = []
    lost = 0
    while messages := client.receive("q", 50):
        for number, message in enumerate(messages):
            if number == 25 and message.attempt == 1:
                daemon.restart()
            try:
                client.ack(message, message.id)
            except eoq.LeaseLost:
                lost += 1
            else:
                acked.append(message.id)
    assert lost
    assert sorted(acked, key=int) == [f"{number}" for number in range(100)]


def test_a_closed_client_says_so(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send("q", "x")
    client.close()
    client.close()
    with pytest.raises(eoq.Unavailable, match="closed"):
        client.send("q", "x")


def test_a_client_never_used_can_be_closed(connect: Callable[..., AnyClient], folder: Path) -> None:
    client = connect(folder / "none")
    client.close()
    with pytest.raises(eoq.Unavailable, match="closed"):
        client.receive("q")


def test_a_daemon_that_does_not_answer_is_unavailable(connect: Callable[..., AnyClient], folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(folder / "s"))
        mute.listen()
        start = time.monotonic()
        with pytest.raises(eoq.Unavailable, match=r"no answer within 0.2 s"):
            connect(folder / "s", timeout=0.2).ask("status")
        assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"[]\n",
        b'{"ok":true,"rid":[]}\n',
        b"\xff" * 10 + b"\n",
        b"[" * 5_000 + b"\n",
        b"[" * 100_000 + b"\n",
        b"\xff" * 100_000 + b"\n",
        b"x" * 100_000 + b"\n",
    ],
    ids=lambda line: f"{line[:8]!r} of {len(line)}",
)
def test_a_program_that_is_not_an_eoq_daemon_is_an_error_that_says_so(
    connect: Callable[..., AnyClient], folder: Path, line: bytes
) -> None:
    """On the socket of another program, the client raises an error of eoq, not a bare ValueError."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "s"))
        other.listen()

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(line)
                connection.recv(1000)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(eoq.EoqError):
            connect(folder / "s", timeout=0.5).send("q", "x")
        thread.join(20)
