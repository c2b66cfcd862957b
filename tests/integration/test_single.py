"""The connection of short commands: what it does where the daemon is not there, goes away, or does not answer."""

from __future__ import annotations

import json
import signal
import socket as sockets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

import eoq
from eoq.transport.single import Single
from tests.support import PATIENCE, Daemon, Shell, Wire, eventually

SEND: Final = {"op": "send", "queue": "q", "id": "m", "body": "x"}


class Cutting:
    """A socket in front of a daemon's, which loses the first reply: it closes the connection instead."""

    def __init__(self, path: Path, daemon: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        self._daemon = daemon
        self._listening = sockets.socket(sockets.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._is_first = True
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, connection.makefile("rb") as lines, Wire(self._daemon) as wire:
                    for line in lines:
                        self.lines.append(json.loads(line))
                        wire.write(line)
                        reply = wire.read_line()
                        if self._is_first:
                            self._is_first = False
                            break
                        assert reply is not None
                        connection.sendall(reply + b"\n")

    def close(self) -> None:
        self._listening.shutdown(sockets.SHUT_RDWR)
        self._listening.close()


@contextmanager
def cutting(path: Path, daemon: Path) -> Iterator[Cutting]:
    """Lose the first reply of a daemon."""
    cutting = Cutting(path, daemon)
    try:
        yield cutting
    finally:
        cutting.close()


def test_a_send_whose_reply_was_lost_is_repeated_under_its_id_with_a_limit(daemon: Daemon) -> None:
    path = daemon.folder / "cut"
    began = time.time()
    with cutting(path, daemon.socket) as between, Single(str(path)) as single:
        reply = single.ask(SEND)
        again = single.ask({**SEND, "id": "n"})
    assert reply["duplicate"] is True, "the first one was stored"
    assert again["duplicate"] is False
    first, _status, second, _third = between.lines
    assert first["id"] == second["id"] == "m"
    assert "not_after" not in first
    assert began < second["not_after"] < began + 30 * 86400


def test_eoq_send_repeats_without_being_told(daemon: Daemon) -> None:
    path = daemon.folder / "cut"
    with cutting(path, daemon.socket) as between:
        ran = daemon.shell().run(f"eoq send q hello --socket {path}")
    assert (ran.status, ran.errors) == (0, "")
    with eoq.connect(daemon.socket) as client:
        (message,) = client.receive("q", 10)
    assert ran.text == f"{message.id}\n"
    assert [line["id"] for line in between.lines if line["op"] == "send"] == [message.id] * 2


def test_a_daemon_that_comes_back_in_time_is_waited_for(daemon: Daemon) -> None:
    with Single(str(daemon.socket)) as single:
        assert single.ask({"op": "status"})["ok"]
        daemon.kill()
        starting = threading.Timer(0.5, daemon.start)
        starting.start()
        assert single.ask(SEND)["duplicate"] is False
        starting.join()


def test_without_a_daemon_the_error_says_so_and_names_no_id(folder: Path) -> None:
    with Single(str(folder / "none")) as single, pytest.raises(eoq.Unavailable, match="eoq start") as caught:
        single.ask(SEND)
    assert caught.value.ids == ()


def test_a_frozen_daemon_is_noticed_and_the_error_names_the_id(daemon: Daemon) -> None:
    with Single(str(daemon.socket), timeout=2.0) as single:
        single.ask({"op": "status"})
        daemon.signal(signal.SIGSTOP)
        try:
            with pytest.raises(eoq.Unavailable, match=r"no answer within 2 s.*repeat it with the same id") as caught:
                single.ask(SEND)
        finally:
            daemon.signal(signal.SIGCONT)
    assert caught.value.ids == ("m",)


def test_a_program_that_is_no_daemon_is_not_asked_again(folder: Path) -> None:
    def answer() -> None:
        with suppress(OSError):  # the test has closed the socket
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"220 mail.example\r\n")

    with sockets.socket(sockets.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
        listening.listen()
        threading.Thread(target=answer, daemon=True).start()
        with Single(str(folder / "s")) as single, pytest.raises(eoq.Unavailable, match="not an eoq daemon") as caught:
            single.ask(SEND)
    assert caught.value.ids == ("m",)


def test_an_error_of_the_daemon_is_raised_and_the_connection_goes_on(daemon: Daemon) -> None:
    with Single(str(daemon.socket)) as single:
        single.ask(SEND)
        with pytest.raises(eoq.IdConflict):
            single.ask({**SEND, "body": "other"})
        assert single.ask(SEND)["duplicate"] is True


def test_an_error_for_the_whole_connection_is_that_of_the_request(folder: Path) -> None:
    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b'{"ok":false,"error":{"code":"overloaded","message":"too many connections"}}\n')

    with sockets.socket(sockets.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
        listening.listen()
        threading.Thread(target=answer, daemon=True).start()
        with Single(str(folder / "s")) as single, pytest.raises(eoq.Overloaded, match="too many"):
            single.ask(SEND)


def test_a_receive_that_is_interrupted_leaves_the_messages_in_the_queue(daemon: Daemon) -> None:
    shell = daemon.shell()
    waiting = shell.start("exec eoq receive q --wait 60 --lease 3600", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with waiting, eoq.connect(daemon.socket) as client:
        eventually(lambda: client.ask("status")["waiting"] == 1)
        waiting.send_signal(signal.SIGINT)
        printed, said = waiting.communicate(timeout=PATIENCE)
        assert (waiting.returncode, printed, said) == (130, b"", b"")
        client.send("q", "x", id="m")
        (message,) = client.receive("q", wait=PATIENCE)
    assert message.attempt == 1


def test_messages_that_came_with_the_interruption_are_given_back(folder: Path) -> None:
    """The reply is on its way when Ctrl-C comes. Its messages are released: they do not wait for the lease to end."""
    said: list[dict[str, Any]] = []
    may_answer, done = threading.Event(), threading.Event()

    def answer() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as lines:
            said.append(json.loads(lines.readline()))
            may_answer.set()
            said.append(json.loads(lines.readline()))
            message = {"id": "m", "receipt": "r", "body": "b", "attempt": 1, "enqueued_at": 1.0, "seq": 1}
            reply = {"rid": said[0]["rid"], "ok": True, "messages": [message], "watermark": 1}
            connection.sendall(json.dumps(reply).encode() + b"\n")
            said.append(json.loads(lines.readline()))
            done.set()

    with sockets.socket(sockets.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
        listening.listen()
        threading.Thread(target=answer, daemon=True).start()
        with Shell(folder / "s", folder).start("exec eoq receive q --wait 60", stderr=subprocess.PIPE) as waiting:
            assert may_answer.wait(30)
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(30) == 130
    assert done.wait(30)
    assert [request["op"] for request in said] == ["receive", "cancel", "release"]
    assert said[2]["receipts"] == ["r"]
