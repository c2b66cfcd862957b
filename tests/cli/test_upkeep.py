"""``backup``, ``restore`` and ``compact``: the daemon's file is copied, put back, and made small, at any kill whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import eoq
from eoq.daemon.locks import Lock
from eoq.daemon.upkeep.restore import restore
from tests.faults.daemons import settle_all
from tests.support import Daemon, Shell, clean_environment, running_daemon

LOCKED, BAD_DATA, NOTHING = 75, 65, 1


def _ids(path: Path) -> set[str]:
    """Return the ids of the messages in a file that no daemon uses."""
    with closing(sqlite3.connect(path)) as database:
        return {id for (id,) in database.execute("select id from message")}


@pytest.fixture
def stopped(daemon: Daemon) -> Iterator[Daemon]:
    """Return a daemon that has stopped. Its file has the messages `a` and `b`; the backup beside it has `a`."""
    with eoq.connect(daemon.socket) as client:
        client.send("q", "1", id="a")
        assert daemon.shell().run("eoq backup before.db").status == 0
        client.send("q", "2", id="b")
    daemon.terminate()
    yield daemon


# ── backup ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_backup_has_all_that_was_confirmed_while_others_send(daemon: Daemon) -> None:
    confirmed: list[str] = []
    stop = threading.Event()

    def send() -> None:
        with eoq.connect(daemon.socket) as client:
            while not stop.is_set():
                confirmed.append(client.send("q", "x" * 500).id)

    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"x" * 1000, id=f"{number}") for number in range(3000)])
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for number in range(3):
            before = set(confirmed)
            ran = daemon.shell().run(f"eoq backup {number}.db")
            assert (ran.status, ran.text) == (0, f"{number}.db\n")
            assert "settled ids" in ran.errors
            assert before <= _ids(daemon.folder / f"{number}.db")
    finally:
        stop.set()
        sender.join()
    backup = daemon.folder / "2.db"
    assert backup.stat().st_mode & 0o777 == 0o600
    with running_daemon() as other:
        other.terminate()
        shutil.copy(backup, other.db)
        other.start()
        with eoq.connect(other.socket) as client:
            assert len(settle_all(client, "q")) == len(_ids(backup))


@pytest.mark.slow
def test_a_backup_replaces_an_earlier_one_and_nothing_else(daemon: Daemon) -> None:
    shell = daemon.shell()
    assert shell.run("eoq backup b.db && eoq send q hello --id a && eoq backup b.db").status == 0
    assert _ids(daemon.folder / "b.db") == {"a"}
    for other in ("notes.txt", "eoq.db", "eoq.db-wal", "eoq.db-shm"):
        shell.run("echo precious > notes.txt")
        ran = shell.run(f"eoq backup {other}")
        assert ran.status == BAD_DATA, other
        assert other in ran.errors
    assert (daemon.folder / "notes.txt").read_text() == "precious\n"
    assert daemon.ask(op="status")["ok"]
    ran = shell.run("eoq backup no/such/folder/b.db")
    assert (ran.status, "no/such/folder does not exist" in ran.errors) == (77, True)


def test_a_backup_into_a_folder_is_named_by_the_time(daemon: Daemon) -> None:
    ran = daemon.shell().run("mkdir kept && eoq backup kept --json | jq -r .backup")
    (made,) = (daemon.folder / "kept").iterdir()
    assert ran.text == f"kept/{made.name}\n"
    assert made.name.startswith("eoq-20")


@pytest.mark.slow
def test_a_backup_of_the_file_of_a_daemon_that_has_stopped(daemon: Daemon) -> None:
    daemon.ask(op="send", queue="q", id="a", body="x")
    daemon.kill()  # the message is in the log alone
    shell = daemon.shell()
    assert shell.run("eoq backup b.db").status == 0
    assert _ids(daemon.folder / "b.db") == {"a"}
    assert shell.run("eoq backup b.db --db missing.db").status == NOTHING
    daemon.start()


@pytest.mark.slow
def test_a_damaged_file_leaves_no_backup(stopped: Daemon) -> None:
    with stopped.db.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * 4096 * 4)
    ran = stopped.shell().run("eoq backup after.db")
    assert ran.status == LOCKED
    assert "damaged" in ran.errors
    assert not list(stopped.folder.glob("after*"))


@pytest.mark.slow
def test_a_backup_is_given_up_before_the_daemon_has_no_room(daemon: Daemon) -> None:
    shell = daemon.shell()
    shell.run("printf '[storage]\\nmin_free_bytes = 1000000000000000\\n' > other.toml; eoq send q x")
    ran = shell.run("eoq backup b.db --config other.toml")
    assert ran.status == LOCKED
    assert "given up" in ran.errors
    assert not list(daemon.folder.glob("b.db*"))


# ── kills ───────────────────────────────────────────────────────────────────────────────────────────────────

_KILLED = """
import os, sys
from pathlib import Path
import eoq.daemon.upkeep.{module} as module
from eoq.daemon.config.settings import StorageSettings

