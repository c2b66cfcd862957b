"""Test bad files: the daemon reports what to do, with the right exit status, and damages nothing."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pytest

import eoq
from tests.faults.daemons import RUNNER, ids_of, left, planted_daemon, settle_all, show
from tests.faults.planted_daemon import Plant
from tests.support import NOBODY, PATIENCE, Daemon, Ran, clean_environment, eventually, running_daemon

TRY_AGAIN: Final = 75
NOT_ALLOWED: Final = 77
BAD_DATA: Final = 65
IS_ROOT: Final = os.geteuid() == 0
PAGE: Final = 4096
SMALLEST_LIMIT: Final = 4096
"""Bytes. A limit of this size on files makes every write of SQLite fail."""


def _refused(db: Path, path: Path) -> Ran:
    """Run a daemon that must refuse to start, and return what it printed."""
    return _run([sys.executable, "-m", "eoq.cli", "daemon", "--db", str(db), "--socket", str(path)])


def _refused_as_other_user(db: Path, path: Path) -> Ran:
    """Run a daemon that must refuse to start, as an ordinary user."""
    if not IS_ROOT:
        return _refused(db, path)
    plant = msgspec.json.encode(Plant(user=NOBODY)).decode()
    return _run([sys.executable, str(RUNNER), str(db), str(path), plant])


def _run(command: list[str]) -> Ran:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=clean_environment(), cwd="/") as process:
        assert process.stdout is not None
        if process.stdout.readline().startswith(b"ready"):
            process.terminate()
            pytest.fail("the daemon has started")
        stdout, stderr = process.communicate(timeout=PATIENCE)
    ran = Ran(process.returncode, stdout, stderr)
    assert "Traceback" not in ran.errors, ran.errors
    assert ran.errors.startswith("eoq: "), ran.errors
    return ran


def _contents(folder: Path) -> dict[str, bytes | None]:
    """Return the files of a folder with their contents, except the lock files, which a daemon always leaves."""
    return {
        path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir() if path.suffix != ".lock"
    }


# ── not a file of eoq ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Bad:
    """A bad file in the place of the database, and how the daemon must refuse it."""

    name: str
    make: Callable[[Path], object]
    status: int
    says: tuple[str, ...]


def _other_program(db: Path) -> None:
    with closing(sqlite3.connect(db)) as database:
        database.executescript("create table message (theirs); insert into message values (1)")


def _newer(db: Path) -> None:
    _sent(db.parent)
    with closing(sqlite3.connect(db)) as database:
        database.execute("pragma user_version = 99")


def _sent(folder: Path, bodies: int = 3, size: int = 10) -> list[str]:
    """Leave the files of a stopped daemon with messages. Return their ids."""
    with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:
        sent = client.send_many("q", [eoq.Outgoing(bytes(size), id=f"{number}") for number in range(bodies)])
        assert daemon.terminate() == 0
    return [each.id for each in sent]


def _head_overwritten(db: Path) -> None:
    _sent(db.parent)
    with db.open("r+b") as file:
        file.write(b"\xff" * 100)


BAD: Final = (
    Bad("text", lambda db: db.write_text("dear diary, " * 1000), BAD_DATA, ("no database", "restore it from a backup")),
    Bad("noise", lambda db: db.write_bytes(random.Random(1).randbytes(10_000)), BAD_DATA, ("no database", "restore")),
    Bad("head overwritten", _head_overwritten, BAD_DATA, ("no database", "restore")),
    Bad("of another program", _other_program, BAD_DATA, ("another program", "of its own")),
    Bad("newer", _newer, BAD_DATA, ("newer eoq", "install")),
    Bad("a folder", lambda db: db.mkdir(), NOT_ALLOWED, ("is a folder", "--db")),
    Bad("a dangling link", lambda db: db.symlink_to("nowhere/eoq.db"), NOT_ALLOWED, ("does not exist", "mkdir")),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
@pytest.mark.first_by_default
def test_a_bad_file_is_refused_and_not_changed(folder: Path, bad: Bad) -> None:
    db = folder / "eoq.db"
    bad.make(db)
    before = _contents(folder)
    ran = _refused(db, folder / "s")
    assert ran.status == bad.status, ran.errors
    assert str(folder) in ran.errors
    assert [says for says in bad.says if says not in ran.errors] == [], ran.errors
    assert _contents(folder) == before


def test_an_empty_file_becomes_a_new_database(folder: Path) -> None:
    """`mktemp` makes such a file."""
    (folder / "eoq.db").touch()
    assert _sent(folder) == ["0", "1", "2"]


def test_a_missing_folder_is_made(folder: Path) -> None:
    deep = folder / "a" / "b"
    with planted_daemon(folder=folder) as daemon:
        daemon.terminate()
        daemon.db = deep / "eoq.db"
        daemon.start()
        assert daemon.serves()
    assert deep.stat().st_mode & 0o077 == 0


def test_a_file_in_the_place_of_a_folder_is_refused(folder: Path) -> None:
    (folder / "file").write_text("x")
    ran = _refused(folder / "file" / "eoq.db", folder / "s")
    assert ran.status == NOT_ALLOWED
    assert str(folder / "file") in ran.errors


# ── not allowed ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_file_or_folder_without_write_permission_is_77(folder: Path, place: str) -> None:
    mine = folder / "mine"
    mine.mkdir()
    _sent(mine)
    (mine / "eoq.db.lock").unlink()
    folder.chmod(0o755)
    for path in (mine, *mine.iterdir()):
        if IS_ROOT:
            os.chown(path, NOBODY, NOBODY)
    (mine / "eoq.db").chmod(0o444 if place == "file" else 0o600)
    mine.chmod(0o555 if place == "folder" else 0o700)
    before = (mine / "eoq.db").read_bytes()
    open_to_all = folder / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    try:
        ran = _refused_as_other_user(mine / "eoq.db", open_to_all / "s")
    finally:
        mine.chmod(0o700)
    assert ran.status == NOT_ALLOWED, ran.errors
    assert "written by this user" in ran.errors
    assert str(mine / "eoq.db") in ran.errors
    assert (mine / "eoq.db").read_bytes() == before


# ── damaged pages ───────────────────────────────────────────────────────────────────────────────────────────


MESSAGES: Final = 300


def _damage(db: Path, first: float, last: float) -> None:
    """Overwrite the pages between two fractions of a file with garbage."""
    size = db.stat().st_size
    start, end = (int(size * part) // PAGE * PAGE for part in (first, last))
    with db.open("r+b") as file:
        file.seek(start)
        file.write(random.Random(1).randbytes(end - start))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return an undamaged database whose messages have about one page each."""
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(bytes(3000), id=f"{number}") for number in range(MESSAGES)])
        assert daemon.terminate() == 0
        yield Path(shutil.copy(daemon.db, tmp_path_factory.mktemp("good") / "eoq.db"))


