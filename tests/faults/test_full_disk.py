"""Test a full disk: a clear error at once, no confirmed message is lost, and work goes on when there is space (G10).

The disk is a small file system in memory, which only root can mount, or a database that is not allowed to grow.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

import pytest

import eoq
from tests.faults.daemons import PlantedDaemon, ids_of, planted_daemon, settle_all, show
from tests.faults.planted_daemon import Plant
from tests.support import Shell, eventually, short_folder

QUEUE: Final = "q"
DISK_BYTES: Final = 8 * 1024 * 1024
BALLAST_BYTES: Final = 4 * 1024 * 1024
DELAY: Final = 6.0
"""Seconds of a delay, longer than it takes to fill the disk."""
AT_ONCE: Final = 20.0
"""Seconds within which a send to a full disk must be refused. A client that repeats it gives up after 30."""


class Disk(Protocol):
    """A disk with a daemon's database, which can be filled and freed."""

    daemon: PlantedDaemon

    def fill(self) -> None: ...
    def free(self) -> None: ...


class MountedDisk:
    """A file system of a few megabytes. Removing a ballast file frees space."""

    def __init__(self, daemon: PlantedDaemon) -> None:
        self.daemon = daemon
        self._ballast = daemon.db.with_name("ballast")
        self._ballast.write_bytes(bytes(BALLAST_BYTES))

    def fill(self) -> None:
        """Use up the free space."""
        with self.daemon.db.with_name("filler").open("ab", buffering=0) as filler:
            for size in (1024 * 1024, 4096, 1):
                while _written(filler.fileno(), size):
                    pass

    def free(self) -> None:
        """Free the space of the ballast file."""
        self._ballast.unlink()


def _written(descriptor: int, size: int) -> bool:
    """Write ``size`` bytes. Return whether there was space."""
    try:
        return os.write(descriptor, bytes(size)) > 0
    except OSError:
        return False


class LimitedFile:
    """A database that SQLite is told not to let grow. SQLite reports that like a full disk."""

    def __init__(self, daemon: PlantedDaemon, full: Path) -> None:
        self.daemon = daemon
        self._full = full

    def fill(self) -> None:
        """Forbid the database to grow."""
        self._full.touch()

    def free(self) -> None:
        """Allow the database to grow."""
        self._full.unlink()


@contextmanager
def _mounted(folder: Path, size: int = DISK_BYTES) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "eoq-test", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root to mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def _daemon_on_a_disk(size: int = DISK_BYTES) -> Iterator[PlantedDaemon]:
    """Run a daemon whose database is on a disk of ``size`` bytes. The socket is elsewhere."""
    with short_folder() as folder, _mounted(folder, size) as disk:
        daemon = PlantedDaemon(folder)
        daemon.db = disk / "eoq.db"
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.kill()


@pytest.fixture
def mounted() -> Iterator[MountedDisk]:
    """Mount a small disk for the database of a daemon."""
    with _daemon_on_a_disk() as daemon:
        yield MountedDisk(daemon)
        daemon.check()


@pytest.fixture
def limited(folder: Path) -> Iterator[LimitedFile]:
    """Run a daemon whose database can be kept from growing."""
    full = folder / "full"
    with planted_daemon(Plant(full=str(full)), folder) as daemon:
        yield LimitedFile(daemon, full)


@pytest.fixture(params=["mounted", "limited"])
def disk(request: pytest.FixtureRequest) -> Disk:
    """Return a disk that is not full yet."""
    disk: Disk = request.getfixturevalue(request.param)
    return disk


def _send_until_full(client: eoq.Client, size: int) -> list[str]:
    """Send until the disk is full, which must be reported at once. Return the confirmed ids."""
    sent: list[str] = []
    while True:
        id = f"{size}-{len(sent)}"
        start = time.monotonic()
        try:
            client.send(QUEUE, bytes(size), id=id)
        except eoq.StorageFull as error:
            assert time.monotonic() - start < AT_ONCE
            assert "full" in str(error)
            assert "free some space" in str(error)
            return sent
        sent.append(id)
        assert len(sent) < 100_000, "the disk never fills"