left = int(sys.argv[3])

def step(*_):
    global left
    left -= 1
    if left < 0:
        os._exit(9)

def counted(function):
    def call(*arguments, **options):
        step()
        result = function(*arguments, **options)
        step()
        return result
    return call

os.link, os.fsync, os.open = counted(os.link), counted(os.fsync), counted(os.open)
Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
module.{call}
"""


def _killed_at(step: int, module: str, call: str, one: Path, other: Path) -> bool:
    """Run a function of the upkeep, killed at a step. Return whether there was such a step."""
    code = _KILLED.format(module=module, call=call)
    command = [sys.executable, "-c", code, str(one), str(other), str(step)]
    status = subprocess.run(command, env=clean_environment(), cwd=one.parent, check=False).returncode
    assert status in (0, 9)
    return status == 9


@pytest.mark.slow
def test_a_backup_killed_at_any_step_leaves_the_earlier_one_or_the_new_one(stopped: Daemon) -> None:
    backup = stopped.folder / "before.db"
    call = "backup(Path(sys.argv[1]), Path(sys.argv[2]), StorageSettings(), step)"
    seen = set()
    step = 0
    while _killed_at(step, "backup", call, stopped.db, backup):
        seen.add(frozenset(_ids(backup)))
        step += 1
    assert seen == {frozenset("a"), frozenset("ab")}
    assert not list(stopped.folder.glob("*.part*"))


@pytest.mark.slow
def test_a_restore_killed_at_any_step_leaves_the_old_file_or_the_new_one(stopped: Daemon) -> None:
    """And the old one is not lost: a second try puts the backup in its place, and keeps it."""
    call = "restore(Path(sys.argv[2]), Path(sys.argv[1]), step)"
    original = stopped.folder / "original"
    stopped.db.rename(original)
    seen = set()
    step = 0
    killed = True
    while killed:
        for file in stopped.folder.glob("eoq.db*"):
            if file.is_file():
                file.unlink()
        shutil.copy(original, stopped.db)
        killed = _killed_at(step, "restore", call, stopped.db, stopped.folder / "before.db")
        seen.add(frozenset(_ids(stopped.db)))
        ran = stopped.shell().run("eoq restore before.db --yes")
        assert ran.status == 0, ran.errors
        assert _ids(stopped.db) == {"a"}
        assert any(_ids(kept) == {"a", "b"} for kept in stopped.folder.glob("eoq.db.before-restore-*"))
        step += 1
    assert seen == {frozenset("a"), frozenset("ab")}
    stopped.start()


# ── restore ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_restore_puts_the_backup_in_place_and_keeps_the_old_file(stopped: Daemon) -> None:
    ran = stopped.shell().run("eoq restore before.db --yes")
    assert ran.status == 0
    kept = Path(ran.text.strip())
    assert _ids(kept) == {"a", "b"}
    stopped.start()
    with eoq.connect(stopped.socket) as client:
        assert client.send("q", "2", id="b").duplicate is False, "it was sent after the backup, so it is not known"
        assert client.send("q", "1", id="a").duplicate is True


@pytest.mark.slow
def test_a_restore_while_the_daemon_runs_changes_nothing(daemon: Daemon) -> None:
    shell = daemon.shell()
    assert shell.run("eoq backup b.db && eoq send q x --id a").status == 0
    ran = shell.run("eoq restore b.db --yes")
    assert ran.status == LOCKED
    assert str(daemon.pid) in ran.errors
    assert daemon.ask(op="show", queue="q", id="a")["ok"]
    assert shell.run("eoq restore b.db < /dev/null").status == 2, "without a terminal it has to be confirmed by --yes"


@pytest.mark.slow
def test_two_commands_at_once_on_one_file_name_each_other(stopped: Daemon) -> None:
    with Lock(stopped.db, {"pid": os.getpid(), "socket": ""}):
        for command in ("restore before.db --yes", "compact"):
            ran = stopped.shell().run(f"eoq {command}")
            assert ran.status == LOCKED
            assert f"the eoq command with pid {os.getpid()}; try again when it has ended" in ran.errors


@pytest.mark.slow
def test_what_is_no_backup_is_refused(stopped: Daemon) -> None:
    shell = stopped.shell()
    shell.run("echo text > text; head -c 20000 before.db > cut.db; python3 -c \"import sqlite3; "
              "sqlite3.connect('other.db').execute('create table t(x)')\"")  # fmt: skip
    for name, status in (("text", 65), ("other.db", 65), ("cut.db", 75), ("eoq.db", 65), ("missing.db", 1)):
        ran = shell.run(f"eoq restore {name} --yes")
        assert ran.status == status, (name, ran.errors)
        assert name in ran.errors
    assert _ids(stopped.db) == {"a", "b"}


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.slow
def test_a_log_that_stayed_behind_does_not_reach_the_restored_file(daemon: Daemon, removed: bool) -> None:
    shell = daemon.shell()
    shell.run("eoq send q x --id a; eoq backup before.db; eoq send q x --id b")
    daemon.kill()
    if removed:
        daemon.db.unlink()
    assert shell.run("eoq restore before.db --yes").status == 0
    assert _ids(daemon.db) == {"a"}
    daemon.start()


@pytest.mark.slow
def test_after_a_restore_an_effect_does_not_happen_again(daemon: Daemon, tmp_path: Path) -> None:
    """The message was processed after the backup: it is delivered again, and the inbox gives its stored result."""
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as application:
        application.execute("create table effect (id text)")

    def handle(tx: sqlite3.Connection, message: eoq.Message) -> str:
        tx.execute("insert into effect values (?)", (message.id,))
        return "done"

    with eoq.connect(daemon.socket) as client:
        client.send("q", "1", id="a")
    assert daemon.shell().run("eoq backup before.db").status == 0
    for _ in range(2):
        with eoq.connect(daemon.socket) as client, eoq.Inbox(path) as inbox:
            (message,) = client.receive("q")
            inbox.process(message, handle)
            result = client.result("q", "a")
            assert result is not None
            assert result.body == b"done"
        daemon.terminate()
        assert daemon.shell().run("eoq restore before.db --yes").status == 0
        daemon.start()
    with closing(sqlite3.connect(path)) as application:
        assert application.execute("select count(*) from effect").fetchone() == (1,)


# ── compact ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_compacted_file_is_small_and_has_the_same_messages(daemon: Daemon) -> None:
    shell = daemon.shell()
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(b"x" * 50_000, id=f"{number}") for number in range(100)])
        settle_all(client, "q")
        client.send("q", "kept", id="kept")
    assert shell.run("eoq compact").status == LOCKED
    daemon.terminate()
    with closing(sqlite3.connect(daemon.db)) as file:  # as an earlier version has made it
        file.executescript("pragma journal_mode = delete; pragma auto_vacuum = none; vacuum; pragma journal_mode = wal")
        file.executescript("create table filler (x); insert into filler values (zeroblob(5000000)); drop table filler;")
    before = daemon.db.stat().st_size
    ran = shell.run("eoq compact --json")
    assert ran.status == 0, ran.errors
    assert daemon.db.stat().st_size < before / 10
    assert not Path(f"{daemon.db}-wal").exists()
    daemon.start()
    with eoq.connect(daemon.socket) as client:
        assert [message.id for message in client.receive("q")] == ["kept"]
        assert client.send("q", b"x" * 50_000, id="7").duplicate is True


@pytest.mark.slow
def test_what_is_missing_is_said(alone: Shell) -> None:
    for command in ("backup b.db", "compact", "restore b.db --yes"):
        ran = alone.run(f"eoq {command}")
        assert ran.status == NOTHING, command
        assert "does not exist" in ran.errors


@pytest.mark.parametrize("content", [b"", b"junk", os.urandom(5000)], ids=["empty", "short", "random"])
def test_what_is_no_backup_is_not_restored(content: bytes, tmp_path: Path) -> None:
    backup, database = tmp_path / "junk", tmp_path / "eoq.db"
    backup.write_bytes(content)
    with pytest.raises(
        eoq.InvalidRequest, match=r"junk is no backup .* nothing was changed; name one that `eoq backup`"
    ):
        restore(backup, database, lambda *_: None)
    with pytest.raises(eoq.NotFound, match="nothing was changed; name a backup"):
        restore(tmp_path / "missing", database, lambda *_: None)
    assert not database.exists()
