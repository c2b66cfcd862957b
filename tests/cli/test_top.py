"""``eoq top`` in a real terminal of 80 columns and 24 lines, with its keys."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import pytest

import eoq
from tests.support import PATIENCE, Daemon, eventually, kill_group, terminal

COLUMNS: Final = 80
LINES: Final = 24
DOWN, ENTER, ESCAPE = "\x1b[B", "\r", "\x1b"


class Watched:
    """``eoq top`` at a terminal: what it shows, and the keys."""

    def __init__(self, daemon: Daemon, seen: int, written: int, *arguments: str) -> None:
        pyte: Any = pytest.importorskip("pyte")
        fcntl.ioctl(written, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._seen = seen
        self._before = termios.tcgetattr(written)
        self._written = written
        shell = daemon.shell()
        environment = {**shell.environment, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "ESCDELAY": "25"}
        environment.pop("NO_COLOR", None)
        streams: dict[str, Any] = {"stdin": written, "stdout": written, "stderr": written}
        self.process = shell.start("exec eoq top " + " ".join(arguments), **streams, env=environment)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._seen, keys.encode())

    def text(self) -> str:
        """Return what the terminal shows now."""
        while select.select([self._seen], [], [], 0)[0]:
            with suppress(OSError):
                # pyte knows no private sequences with these marks, which ask for modes of the keyboard and the mouse.
                self._stream.feed(_without_private_modes(os.read(self._seen, 65536)))
                continue
            break
        return "\n".join(self._screen.display)

    def shows(self, *texts: str) -> str:
        """Wait until the terminal shows all of some texts, and return what it shows."""

        def found() -> str | None:
            shown = self.text()
            return shown if all(text in shown for text in texts) else None

        try:
            return eventually(lambda: found() or "", what=f"{texts} on the screen")
        except AssertionError as error:
            error.add_note(self.text())
            raise

    def row(self, queue: str) -> list[str]:
        """Return the cells of a queue's row."""
        cells = next((line.split() for line in self.text().splitlines() if line.startswith(queue)), [])
        return cells or [""] * COLUMNS  # it is being drawn

    def ended(self) -> int:
        """Wait for the end, and return the exit status. The terminal must be as it was."""

        def status() -> tuple[int] | None:
            self.text()  # so that it can write its last words
            code = self.process.poll()
            return None if code is None else (code,)

        ended = eventually(status, what="the end of eoq top")
        assert ended is not None
        (code,) = ended
        assert termios.tcgetattr(self._written) == self._before
        return int(code)


def _without_private_modes(data: bytes) -> bytes:
    """Remove the sequences that pyte would print: ESC [ > and ESC [ = and ESC [ < with their ends."""
    return re.sub(rb"\x1b\[[<>=][0-9;]*[A-Za-z]|\x1bP[^\x1b]*\x1b\\|\x1b\[\?[0-9;]*\$p", b"", data)


@contextmanager
def watched(daemon: Daemon, *arguments: str) -> Iterator[Watched]:
    with terminal() as (seen, written):
        view = Watched(daemon, seen, written, *arguments)
        with view.process:
            try:
                yield view
            finally:
                kill_group(view.process)


def _dead_letters(client: eoq.Client, queue: str, *ids: str) -> None:
    for id in ids:
        client.send(queue, f"body of {id}", id=id)
        (message,) = client.receive(queue)
        client.reject(message, f"no address for {id}")