def _fill(disk: Disk, client: eoq.Client) -> list[str]:
    """Fill the disk until not even a small message fits. Return the confirmed ids."""
    sent = [client.send(QUEUE, bytes(100), id=f"first-{number}").id for number in range(10)]
    disk.fill()
    return sent + _send_until_full(client, 50_000) + _send_until_full(client, 1)


def test_a_full_disk_is_reported_at_once_and_confirmed_messages_are_delivered(disk: Disk) -> None:
    with eoq.connect(disk.daemon.socket) as client:
        sent = _fill(disk, client)
        for _ in range(3):
            with pytest.raises(eoq.StorageFull):
                client.send(QUEUE, bytes(50_000), id="refused")
        with pytest.raises(eoq.StorageFull):
            client.send_many(QUEUE, [bytes(50_000)] * 20)
        assert show(client, QUEUE, "refused") is None
        assert client.ask("status")["pid"] == disk.daemon.pid
        disk.free()
        assert client.send(QUEUE, bytes(50_000), id="refused").duplicate is False
        assert ids_of(settle_all(client, QUEUE)) == [*sent, "refused"]


@pytest.mark.first_by_default
def test_confirmed_messages_survive_a_kill_on_a_full_disk(disk: Disk) -> None:
    with eoq.connect(disk.daemon.socket) as client:
        sent = _fill(disk, client)
        disk.daemon.kill()
        disk.free()
        disk.daemon.start()
        assert ids_of(settle_all(client, QUEUE)) == sent


@pytest.mark.first_by_default
def test_a_full_disk_is_75_on_the_command_line(disk: Disk) -> None:
    with eoq.connect(disk.daemon.socket) as client:
        _fill(disk, client)
    shell = Shell(disk.daemon.socket, disk.daemon.folder)
    ran = shell.run("head -c 50000 /dev/zero | eoq send q")
    assert ran.status == 75
    assert ran.text == ""
    assert "is full" in ran.errors
    disk.free()
    assert shell.run("head -c 50000 /dev/zero | eoq send q").status == 0


def test_a_transaction_on_a_full_disk_changes_nothing(disk: Disk) -> None:
    """An ack and the large message that it sends are stored both or not at all (G4)."""
    with eoq.connect(disk.daemon.socket) as client:
        client.send(QUEUE, "x", id="a", priority=1)
        (message,) = client.receive(QUEUE)
        _fill(disk, client)
        with pytest.raises(eoq.StorageFull):
            client.ack(message, send=[eoq.Outgoing(bytes(500_000), queue="next", id="b")])
        assert (show(client, QUEUE, "a") or {})["state"] == "leased"
        assert show(client, "next", "b") is None
        disk.free()
        client.ack(message, send=[eoq.Outgoing(bytes(500_000), queue="next", id="b")])
        assert (show(client, QUEUE, "a") or {})["state"] == "done"
        assert ids_of(settle_all(client, "next")) == ["b"]


@pytest.mark.first_by_default
@pytest.mark.parametrize("ends", ["by time", "with its connection"])
def test_a_lease_that_ends_on_a_full_disk_is_delivered_again_later(mounted: MountedDisk, ends: str) -> None:
    with eoq.connect(mounted.daemon.socket) as client, eoq.connect(mounted.daemon.socket) as consumer:
        client.send("leased", "x", id="a")
        (message,) = consumer.receive("leased", bound=True)
        _fill(mounted, client)
        if ends == "by time":
            message.extend(0.01)
        else:
            consumer.close()
        eventually(lambda: client.ask("status")["leased"] == 0, what="the end of the lease")
        assert (show(client, "leased", "a") or {})["state"] == "leased", (
            "the disk has no space to store the end of the lease"
        )
        mounted.free()
        (again,) = eventually(lambda: client.receive("leased"), what="the second delivery")
        assert (again.id, again.attempt) == ("a", 2)
        with pytest.raises(eoq.LeaseLost):
            client.ack(message)
        again.ack()


@pytest.mark.slow
def test_a_delayed_message_that_is_due_on_a_full_disk_is_delivered_later(mounted: MountedDisk) -> None:
    with eoq.connect(mounted.daemon.socket) as client:
        client.send("later", "x", id="a", delay=DELAY)
        due = time.monotonic() + DELAY
        _fill(mounted, client)
        eventually(lambda: time.monotonic() > due + 0.1)
        # The log may have room for it, once it is written back.
        assert (show(client, "later", "a") or {})["state"] in ("delayed", "ready")
        mounted.free()
        assert ids_of(eventually(lambda: client.receive("later"), what="the delivery")) == ["a"]


