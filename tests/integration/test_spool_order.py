"""The order of files in the spool is that of their sending, also when the clock is set back in between (G8)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.services.spool.spool_folder import SpoolFolder
from eoq.daemon.services.spool.spool_queue import QueueFolder
from tests.forker import Forker
from tests.integration.spools import arrivals, put, texts, waiting
from tests.support import PATIENCE, Daemon, clean_environment, eventually

HOUR: Final = 3600.0
SENDER: Final = """
import sys
import time
from pathlib import Path
import eoq

spool, clock, *steps = sys.argv[1:]
sender = eoq.Spool(spool)
for step in steps:
    error, _, body = step.partition(" ")
    Path(f"{clock}.new").write_text(error)
    Path(f"{clock}.new").rename(clock)  # a daemon reads it at any moment
    sender.send("q", body, group="g")
"""


class Machine:
    """A machine whose clock can be set."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        self._clock = folder / "clock"
        self._forker = forker

    def set_clock(self, seconds: float) -> None:
        """Set the error of the clock."""
        new = self._clock.with_suffix(".new")
        new.write_text(f"{seconds}")
        new.rename(self._clock)

    def send(self, *steps: str) -> None:
        """Send messages from one process. Each step is the error of the clock and a body."""
        script = self.folder / "sender.py"
        script.write_text(SENDER)
        command = [sys.executable, str(script), str(self.spool), str(self._clock), *steps]
        with Path(os.devnull).open("r+b") as nothing:
            streams = (nothing.fileno(), nothing.fileno(), 2)
            process = self._forker.start(command, clean_environment(), self.folder, streams)
        assert process.wait(PATIENCE) == 0

    def daemon(self, *options: str) -> Daemon:
        """Return a daemon of this machine."""
        return Daemon(self.folder, ("--spool", str(self.spool), *options), own_forker=self._forker)


@pytest.fixture
def machine(folder: Path) -> Iterator[Machine]:
    (folder / "clock").write_text("0")
    with closing(Forker(folder / "clock")) as forker:
        yield Machine(folder, forker)


@pytest.mark.slow
def test_files_are_sent_in_their_order_whatever_the_clock_says(machine: Machine) -> None:
    machine.send("0 1", f"{-HOUR} 2", f"{-2 * HOUR} 3", f"{HOUR} 4", "0 5", "0 6")
    machine.send(f"{-HOUR} 7", f"{-HOUR} 8", "0 9")
    machine.set_clock(0)
    daemon = machine.daemon()
    daemon.start()
    try:
        with eoq.connect(daemon.socket) as client:
            eventually(lambda: waiting(machine.spool, "q") == [])
            assert texts(arrivals(client, "q", 9)) == list("123456789")
    finally:
        daemon.kill()


def test_numbers_of_other_programs_do_not_matter(folder: Path) -> None:
    put(folder, "q", "99999999999999999999-abc", "late")
    put(folder, "q", "5-abc", "other")
    sender = eoq.Spool(folder)
    sender.send("q", "x")
    names = waiting(folder, "q")
    assert len(names) == 3 and names[0].startswith("0")


@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed"])
@pytest.mark.slow
def test_what_was_claimed_before_the_clock_was_set_back_comes_first(machine: Machine, killed: bool) -> None:
    """The queue is full, so that claimed files wait."""
    config = machine.folder / "eoq.toml"
    config.write_text("[queues.q]\nmax_depth = 1\n")
    daemon = machine.daemon("--config", str(config))
    daemon.start()
    try:
        with eoq.connect(daemon.socket) as client:
            client.send("q", "first")
            machine.send("0 1", "0 2")
            eventually(lambda: len(list((machine.spool / "q" / ".taking").glob("*"))) == 2)
            machine.set_clock(-HOUR)
            if killed:
                daemon.restart()
            machine.send(f"{-HOUR} 3", f"{-HOUR} 4")
            bodies = []
            for _ in range(5):
                (message,) = client.receive("q", wait=3 * PATIENCE)  # the reader may just pause: the queue was full
                bodies.append(message.text)
                message.ack()
            assert bodies == ["first", "1", "2", "3", "4"]
    finally:
        daemon.kill()


def test_files_whose_tokens_are_renewed_stay_in_their_order(folder: Path) -> None:
    """The queue is full for long. The second file is younger, and need not be renewed by itself."""
    with closing(SpoolFolder(folder, {})) as spool:
        claimed = QueueFolder(spool, "q")
        put(folder, "q", "1", "first")
        claimed.scan(True)
        assert _bodies(claimed, 100) == [b"first"]
        begun = time.monotonic()
        eventually(lambda: time.monotonic() > begun + 1)
        put(folder, "q", "2", "second")
        claimed.scan(True)
        for resend_within in (100, 1, 100):  # those older than half of that are renewed
            assert _bodies(claimed, resend_within) == [b"first", b"second"]


def _bodies(claimed: QueueFolder, resend_within: float) -> list[object]:
    return [getattr(file.message, "body", None) for file in claimed.claim(resend_within)]