def _receive_until_damage(client: eoq.Client) -> tuple[list[str], eoq.EoqError | None]:
    """Receive and ack messages one by one. Return the ids of those that were acked, and the error that ended it."""
    received: list[str] = []
    try:
        while messages := client.receive("q"):
            messages[0].ack()
            received += ids_of(messages)
    except eoq.EoqError as error:
        return received, error
    return received, None


def test_garbage_in_the_middle_is_reported_and_the_rest_is_delivered(good: Path, folder: Path) -> None:
    """What can be read is delivered in order, once. Then the error says what to do, also after a restart."""
    shutil.copy(good, folder)
    _damage(folder / "eoq.db", 0.4, 0.5)
    with planted_daemon(folder=folder) as daemon, eoq.connect(daemon.socket) as client:
        received, error = _receive_until_damage(client)
        assert received == [f"{number}" for number in range(len(received))]
        assert 0 < len(received) < MESSAGES
        _check_damage_reported(error)
        assert client.ask("status")["pid"] == daemon.pid
        assert client.send("other", "x", id="a").duplicate is False
        assert ids_of(settle_all(client, "other")) == ["a"]
        daemon.restart()
        again, error = _receive_until_damage(client)
        assert not set(again) & set(received)
        _check_damage_reported(error)


@pytest.mark.slow
def test_damage_is_75_on_the_command_line(good: Path, folder: Path) -> None:
    shutil.copy(good, folder)
    _damage(folder / "eoq.db", 0.2, 0.9)
    with planted_daemon(folder=folder) as daemon:
        ran = daemon.shell().run("while eoq receive q; do :; done > /dev/null 2> err; eoq receive q")
        assert ran.status == TRY_AGAIN
        assert "restore it from a backup" in ran.errors


