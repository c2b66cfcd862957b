"""Copies of the daemon's file, made by other programs: one that lacks the log is refused, whole ones are served."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.faults.daemons import ids_of, settle_all
from tests.support import Daemon, running_daemon, short_folder

LATER: Final = 75
"""The exit status of trouble with the storage."""
CRITICAL: Final = 2
"""The exit status of a check that finds what is critical."""
CONFIRMED: Final = [f"m-{n}" for n in range(20)]


@pytest.fixture
def used() -> Iterator[Daemon]:
    """A daemon that runs, and whose newest confirmed messages are in the log only."""
    with running_daemon() as daemon:
        with eoq.connect(daemon.socket) as client:
            for id in CONFIRMED:
                client.send("q", "x", id=id)
        yield daemon


def _copy_beside(daemon: Daemon, folder: Path, *names: str) -> Path:
    for name in names or ("eoq.db",):
        shutil.copy(daemon.folder / name, folder / name)
    return folder / "eoq.db"


def _refused(folder: Path) -> str:
    """Start a daemon in ``folder``, which must be refused, and return what it says."""
    ran = Daemon(folder).shell().run(f"eoq daemon --db {folder}/eoq.db --socket {folder}/s")
    assert ran.status == LATER
    return ran.errors


def _served(folder: Path) -> list[str]:
    """Start a daemon in ``folder``, and return the ids of the messages that it has."""
    daemon = Daemon(folder)
    daemon.start()
    try:
        with eoq.connect(daemon.socket) as client:
            return ids_of(settle_all(client, "q"))
    finally:
        daemon.terminate()


@pytest.mark.parametrize("end", [lambda _: None, Daemon.kill], ids=["while-it-runs", "after-a-kill"])
def test_a_copy_without_its_log_is_refused_and_not_changed(used: Daemon, end: Callable[[Daemon], object]) -> None:
    end(used)
    with short_folder() as folder:
        copy = _copy_beside(used, folder)
        before = copy.read_bytes()
        for _ in range(2):
            said = _refused(folder)
            assert "without the log beside it (eoq.db-wal)" in said
            assert "eoq restore" in said
            assert copy.read_bytes() == before
            assert not copy.with_name("eoq.db-wal").exists()


def test_what_the_refusal_says_works(used: Daemon) -> None:
    with short_folder() as folder:
        copy = _copy_beside(used, folder)
        _refused(folder)
        copy.rename(folder / "old")
        shell = Daemon(folder).shell()
        assert shell.run(f"eoq restore old --db {copy} --yes").status == 0
        assert copy.exists()
        ids = _served(folder)
        assert ids == CONFIRMED[: len(ids)], "the copy has all up to some moment"


def test_a_copy_with_its_log_is_served(used: Daemon) -> None:
    used.kill()
    with short_folder() as folder:
        _copy_beside(used, folder, "eoq.db", "eoq.db-wal")
        assert _served(folder) == CONFIRMED


def test_a_copy_after_a_clean_stop_is_served(used: Daemon) -> None:
    used.terminate()
    with short_folder() as folder:
        _copy_beside(used, folder)
        assert _served(folder) == CONFIRMED


def test_a_backup_is_served_wherever_it_is_put(used: Daemon) -> None:
    with short_folder() as folder:
        used.shell().run(f"eoq backup {folder / 'eoq.db'} --db {used.db}")
        assert _served(folder) == CONFIRMED


def _back_up(source: sqlite3.Connection, path: Path) -> None:
    with closing(sqlite3.connect(path)) as target:
        source.backup(target)


def _vacuum(source: sqlite3.Connection, path: Path) -> None:
    source.execute("vacuum into ?", (str(path),))


@pytest.mark.parametrize("make", [_back_up, _vacuum], ids=["backup", "vacuum"])
def test_a_copy_that_sqlite_made_is_served(used: Daemon, make: Callable[[sqlite3.Connection, Path], None]) -> None:
    """And so is a copy of that one, and so on."""
    with ExitStack() as stack:
        source = used.db
        for _ in range(3):
            folder = stack.enter_context(short_folder())
            with closing(sqlite3.connect(source)) as file:
                make(file, folder / "made")
            shutil.copy(folder / "made", folder / "eoq.db")
            daemon = Daemon(folder)
            daemon.start()
            stack.callback(daemon.kill)
            source = daemon.db
        with eoq.connect(daemon.socket) as client:
            assert ids_of(settle_all(client, "q")) == CONFIRMED


def test_a_file_that_was_compacted_after_a_kill_is_served_wherever_it_is_put(used: Daemon) -> None:
    used.kill()
    used.shell().run(f"eoq compact --db {used.db}")
    with short_folder() as folder:
        _copy_beside(used, folder)
        assert _served(folder) == CONFIRMED


def test_the_file_whose_log_another_program_wrote_back_is_served_and_it_is_said(used: Daemon) -> None:
    used.kill()
    log = used.db.with_name("eoq.db-wal")
    with closing(sqlite3.connect(used.db)) as other:
        assert other.execute("select count(*) from message").fetchone() == (len(CONFIRMED),)
    assert not log.exists()
    used.start()
    warning = "if the log was removed, what was confirmed last is lost"
    assert warning in used.said
    assert warning in used.shell().run("eoq status").text
    checked = used.shell().run("eoq check")
    assert (checked.status, warning in checked.text) == (CRITICAL, True)
    with eoq.connect(used.socket) as client:
        assert ids_of(settle_all(client, "q")) == CONFIRMED


def test_a_file_that_is_moved_with_its_log_is_served(used: Daemon) -> None:
    used.kill()
    with short_folder() as folder:
        for name in ("eoq.db", "eoq.db-wal"):
            shutil.move(used.folder / name, folder / name)
        assert _served(folder) == CONFIRMED


@pytest.mark.parametrize("mark", ["", "text", "1 2 3", "x" * 100_000])
def test_a_mark_that_no_daemon_has_set_is_overwritten(used: Daemon, mark: str) -> None:
    used.terminate()
    with closing(sqlite3.connect(used.db)) as file, file:
        file.execute("update daemon set open_as = ?", (mark,))
    used.start()
    with eoq.connect(used.socket) as client:
        assert ids_of(settle_all(client, "q")) == CONFIRMED
