"""A daemon that cannot be reached: each command says whether it does not run, is stopped, or has lost its socket."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket as sockets
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import eoq
from tests.support import Daemon, eventually, running_daemon, short_folder


class _InFolder(Daemon):
    """A daemon whose socket is in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "run").mkdir()
        self.socket = folder / "run" / "s"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of this test alone, whose socket is in a folder of its own."""
    with short_folder() as folder:
        daemon = _InFolder(folder)
        daemon.start()
        try:
            yield daemon
            daemon.check()
        finally:
            daemon.kill()


def _remove_file(socket: Path) -> None:
    socket.unlink()


def _remove_with_lock(socket: Path) -> None:
    socket.unlink()
    socket.with_name("s.lock").unlink()


def _remove_folder(socket: Path) -> None:
    shutil.rmtree(socket.parent)


@pytest.mark.parametrize("remove", [_remove_file, _remove_with_lock, _remove_folder])
@pytest.mark.slow
def test_the_daemon_makes_its_socket_again(daemon: Daemon, remove: Callable[[Path], None]) -> None:
    with eoq.connect(daemon.socket) as before:
        before.send("q", "before")
        remove(daemon.socket)
        eventually(daemon.socket.exists)
        eventually(daemon.serves)
        assert before.send("q", "open connections stay").duplicate is False
    assert daemon.shell().run("eoq send q again").status == 0
    assert daemon.socket.stat().st_mode & 0o777 == 0o600
    other = daemon.shell().run(f"eoq daemon --db other.db --socket {daemon.socket}")
    assert (other.status, f"in use by the eoq daemon with pid {daemon.pid}" in other.errors) == (75, True)
    assert daemon.terminate() == 0
    assert not daemon.socket.exists()


@pytest.mark.slow
def test_every_command_names_a_daemon_whose_socket_is_gone(daemon: Daemon) -> None:
    _remove_folder(daemon.socket)
    daemon.socket.parent.write_text("a file, so that the folder cannot be made")
    eventually(lambda: "no client can connect" in daemon.said)
    for command in ("eoq send q x", "eoq status", "eoq start"):
        ran = daemon.shell().run(command)
        assert ran.status == 69, (command, ran.errors)
        assert f"the daemon with pid {daemon.pid} runs, but its socket is not there" in ran.errors
    assert daemon.said.count("no client can connect") == 1, "it is logged once"
    ran = daemon.shell().run("eoq stop")
    assert (ran.status, ran.errors) == (0, f"eoq: stopped the daemon with pid {daemon.pid}\n")
    assert daemon.wait() == 0


@pytest.mark.slow
def test_every_command_names_a_daemon_that_is_stopped(daemon: Daemon) -> None:
    daemon.signal(signal.SIGSTOP)
    for command in ("eoq start", "eoq stop"):
        ran = daemon.shell().run(command)
        assert ran.status == 69, (command, ran.errors)
        assert f"the daemon with pid {daemon.pid} is stopped, by a signal or a debugger" in ran.errors
    daemon.signal(signal.SIGCONT)
    assert daemon.wait() == 0, "`eoq stop` has told it to end"


@pytest.mark.slow
def test_every_command_says_that_no_daemon_runs(daemon: Daemon) -> None:
    daemon.kill()
    for command in ("eoq send q x", "eoq status"):
        ran = daemon.shell().run(command)
        assert (ran.status, "start one with `eoq start`" in ran.errors) == (69, True), ran.errors
    ran = daemon.shell().run("eoq stop")
    assert (ran.status, ran.errors) == (0, f"eoq: no daemon runs on {daemon.socket}\n")


@pytest.mark.slow
def test_a_database_that_is_named_as_the_socket_is_not_to_be_removed(daemon: Daemon) -> None:
    shell, database = daemon.shell(), daemon.folder / "eoq.db"
    assert database.exists()
    for command in ("send q x", "status", "stop", "start --db other.db"):
        ran = shell.run(f"eoq {command} --socket {database}")
        assert "remove" not in ran.errors, ran.errors
        assert "move that" not in ran.errors, ran.errors
        assert ran.status != 0 or command == "stop", (command, ran.errors)
    assert daemon.serves()
    daemon.kill()
    ran = shell.run(f"eoq start --socket {database} --db other.db")
    assert (ran.status, "is no socket; give another path with --socket" in ran.errors) == (65, True), ran.errors
    ran = shell.run(f"eoq start --socket {database} --db {database}")
    assert (ran.status, "cannot be the socket and the database" in ran.errors) == (65, True), ran.errors


@pytest.mark.slow
def test_the_socket_of_another_program_is_left_alone() -> None:
    with running_daemon() as daemon, sockets.socket(sockets.AF_UNIX) as other:
        daemon.socket.unlink()
        other.bind(str(daemon.socket))
        eventually(lambda: "another program has replaced" in daemon.said)
        assert daemon.terminate() == 0
        assert daemon.socket.is_socket()


# ── sends without an answer ─────────────────────────────────────────────────────────────────────────────────


def _answers(client: eoq.Client) -> bool:
    """Return whether the daemon answers within the short time of this client. A busy machine may be too slow for it."""
    with suppress(eoq.Unavailable):
        return bool(client.ask("status"))
    return False


async def _answers_async(client: eoq.AsyncClient) -> bool:
    with suppress(eoq.Unavailable):
        return bool(await client.ask("status"))
    return False


def test_a_send_without_an_answer_names_its_id(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket, timeout=0.5) as client:
        eventually(partial(_answers, client))
        daemon.signal(signal.SIGSTOP)
        with pytest.raises(eoq.Unavailable, match="repeat it with the same id, which is ") as one:
            client.send("q", "x")
        with pytest.raises(eoq.Unavailable, match=r"3 messages, from id a to id c, may be stored") as many:
            client.send_many("q", [eoq.Outgoing(id, id=id) for id in "abc"])
        with pytest.raises(eoq.Unavailable) as query:
            client.ask("status")
        daemon.signal(signal.SIGCONT)
        assert many.value.ids == ("a", "b", "c")
        assert query.value.ids == ()
        (id,) = one.value.ids
        assert id in str(one.value)
    with eoq.connect(daemon.socket) as client:
        client.send("q", "x", id=id)
        assert [message.id for message in client.receive("q", 10)].count(id) == 1


def test_an_asyncio_send_without_an_answer_names_its_id(daemon: Daemon) -> None:
    async def send() -> eoq.Unavailable:
        async with eoq.connect_async(daemon.socket, timeout=0.5) as client:
            while not await _answers_async(client):
                pass
            daemon.signal(signal.SIGSTOP)
            with pytest.raises(eoq.Unavailable, match="repeat it with the same id, which is a") as caught:
                await client.send("q", "x", id="a")
            daemon.signal(signal.SIGCONT)
            return caught.value

    assert asyncio.run(send()).ids == ("a",)


def test_a_send_that_was_never_tried_has_no_id_to_repeat(tmp_path: Path) -> None:
    with eoq.connect(tmp_path / "s") as client, pytest.raises(eoq.Unavailable) as caught:
        client.send("q", "x", id="a")
    assert caught.value.ids == ()


def test_a_send_whose_daemon_was_killed_names_its_id(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket, timeout=0.5) as client:
        eventually(partial(_answers, client))
        daemon.signal(signal.SIGSTOP)
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait()
        with pytest.raises(eoq.Unavailable) as caught:
            client.send("q", "x", id="a")
    assert "start one with `eoq start`" in str(caught.value)
