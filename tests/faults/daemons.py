"""Daemons with planted faults, for the tests of this folder. See ``planted_daemon.py`` for the faults."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

import eoq
from tests.faults.planted_daemon import Plant
from tests.support import Daemon, Wire, eventually, short_folder

RUNNER: Final = Path(__file__).with_name("planted_daemon.py")
WAITING_STATES: Final = ("ready", "leased", "delayed", "blocked", "dead")


class PlantedDaemon(Daemon):
    """A `Daemon` with the planted fault ``plant``, or without one.

    Kills count as attempts, so it allows more attempts than any test needs.
    """

    def __init__(self, folder: Path, plant: Plant | None = None, wrapper: Sequence[str] = ()) -> None:
        super().__init__(folder, ("--max-attempts", "1000"))
        self.plant = plant
        self.wrapper = tuple(wrapper)
        """A command before the daemon's own, which must keep its process id (``strace -D``)."""

    def command(self) -> list[str]:
        if self.plant is None and not self.wrapper:
            return super().command()
        plant = msgspec.json.encode(self.plant or Plant()).decode()
        return [*self.wrapper, sys.executable, str(RUNNER), str(self.db), str(self.socket), plant]

    def start_plain(self) -> None:
        """Start the daemon without a planted fault."""
        self.plant = None
        self.start()


class Pace:
    """The pace of a daemon's commits: while it is held, each one waits until the test lets it pass."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="eoq-pace-")) / "held"

    @property
    def plant(self) -> Plant:
        """The plant of the daemon."""
        return Plant(quick_commit=0.0, paced=str(self._folder))

    def hold(self) -> None:
        """Let no further commit pass."""
        self._folder.mkdir()

    def allow(self) -> None:
        """Let the next commit pass, now or when it comes."""
        (self._folder / "go").touch()

    def pass_until(self, condition: Callable[[], bool]) -> int:
        """Let commits pass one by one until the condition holds. Return how many have passed.

        Some may be the daemon's own, so a test must not rely on a certain number.
        """
        go = self._folder / "go"
        passed = 0
        while not condition():
            self.allow()
            eventually(lambda: not go.exists() or condition(), what="a commit")
            passed += not go.exists()
        return passed

    def release(self) -> None:
        """Let all commits pass."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder.parent)


@contextmanager
def paced_daemon() -> Iterator[tuple[PlantedDaemon, Pace]]:
    """Run a daemon whose commits the test can hold, and let pass one by one. All of them are made on its thread."""
    pace = Pace()
    try:
        with planted_daemon(pace.plant) as daemon:
            try:
                yield daemon, pace
            finally:
                pace.release()
    finally:
        pace.close()


def leased_between_commits(pace: Pace, wire: Wire) -> set[int]:
    """Let commits pass one by one until nothing is leased. Return how many messages were leased between them."""
    seen: set[int] = set()

    def nothing_is_leased() -> bool:
        seen.add(int(wire.ask({"op": "status"})["leased"]))
        return 0 in seen

    pace.pass_until(nothing_is_leased)
    pace.release()
    return seen - {0}


def await_read(daemon: Daemon) -> None:
    """Wait until the daemon has read what was sent to it before. It need not be answered.

    The first request may be looked at before those that were sent earlier over other connections, which are ready in
    the same turn of the event loop. The second one is not.
    """
    with daemon.wire() as wire:
        for _ in range(2):
            assert wire.ask({"op": "status"})["ok"]


@contextmanager
def planted_daemon(plant: Plant | None = None, folder: Path | None = None) -> Iterator[PlantedDaemon]:
    """Run a daemon with a planted fault, in ``folder`` or else in a new one."""
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
    """Receive and ack all ready messages of a queue. Return them in order of delivery."""
    settled: list[eoq.Message] = []
    while messages := client.receive(queue, 1000):
        client.ack_many([(message, None) for message in messages])
        settled.extend(messages)
    return settled


def ids_of(messages: Sequence[eoq.Message]) -> list[str]:
    """Return the ids of messages, in their order."""
    return [message.id for message in messages]


def left(client: eoq.Client, queue: str) -> dict[str, Any]:
    """Return how many messages of a queue are not settled, by state. The result is empty if all are settled."""
    for counts in client.ask("queues")["queues"]:
        if counts["name"] == queue:
            return {state: counts[state] for state in WAITING_STATES if counts[state]}
    return {}


def show(client: eoq.Client, queue: str, id: str) -> dict[str, Any] | None:
    """Return what the daemon knows of a message, or None if it does not know the message."""
    try:
        message: dict[str, Any] = client.ask("show", queue=queue, id=id)["message"]
    except eoq.NotFound:
        return None
    return message