@pytest.mark.slow
def test_the_view_shows_and_steers_the_queues(daemon: Daemon) -> None:
    pytest.importorskip("textual")
    with eoq.connect(daemon.socket) as client, watched(daemon) as view:
        view.shows("no queues", "q quit")
        for _ in range(30):
            client.send("orders", "x")
        _dead_letters(client, "mail", "m1", "m2", "m3", "m4")
        view.shows("2 queues", "orders", "mail", "retried", "4 dead", "p50/p99: waiting")
        eventually(lambda: view.row("orders")[1] == "30" and view.row("mail")[-1] == "4")
        eventually(lambda: any(bar in view.text() for bar in "▂▃▄▅▆▇█"))
        # The filter narrows while it is typed; the keys in it are letters.
        view.press("/")
        view.shows("type a part of a name")
        view.press("mail")
        view.shows("only queues with 'mail'")
        eventually(lambda: "orders" not in view.text())
        view.press(ENTER)
        view.shows("q quit")
        view.press("p")
        view.shows("mail is paused")
        assert eventually(lambda: client.queues()[0]["paused"])
        eventually(lambda: "paused" in view.row("mail"))
        view.press("p")
        view.shows("mail is resumed")
        # A queue with dead letters opens on them; enter shows one with its errors.
        view.press(ENTER)
        view.shows("[dead]", "m1", "no address for m1")
        view.press(ENTER)
        view.shows("delivery 1", "no address for m1", "body of m1")
        view.press(ESCAPE)
        view.shows("[dead]", "m4")
        view.press("r")
        view.shows("1 dead letter of mail redriven")
        assert [message["id"] for message in client.peek("mail", "ready")] == ["m1"]
        eventually(lambda: "m1" not in view.text())
        view.press(DOWN + "d")
        view.shows("Drop the dead letter m3 of mail for good?")
        view.press("n")
        view.shows("nothing was changed")
        assert len(client.peek("mail", "dead")) == 3
        view.press("d")
        view.shows("Drop the dead letter m3 of mail for good?")
        view.press("y")
        view.shows("1 dead letter of mail dropped")
        assert [message["id"] for message in client.peek("mail", "dead")] == ["m2", "m4"]
        eventually(lambda: view.row("mail")[-1] == "2")
        view.press("R")
        view.shows("Redrive 2 dead letters of mail?")
        view.press("y")
        view.shows("2 dead letters of mail redriven")
        view.press(ESCAPE)
        view.shows("only queues with 'mail'")
        view.press(ESCAPE)
        view.shows("orders")
        view.press("q")
        assert view.ended() == 0


@pytest.mark.slow
def test_the_view_says_that_the_daemon_is_away_and_finds_it_again(daemon: Daemon) -> None:
    pytest.importorskip("textual")
    with eoq.connect(daemon.socket) as client, watched(daemon, "--filter", "q") as view:
        client.send("q1", "x")
        client.send("other", "x")
        view.shows("2 queues", "q1")
        assert "other" not in view.text()
        daemon.kill()
        view.shows("the daemon has not answered")
        daemon.start()
        eventually(lambda: "not answered" not in view.text())
        client.send("q2", "x")
        view.shows("q2")
        view.press("\x03")
        assert view.ended() == 0


@pytest.mark.slow
def test_a_signal_ends_the_view_and_leaves_the_terminal_as_it_was(daemon: Daemon) -> None:
    pytest.importorskip("textual")
    with watched(daemon) as view:
        view.shows("no queues")
        view.process.send_signal(signal.SIGTERM)
        assert view.ended() == 0


@pytest.mark.slow
def test_without_a_terminal_a_daemon_or_textual_the_command_says_what_is_wrong(daemon: Daemon) -> None:
    shell = daemon.shell()
    blocked = "import sys; sys.modules['textual'] = None; sys.argv = ['eoq', 'top']; import eoq.cli; eoq.cli.main()"
    ran = shell.run(f'{sys.executable} -c "{blocked}"')
    assert ran.status == 2
    assert "pip install 'eoq[top]'" in ran.errors
    pytest.importorskip("textual")
    ran = shell.run("eoq top")
    assert (ran.status, "needs a terminal" in ran.errors) == (2, True)
    daemon.kill()
    with watched(daemon) as view:
        eventually(lambda: view.process.poll() is not None, PATIENCE)
        assert view.process.returncode == 69
