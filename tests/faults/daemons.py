"""Daemons with planted faults, for the tests of this folder. See ``planted_daemon.py`` for the faults."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

import eoq
from tests.faults.planted_daemon import Plant
from tests.support import PATIENCE, Daemon, short_folder

RUNNER: Final = Path(__file__).with_name("planted_daemon.py")
WAITING_STATES: Final = ("ready", "leased", "delayed", "blocked", "dead")


class PlantedDaemon(Daemon):
    """A `Daemon` that starts with ``plant``; without one it is the plain daemon. Kills count as attempts."""

    def __init__(self, folder: Path, plant: Plant | None = None, wrapper: Sequence[str] = ()) -> None:
        super().__init__(folder, ("--max-attempts", "1000"))
        self.plant = plant
        self.wrapper = tuple(wrapper)
        """A command that runs the daemon in the same process (``strace -D``)."""

    def start(self) -> None:
        if self.plant is None and not self.wrapper:
            super().start()
            return
        plant = msgspec.json.encode(self.plant or Plant()).decode()
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [*self.wrapper, sys.executable, str(RUNNER), str(self.db), str(self.socket), plant],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                cwd=self.folder,
            )
        assert self._process.stdout is not None
        with self._process.stdout as output:
            readable, _, _ = select.select([output], [], [], PATIENCE)
            line = output.readline() if readable else b"(nothing)"
        if line != f"ready {self.socket}\n".encode():
            self.kill()
            raise AssertionError(f"the daemon said {line!r} instead of `ready`; its errors:\n{self.said}")

    def start_plain(self) -> None:
        """Starts it without its fault."""
        self.plant = None
        self.start()


@contextmanager
def planted_daemon(plant: Plant | None = None, folder: Path | None = None) -> Iterator[PlantedDaemon]:
    """A daemon with a planted fault, in a folder of its own unless one is given."""
    if folder is None:
        with short_folder() as own, planted_daemon(plant, own) as daemon:
            yield daemon
        return
    daemon = PlantedDaemon(folder, plant)
    try:
        daemon.start()
        yield daemon
        daemon.check()
    except BaseException as error:
        error.add_note(f"the daemon said:\n{daemon.said}")
        raise
    finally:
        daemon.kill()


def settle_all(client: eoq.Client, queue: str) -> list[eoq.Message]:
    """Receives and acks what is ready in a queue; returns it, in order."""
    settled: list[eoq.Message] = []
    while messages := client.receive(queue, 1000):
        client.ack_many([(message, None) for message in messages])
        settled.extend(messages)
    return settled


def ids_of(messages: Sequence[eoq.Message]) -> list[str]:
    """The ids of messages, in their order."""
    return [message.id for message in messages]


def left(client: eoq.Client, queue: str) -> dict[str, Any]:
    """How many messages of a queue are not settled, by state; empty when it is drained."""
    for counts in client.ask("queues")["queues"]:
        if counts["name"] == queue:
            return {state: counts[state] for state in WAITING_STATES if counts[state]}
    return {}


def show(client: eoq.Client, queue: str, id: str) -> dict[str, Any] | None:
    """What the daemon knows of a message; None where it is not stored."""
    try:
        message: dict[str, Any] = client.ask("show", queue=queue, id=id)["message"]
    except eoq.NotFound:
        return None
    return message