@pytest.mark.first_by_default
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_daemon_stops_and_starts_on_a_full_disk(mounted: MountedDisk, end: str) -> None:
    daemon = mounted.daemon
    with eoq.connect(daemon.socket) as client:
        sent = _fill(mounted, client)
        daemon.kill() if end == "kill" else daemon.terminate()
        mounted.fill()
        daemon.start()
        assert "is gone" not in daemon.said, "the log stays where a clean stop cannot be stored"
        with pytest.raises(eoq.StorageFull):
            client.send(QUEUE, bytes(50_000))
        mounted.free()
        assert ids_of(settle_all(client, QUEUE)) == sent


def test_a_daemon_whose_log_finds_no_room_at_the_start_reports_a_full_disk(mounted: MountedDisk) -> None:
    daemon = mounted.daemon
    with eoq.connect(daemon.socket) as client:
        client.send(QUEUE, "x", id="a")
    assert daemon.terminate() == 0  # its log is gone
    mounted.fill()
    ran = Shell(daemon.socket, daemon.folder).run(f"eoq daemon --db {daemon.db} --socket {daemon.socket}")
    assert ran.status == 75
    assert "is full" in ran.errors
    mounted.free()
    daemon.start()
    with eoq.connect(daemon.socket) as client:
        assert ids_of(settle_all(client, QUEUE)) == ["a"]


@pytest.mark.slow
def test_a_daemon_that_needs_space_to_start_finds_it_in_the_log_or_reports_a_full_disk(mounted: MountedDisk) -> None:
    """It must store the end of a lease of the previous daemon."""
    daemon = mounted.daemon
    with eoq.connect(daemon.socket) as client:
        client.send("leased", "x", id="a")
        client.receive("leased")
        _fill(mounted, client)
        daemon.kill()
        try:
            daemon.start()
        except AssertionError:
            assert "is full" in daemon.said
            mounted.free()
            daemon.start()
        assert ids_of(settle_all(client, "leased")) == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize(("bytes_each", "batch"), [(100_000, 100), (1_000_000, 16), (100, 1000)])
def test_sends_leave_room_to_receive_settle_purge_and_stop(bytes_each: int, batch: int) -> None:
    """Whatever the batch, sends do not use up what is kept, neither by the file nor by the log."""
    with _daemon_on_a_disk(96 * 1024 * 1024) as daemon:
        with eoq.connect(daemon.socket) as client:
            with pytest.raises(eoq.StorageFull):
                while True:
                    client.send_many(QUEUE, [os.urandom(bytes_each)] * batch)
            for _ in range(3):
                messages = client.receive(QUEUE, 10)
                assert messages
                client.ack_many([(message, bytes_each * b"r") for message in messages])
            assert client.purge(QUEUE) > 0
            client.send(QUEUE, b"there is room again")
        assert daemon.terminate() == 0
        daemon.start()
        with eoq.connect(daemon.socket) as client:
            assert [message.body for message in client.receive(QUEUE, 10)] == [b"there is room again"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a send", "a settle with sends"])
def test_the_unused_pages_of_the_file_become_free_space_of_a_disk_that_others_have_filled(how: str) -> None:
    """The file has tens of megabytes that no message needs. The daemon gives them back, and is not restarted for it."""
    with _daemon_on_a_disk(96 * 1024 * 1024) as daemon:
        with eoq.connect(daemon.socket) as client:
            for _ in range(6):
                client.send_many(QUEUE, [os.urandom(100_000)] * 100)
        assert daemon.terminate() == 0  # its log is empty then
        disk = daemon.db.parent
        space = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 4_000_000))
        daemon.start()
        with eoq.connect(daemon.socket) as client:

            def is_stored() -> bool:
                with suppress(eoq.StorageFull):
                    if how == "a send":
                        return bool(client.send(QUEUE, b"after").id)
                    return client.ask("settle", send=[{"queue": QUEUE, "body": "after"}])["ok"] is True
                return False

            assert not is_stored()
            assert client.purge(QUEUE) == 600
            eventually(is_stored)
            eventually(lambda: is_stored() and daemon.db.stat().st_size < 50_000_000)
