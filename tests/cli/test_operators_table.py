"""The files of a daemon, removed or made wrong one after the other, under a running and under a stopped daemon.

After each, a command says what is wrong and what to do, and doing that works. The table `CASES` is what was tried.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.cases import one_in
from tests.support import Ran, Shell, eventually, short_folder

WORKS: Final = ""
"""The command works at once: nothing is to be done."""


class Case(NamedTuple):
    """What happens to a file, what commands say, and what is then done."""

    file: str
    change: Callable[[Path], object]
    running: str = WORKS
    """What `eoq send` says under a running daemon."""
    stopped: str = WORKS
    """What `eoq start` says after that daemon has been stopped, or if none ran."""
    mend: Callable[[Path], object] | None = None
    """What both texts say is to be done."""
    keeps: bool = True
    """Whether the messages from before are still there."""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _close(path: Path) -> None:
    if path.exists():
        path.chmod(0)


def _folder(path: Path) -> None:
    _remove(path)
    path.mkdir()


def _file(path: Path) -> None:
    _remove(path)
    path.write_text("something else")


def _pipe(path: Path) -> None:
    _remove(path)
    os.mkfifo(path)


def _link(path: Path) -> None:
    _remove(path)
    path.symlink_to("/dev/null")


def _loop(path: Path) -> None:
    _remove(path)
    path.symlink_to(path)


def _garbage(path: Path) -> None:
    path.write_bytes(b"\xff[[[ no = " * 1000)


def _write_config(path: Path) -> None:
    _remove(path)
    path.write_text('[queues."*"]\nmax_attempts = 5\n')


CASES: Final = [
    Case("run/s", _remove),
    Case(
        "run/s",
        _file,
        "something else is in the place of its socket; move that away",
        "is no socket; give another",
        _remove,
    ),
    Case("run/s", _folder, "something else is in the place of its socket", "is no socket; give another", _remove),
    Case("run/s", _loop, "the daemon with pid", "is no socket; give another", _remove),
    Case("run/s", _close),
    Case("run/s.lock", _remove),
    Case("run/s.lock", _folder, WORKS, "s.lock is something else (Is a directory); remove that", _remove),
    Case("run/s.lock", _garbage),
    Case("run", _remove),
    Case("run", _file, "the daemon with pid", "run is something else (File exists); remove that", _remove),
    Case("data/eoq.db.lock", _remove),
    Case(
        "data/eoq.db.lock",
        _pipe,
        WORKS,
        "eoq.db.lock is not a regular file, and the lock has to be one; remove it",
        _remove,
    ),
    Case("data/eoq.db.lock", _link, WORKS, "eoq.db.lock is something else", _remove),
    Case("data/eoq.db.log", _remove),
    Case("data/eoq.db.log", _folder, WORKS, "eoq.db.log is something else (Is a directory); remove that", _remove),
    Case("data/eoq.db.log", _pipe, WORKS, "eoq.db.log is something else", _remove),
    Case("data/eoq.db.log", _link, WORKS, "is not a regular file; remove it", _remove),
    Case("data/eoq.db", _remove, "was removed while the daemon used it", WORKS, keeps=False),
    Case(
        "data/eoq.db", _folder, "was replaced while the daemon used it", "is a folder; remove it", _remove, keeps=False
    ),
    Case(
        "data/eoq.db",
        _pipe,
        "was replaced while the daemon used it",
        "is not a regular file; remove it",
        _remove,
        keeps=False,
    ),
    Case(
        "data/eoq.db-shm",
        _folder,
        WORKS,
        "eoq.db-shm cannot be opened: it is a folder; remove it",
        _remove,
    ),
    Case("data", _remove, "was removed while the daemon used it", WORKS, keeps=False),
    Case("data", _file, "was removed while the daemon used it", "data is something else", _remove, keeps=False),
    Case("eoq.toml", _remove, WORKS, "does not exist", _write_config),
    Case("eoq.toml", _garbage, WORKS, "eoq.toml is wrong: it is not TOML", _write_config),
    Case("eoq.toml", _folder, WORKS, "is a directory", _write_config),
    Case("eoq.toml", _pipe, WORKS, "is not a regular file; give the path of one", _write_config),
]


class _Machine:
    """A folder with a daemon that `eoq start` has started, and one message in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("run", "data"):
            (folder / name).mkdir()
        _write_config(folder / "eoq.toml")
        self._shell = Shell(folder / "run" / "s", folder)
        assert self.run("eoq start").status == 0
        assert self.run("eoq send q before --id before").status == 0

    def run(self, command: str) -> Ran:
        return self._shell.run(
            command, EOQ_DB=str(self.folder / "data/eoq.db"), EOQ_CONFIG=str(self.folder / "eoq.toml")
        )

    def works(self) -> bool:
        ran = self.run("eoq send q after --id after")
        self.said = ran.errors
        return ran.status == 0

    def check_kept(self, keeps: bool) -> None:
        ids = self.run("eoq receive q --limit 10 --json | jq -r .id").lines
        assert ids == (["before", "after"] if keeps else ["after"])


