"""A disk that is full for a moment when the outcome of a key is stored: it runs once, and no caller waits for ever."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator

import pytest

import eoq
from tests.support import PATIENCE, Daemon

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="a limit of another process is Linux's")

NO_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Refusing:
    """The disk of the daemon: while it refuses, no file may grow."""

    def __init__(self, daemon: Daemon) -> None:
        self._pid = daemon.pid

    def refuse(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def take(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, NO_LIMIT)


@pytest.fixture
def disk(daemon: Daemon) -> Iterator[Refusing]:
    disk = Refusing(daemon)
    yield disk
    disk.take()


def test_an_outcome_is_stored_when_the_disk_has_room_again(daemon: Daemon, disk: Refusing) -> None:
    ran = []

    def function() -> str:
        ran.append(True)
        disk.refuse()
        threading.Timer(0.5, disk.take).start()
        return "paid"

    with eoq.connect(daemon.socket, timeout=PATIENCE) as client:
        assert client.once("key", function) == b"paid"
        assert client.once("key", function) == b"paid"
    assert len(ran) == 1


def test_a_key_whose_outcome_was_not_stored_is_open_when_the_disk_has_room_again(
    daemon: Daemon, disk: Refusing
) -> None:
    def function() -> str:
        disk.refuse()
        return "lost"

    with eoq.connect(daemon.socket, timeout=2) as client, eoq.connect(daemon.socket) as other:
        with pytest.raises((eoq.StorageFull, eoq.StorageFailed)):
            client.once("key", function)
        disk.take()
        assert other.once("key", lambda: "paid", wait=PATIENCE) == b"paid"
