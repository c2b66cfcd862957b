"""``eoq daemon start stop status``: one daemon per file and socket, and clear errors if it cannot run."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support import (
    Daemon,
    Ran,
    Shell,
    clean_environment,
    eventually,
    read_line_of,
    running_daemon,
    runs,
)

# ── in the foreground ───────────────────────────────────────────────────────────────────────────────────────


def test_the_daemon_prints_ready_when_it_serves(daemon: Daemon) -> None:
    # `Daemon.start` has checked that the line is `ready SOCKET`.
    assert daemon.ask(op="status")["ok"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_stops_cleanly_and_removes_its_socket(daemon: Daemon, number: signal.Signals) -> None:
    daemon.signal(number)
    assert daemon.wait() == 0
    assert not daemon.socket.exists()
    assert "Traceback" not in daemon.said


def test_a_stopping_daemon_answers_the_requests_it_has_begun(daemon: Daemon) -> None:
    with daemon.wire() as wire:
        wire.send(*({"op": "send", "queue": "q", "id": f"{n}", "body": "x", "rid": n} for n in range(500)))
        first = wire.read()
        daemon.signal(signal.SIGTERM)
        replies = [first]
        while (line := wire.read_line()) is not None:
            replies.append(json.loads(line))
    assert daemon.wait() == 0
    assert all(reply["ok"] for reply in replies)
    daemon.start()
    stored = {message["id"] for message in daemon.ask(op="receive", queue="q", limit=1000)["messages"]}
    assert stored >= {reply["id"] for reply in replies}


def test_a_stopping_daemon_does_not_wait_for_waiting_receivers(daemon: Daemon) -> None:
    with daemon.wire() as wire:
        wire.send(
            {"op": "receive", "queue": "q", "wait": 3600}, {"op": "result", "queue": "q", "id": "m", "wait": 3600}
        )
        eventually(lambda: daemon.ask(op="status")["waiting"] == 1)
        assert daemon.terminate() == 0


def test_a_stale_socket_is_replaced(daemon: Daemon) -> None:
    daemon.kill()
    assert daemon.socket.is_socket()
    daemon.start()
    assert daemon.ask(op="status")["ok"]


def test_only_the_owner_may_use_the_socket(daemon: Daemon) -> None:
    assert daemon.socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_missing_folders_are_created_for_the_owner_alone(folder: Path) -> None:
    with closing(_daemon_process(folder / "a" / "b" / "eoq.db", folder / "c" / "s")) as process:
        assert read_line_of(process.popen).startswith(b"ready")
    assert (folder / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (folder / "c").stat().st_mode & 0o777 == 0o700


class _daemon_process:  # noqa: N801 # used as a function
    """A daemon with any paths. `close` ends it."""

    def __init__(self, db: Path, socket: Path) -> None:
        command = [sys.executable, "-m", "eoq.cli", "daemon", "--db", str(db), "--socket", str(socket)]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment(), cwd="/")

    def close(self) -> None:
        with self.popen:
            self.popen.terminate()


def _refused(folder: Path, db: object, socket: object) -> Ran:
    """Run a daemon that cannot start, and return how it ends."""
    ran = Shell(folder / "none", folder).run(f"eoq daemon --db '{db}' --socket '{socket}'")
    assert ran.text == ""
    assert len(ran.errors.splitlines()) == 1, ran.errors
    return ran


@pytest.mark.slow
def test_a_second_daemon_on_the_file_does_not_start_and_names_the_first(daemon: Daemon) -> None:
    ran = _refused(daemon.folder, daemon.db, daemon.folder / "other")
    assert ran.status == 75
    assert str(daemon.pid) in ran.errors
    assert str(daemon.socket) in ran.errors
    assert daemon.ask(op="status")["ok"]


@pytest.mark.slow
def test_a_second_daemon_on_the_socket_does_not_start_and_names_the_first(daemon: Daemon) -> None:
    ran = _refused(daemon.folder, daemon.folder / "other.db", daemon.socket)
    assert ran.status == 75
    assert str(daemon.pid) in ran.errors
    assert daemon.ask(op="status")["ok"]


@pytest.mark.slow
def test_the_file_is_locked_under_every_name(daemon: Daemon) -> None:
    """Two daemons on one file under two names would each count messages on their own."""
    link = daemon.folder / "link.db"
    link.symlink_to(daemon.db)
    ran = _refused(daemon.folder, link, daemon.folder / "other")
    assert ran.status == 75


@pytest.mark.slow
def test_the_socket_of_another_program_is_not_replaced(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "s"))
        other.listen()
        ran = _refused(folder, folder / "eoq.db", folder / "s")
        assert ran.status == 75
        assert "another program" in ran.errors
        assert (folder / "s").is_socket()


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.slow
def test_a_path_that_is_not_a_socket_is_not_removed(folder: Path, what: str) -> None:
    path = folder / "s"
    path.write_text("precious") if what == "file" else path.mkdir()
    ran = _refused(folder, folder / "eoq.db", path)
    assert ran.status == 65
    assert "no socket" in ran.errors
    assert path.exists()


@pytest.mark.slow
def test_a_socket_path_that_is_too_long_is_an_error(folder: Path) -> None:
    ran = _refused(folder, folder / "eoq.db", folder / ("s" * 120))
    assert ran.status == 65
    assert "too long" in ran.errors


@pytest.mark.parametrize("place", ["db", "socket"])
@pytest.mark.slow
def test_a_path_below_a_file_exits_77(folder: Path, place: str) -> None:
    (folder / "file").write_text("")
    below = folder / "file" / "x"
    ran = _refused(folder, below if place == "db" else folder / "eoq.db", below if place == "socket" else folder / "s")
    assert ran.status == 77
    assert str(folder / "file") in ran.errors


@pytest.mark.slow
def test_a_database_that_is_a_folder_is_refused(folder: Path) -> None:
    (folder / "eoq.db").mkdir()
    ran = _refused(folder, folder / "eoq.db", folder / "s")
    assert ran.status in (75, 77)
    assert "eoq.db" in ran.errors


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 100, b"short"])
@pytest.mark.slow
def test_a_file_that_is_not_a_database_is_refused_and_kept(folder: Path, content: bytes) -> None:
    (folder / "eoq.db").write_bytes(content)
    ran = _refused(folder, folder / "eoq.db", folder / "s")
    assert ran.status == 65
    assert "no database" in ran.errors
    assert (folder / "eoq.db").read_bytes() == content


@pytest.mark.slow
def test_a_database_of_another_program_is_refused_and_kept(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "eoq.db")) as database:
        database.execute("create table theirs (x)")
    before = (folder / "eoq.db").read_bytes()
    ran = _refused(folder, folder / "eoq.db", folder / "s")
    assert ran.status == 65
    assert "another program" in ran.errors
    assert (folder / "eoq.db").read_bytes() == before


@pytest.mark.slow
def test_a_database_of_a_newer_eoq_is_refused(daemon: Daemon) -> None:
    daemon.terminate()
    with closing(sqlite3.connect(daemon.db)) as database:
        database.execute("pragma user_version = 9999")
    ran = _refused(daemon.folder, daemon.db, daemon.socket)
    assert ran.status == 65
    assert "newer" in ran.errors


@pytest.mark.slow
def test_files_of_a_daemon_are_for_its_owner_alone(alone: Shell, folder: Path) -> None:
    assert alone.run("umask 022; eoq start && eoq send q x").status == 0
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.glob("eoq.db*")}
    assert modes.pop("eoq.db.spool") == "0o700"
    assert modes == dict.fromkeys(("eoq.db", "eoq.db-wal", "eoq.db-shm", "eoq.db.log", "eoq.db.lock"), "0o600")


@pytest.mark.slow
def test_an_existing_file_keeps_its_mode(alone: Shell, folder: Path) -> None:
    """Its owner may have given it to a group on purpose."""
    (folder / "eoq.db").touch(0o640)
    (folder / "eoq.db").chmod(0o640)
    assert alone.run("eoq start && eoq send q x").status == 0
    assert (folder / "eoq.db").stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
def test_a_refusal_leaves_no_lock_file_behind(folder: Path) -> None:
    (folder / "eoq.db").write_text("no database, but long enough to be read as one" * 100)
    _refused(folder, folder / "eoq.db", folder / "s")
    assert [path.name for path in folder.iterdir()] == ["eoq.db"]


@pytest.mark.slow
def test_a_refusal_leaves_the_lock_file_of_another_daemon(daemon: Daemon) -> None:
    assert _refused(daemon.folder, daemon.db, daemon.folder / "other").status == 75
    assert _refused(daemon.folder, daemon.folder / "other.db", daemon.socket).status == 75
    locks = sorted(path.name for path in daemon.folder.glob("*.lock"))
    assert locks == ["eoq.db.lock", "s.lock"]
    assert _refused(daemon.folder, daemon.db, daemon.folder / "other").status == 75


# ── in the background ───────────────────────────────────────────────────────────────────────────────────────


def test_start_status_stop(alone: Shell) -> None:
    ran = alone.run(
        "eoq status; echo $?; eoq start; echo $?; eoq status --json; eoq send q x; eoq stop; echo $?; eoq status"
    )
    assert ran.status == 69
    assert [ran.lines[0], ran.lines[1], ran.lines[-1]] == ["69", "0", "0"]
    assert "runs, with pid" in ran.errors
    assert "stopped" in ran.errors
    assert not alone.socket.exists()


@pytest.mark.slow
def test_start_survives_its_shell_and_keeps_its_messages(alone: Shell) -> None:
    alone.run("eoq start")
    alone.run("eoq send q x --id m")
    alone.run("eoq stop; eoq start")
    assert alone.run("eoq receive q").text == "x\n"


@pytest.mark.slow
def test_start_twice_starts_one(alone: Shell) -> None:
    first = json.loads(alone.run("eoq start; eoq status --json").text)
    ran = alone.run("eoq start")
    assert ran.status == 0
    assert str(first["pid"]) in ran.errors
    assert json.loads(alone.run("eoq status --json").text)["pid"] == first["pid"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--spool spool", "flag --spool says {folder}/spool, and it has {folder}/eoq.db.spool"),
        ("--db other.db", "flag --db says {folder}/other.db, and it has {folder}/eoq.db"),
        pytest.param("--max-attempts 3", "flag --max-attempts says 3, and it has none", marks=pytest.mark.slow),
        pytest.param(
            "--config eoq.toml", "flag --config says {folder}/eoq.toml, and it has none", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.slow
def test_start_with_other_options_than_the_running_daemon_exits_75_and_names_them(
    alone: Shell, folder: Path, options: str, says: str
) -> None:
    """A user who asks for a spool must not believe that the running daemon has one."""
    (folder / "eoq.toml").write_text("")
    assert alone.run("eoq start").status == 0
    ran = alone.run(f"eoq start {options}")
    assert (ran.status, ran.text) == (75, "")
    assert says.format(folder=folder) in ran.errors
    assert "eoq stop" in ran.errors
    assert alone.run(f"eoq stop && eoq start {options}").status == 0
    # Now it runs with these options. A start without options accepts it as well.
    assert alone.run(f"eoq start {options}").status == 0
    assert alone.run("unset EOQ_DB; eoq start").status == 0


@pytest.mark.slow
def test_start_with_another_name_of_the_same_file_is_not_another_option(alone: Shell, folder: Path) -> None:
    (folder / "link").symlink_to(folder)
    assert alone.run("eoq start && eoq start --db link/eoq.db").status == 0
    ran = alone.run("eoq start", EOQ_MAX_ATTEMPTS="5")
    assert ran.status == 75
    assert "env EOQ_MAX_ATTEMPTS says 5" in ran.errors


@pytest.mark.slow
def test_many_starts_at_once_start_one(alone: Shell) -> None:
    ran = alone.run("for n in 1 2 3 4 5; do eoq start & done; wait; eoq status --json")
    assert len(ran.rows) == 1


@pytest.mark.slow
def test_start_replaces_a_stale_socket(alone: Shell) -> None:
    pid = json.loads(alone.run("eoq start 2>/dev/null; eoq status --json").text)["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not runs(pid))
    assert alone.socket.is_socket()
    assert alone.run("eoq status").status == 69
    assert alone.run("eoq start; eoq status").status == 0


@pytest.mark.slow
def test_stop_without_a_daemon_is_no_failure(alone: Shell) -> None:
    ran = alone.run("eoq stop")
    assert ran.status == 0
    assert "no daemon" in ran.errors


@pytest.mark.slow
def test_a_failed_start_prints_the_reason(alone: Shell, folder: Path) -> None:
    (folder / "eoq.db").write_text("no database at all")
    ran = alone.run("eoq start")
    assert ran.status == 65
    assert "no database" in ran.errors


@pytest.mark.slow
def test_a_start_that_may_not_write_exits_77(alone: Shell, folder: Path) -> None:
    (folder / "file").write_text("")
    ran = alone.run(f"eoq start --db {folder}/file/eoq.db")
    assert ran.status == 77


@pytest.mark.slow
def test_start_returns_even_if_its_output_is_a_pipe(alone: Shell) -> None:
    """A daemon that kept the pipe open would let `$(eoq start)` wait for ever."""
    assert alone.run('said=$(eoq start 2>&1); echo "$said"').text.startswith("eoq: the daemon runs")


@pytest.mark.slow
def test_the_error_for_a_killed_daemon_differs_from_that_for_none(alone: Shell) -> None:
    alone.run("eoq start")
    pid = json.loads(alone.run("eoq status --json").text)["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not runs(pid))
    ran = alone.run("eoq send q x")
    assert ran.status == 69
    assert "refused" in ran.errors


@contextmanager
def _many_queues(count: int) -> Iterator[Daemon]:
    with running_daemon() as daemon:
        with daemon.wire() as wire:
            for start in range(0, count, 100):
                wire.send(*({"op": "send", "queue": f"q{start + number}", "body": ""} for number in range(100)))
                assert all(wire.read()["ok"] for _ in range(100))
        yield daemon


@pytest.mark.slow
def test_thousands_of_queues_are_listed() -> None:
    with _many_queues(3000) as daemon:
        assert len(daemon.shell().run("eoq queues --json").rows) == 3000