@pytest.fixture
def machine() -> Iterator[_Machine]:
    """A machine of this test alone."""
    with short_folder() as folder:
        machine = _Machine(folder)
        try:
            yield machine
        finally:
            machine.run("eoq stop")


@pytest.mark.parametrize("case", one_in(3, [(case,) for case in CASES]))
@pytest.mark.slow
def test_under_a_running_daemon(machine: _Machine, case: Case) -> None:
    case.change(machine.folder / case.file)
    if case.running == WORKS:
        eventually(machine.works)
        machine.check_kept(keeps=True)
        return
    eventually(lambda: not machine.works())
    said = machine.said
    assert case.running in said, said
    if "daemon with pid" in said:
        assert case.mend is not None
        case.mend(machine.folder / case.file)
        eventually(machine.works)
    else:
        _start(machine, case)
    machine.check_kept(case.keeps)


@pytest.mark.parametrize("case", one_in(3, [(case,) for case in CASES[1:]]))
@pytest.mark.slow
def test_under_a_stopped_daemon(machine: _Machine, case: Case) -> None:
    assert machine.run("eoq stop").status == 0
    case.change(machine.folder / case.file)
    sent = machine.run("eoq send q after --id after")
    assert (sent.status, "start one with `eoq start`" in sent.errors) == (69, True), sent.errors
    _start(machine, case)
    machine.check_kept(case.keeps)


@pytest.mark.slow
def test_whoever_comes_after_the_daemon_has_ended_is_told_why(machine: _Machine) -> None:
    (machine.folder / "data/eoq.db").unlink()
    eventually(lambda: "start one with `eoq start`" in machine.run("eoq status").errors)
    said = machine.run("eoq send q x").errors
    assert "The last daemon there has stopped: " in said
    assert "eoq.db was removed while the daemon used it" in said
    assert machine.run("eoq start && eoq stop").status == 0
    assert "has stopped" not in machine.run("eoq status").errors


@pytest.mark.slow
def test_a_folder_that_cannot_be_looked_at_is_named_and_all_goes_on_when_it_is_mended(machine: _Machine) -> None:
    data, away = machine.folder / "data", machine.folder / "away"
    data.rename(away)
    _loop(data)
    eventually(lambda: not machine.works())
    assert "eoq.db cannot be looked at (Too many levels of symbolic links), so nothing was changed" in machine.said
    data.unlink()
    away.rename(data)
    eventually(machine.works)
    machine.check_kept(keeps=True)


def _start(machine: _Machine, case: Case) -> None:
    """Start a daemon. If that fails, do what it says, and start again."""
    ran = machine.run("eoq start")
    if case.stopped != WORKS:
        assert ran.status not in (0, 70)
        assert case.stopped in ran.errors, ran.errors
        assert case.mend is not None
        case.mend(machine.folder / case.file)
        ran = machine.run("eoq start")
    assert ran.status == 0, ran.errors
    assert machine.works()