def test_a_truncated_file_is_refused(good: Path, folder: Path) -> None:
    shutil.copy(good, folder)
    os.truncate(folder / "eoq.db", (folder / "eoq.db").stat().st_size // 2)
    before = _contents(folder)
    ran = _refused(folder / "eoq.db", folder / "s")
    assert ran.status == TRY_AGAIN
    assert "restore it from a backup" in ran.errors
    assert _contents(folder) == before


def _check_damage_reported(error: eoq.EoqError | None) -> None:
    assert isinstance(error, eoq.StorageFailed)
    assert "damaged" in str(error)
    assert "restore it from a backup" in str(error)


# ── a disk that fails ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _writes_fail(daemon: Daemon) -> Iterator[None]:
    """Make every write of the daemon's files fail with ``EFBIG``, which SQLite treats like ``EIO``."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (SMALLEST_LIMIT, before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can set limits of another process")
def test_failed_writes_are_reported_and_nothing_confirmed_is_lost() -> None:
    with planted_daemon() as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="a")
        (message,) = client.receive("q")
        client.send("q", "x", id="b")
        with _writes_fail(daemon):
            for _ in range(3):
                with pytest.raises(eoq.StorageFailed, match="unknown whether this was stored"):
                    client.send("q", "x", id="c")
            with pytest.raises(eoq.StorageFailed):
                message.ack()
            ran = daemon.shell().run("eoq send q x")
            assert ran.status == TRY_AGAIN
            assert (show(client, "q", "a") or {})["state"] == "leased"
        message.ack()
        assert show(client, "q", "c") is None
        assert client.send("q", "x", id="c").duplicate is False
        daemon.restart()
        assert ids_of(settle_all(client, "q")) == ["b", "c"]
        assert left(client, "q") == {}


# ── other daemons, sockets and locks ───────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_second_daemon_on_the_same_file_is_refused_and_names_the_first(daemon: Daemon) -> None:
    ran = _refused(daemon.db, daemon.folder / "other")
    assert ran.status == TRY_AGAIN
    assert f"pid {daemon.pid}" in ran.errors
    assert str(daemon.socket) in ran.errors
    assert "eoq stop" in ran.errors
    assert daemon.serves()
    assert not (daemon.folder / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "link to the folder"])
def test_a_second_daemon_by_another_name_of_the_file_is_refused(daemon: Daemon, kind: str) -> None:
    """Otherwise each daemon would take the other's leases for those of a dead daemon."""
    name = daemon.folder / "name.db"
    if kind == "symbolic link":
        name.symlink_to(daemon.db)
    elif kind == "hard link":
        name.hardlink_to(daemon.db)
    else:
        (daemon.folder / "link").symlink_to(daemon.folder)
        name = daemon.folder / "link" / "eoq.db"
    ran = _refused(name, daemon.folder / "other")
    assert ran.status == TRY_AGAIN


def test_a_second_daemon_on_the_same_socket_is_refused(daemon: Daemon) -> None:
    ran = _refused(daemon.folder / "other.db", daemon.socket)
    assert ran.status == TRY_AGAIN
    assert f"pid {daemon.pid}" in ran.errors
    assert daemon.serves()
    assert not (daemon.folder / "other.db").exists()


@pytest.mark.slow
def test_the_socket_of_another_program_is_not_touched(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "s"))
        other.listen()
        ran = _refused(folder / "eoq.db", folder / "s")
        assert ran.status == TRY_AGAIN
        assert "another program answers" in ran.errors
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(folder / "s"))


@pytest.mark.slow
def test_a_file_in_the_place_of_the_socket_is_not_touched(folder: Path) -> None:
    (folder / "s").write_text("a letter")
    ran = _refused(folder / "eoq.db", folder / "s")
    assert ran.status == BAD_DATA
    assert "no socket" in ran.errors
    assert (folder / "s").read_text() == "a letter"


def test_files_of_a_killed_daemon_do_not_stop_the_next_one(daemon: Daemon) -> None:
    """The next daemon takes over lock files, socket and log at once."""
    with eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="a")
        first = daemon.pid
        daemon.kill()
        assert daemon.socket.is_socket()
        assert json.loads(daemon.db.with_name("eoq.db.lock").read_text())["pid"] == first
        daemon.start()
        assert json.loads(daemon.db.with_name("eoq.db.lock").read_text())["pid"] == daemon.pid
        assert ids_of(settle_all(client, "q")) == ["a"]


@pytest.mark.first_by_default
@pytest.mark.parametrize("text", ["garbage", '{"pid": 1, "socket": "/nowhere"}', "\0" * 5000])
def test_a_lock_file_that_is_not_locked_has_no_effect(folder: Path, text: str) -> None:
    """Only a lock counts: the named process may have ended, and another may have its id."""
    (folder / "eoq.db.lock").write_text(text)
    assert _sent(folder) == ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[1]", '{"pid": 1}'])
def test_a_locked_lock_file_counts_whatever_its_text(daemon: Daemon, text: str) -> None:
    daemon.db.with_name("eoq.db.lock").write_text(text)
    ran = _refused(daemon.db, daemon.folder / "other")
    assert ran.status == TRY_AGAIN
    assert "another eoq daemon" in ran.errors


def test_a_stopped_daemon_leaves_no_socket_and_no_log(daemon: Daemon) -> None:
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    left = ["eoq.db", "eoq.db.lock", "eoq.db.spool"]
    eventually(lambda: sorted(path.name for path in daemon.folder.glob("eoq.db*")) == left)
    assert not daemon.socket.exists()
