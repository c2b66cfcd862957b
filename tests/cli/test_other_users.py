"""Other users of the machine: what each may do with the daemon of another, and whose program gets a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import eoq
from tests.support import NOBODY, PATIENCE, Daemon, Ran, clean_environment, python_process, read_line_of, short_folder

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


AS_NOBODY = f"""
import configparser, importlib, os, pkgutil, sys
import platformdirs.unix
import eoq, eoq.cli, eoq.daemon
# All that may be imported later: the other user need not be able to read where Python is.
for package in (eoq, eoq.cli, eoq.daemon):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
os.setgid({NOBODY})
os.setuid({NOBODY})
eoq.cli.main(sys.argv[1:], prog_name="eoq")
"""


def _as_nobody(*arguments: str) -> Ran:
    """Run a command as another user."""
    process = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *arguments],
        capture_output=True,
        env=clean_environment(),
        cwd="/",
        timeout=PATIENCE,
        check=False,
    )
    ran = Ran(process.returncode, process.stdout, process.stderr)
    assert "Traceback" not in ran.errors, ran.errors
    return ran


@root_only
@pytest.mark.parametrize(
    ("mode", "command"),
    [
        pytest.param(0o755, "send q x", id="socket closed-send"),
        pytest.param(0o700, "status", id="folder closed-status"),
        pytest.param(0o700, "send q x", id="folder closed-send", marks=pytest.mark.slow),
        pytest.param(0o755, "status", id="socket closed-status", marks=pytest.mark.slow),
    ],
)
@pytest.mark.first_by_default
def test_the_daemon_of_another_user_exits_77_with_an_error(daemon: Daemon, mode: int, command: str) -> None:
    daemon.folder.chmod(mode)
    ran = _as_nobody(*command.split(), "--socket", str(daemon.socket))
    assert ran.status == 77
    assert "another user" in ran.errors
    assert daemon.ask(op="queues")["queues"] == []


@root_only
@pytest.mark.slow
def test_another_users_daemon_cannot_be_stopped(daemon: Daemon) -> None:
    daemon.folder.chmod(0o755)
    ran = _as_nobody("stop", "--socket", str(daemon.socket))
    assert ran.status == 77
    assert daemon.running


@root_only
@pytest.mark.parametrize("place", ["folder", "file", "lock"])
@pytest.mark.slow
def test_a_daemon_that_may_not_write_exits_77(folder: Path, place: str) -> None:
    folder.chmod(0o755)
    mine = folder / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    if place == "folder":
        db = folder / "eoq.db"
    else:
        db = mine / "eoq.db"
        foreign = db if place == "file" else mine / "eoq.db.lock"
        foreign.touch(mode=0o600)
    ran = _as_nobody("daemon", "--db", str(db), "--socket", str(mine / "s"))
    assert ran.status == 77, ran.errors
    assert "eoq.db" in ran.errors


@root_only
@pytest.mark.parametrize(("place", "letters"), [("mine", "rwx"), ("mine/eoq.db.lock", "rw"), ("mine/eoq.db", "rw")])
@pytest.mark.slow
def test_who_has_closed_what_is_his_is_told_to_open_it(folder: Path, place: str, letters: str) -> None:
    folder.chmod(0o755)
    mine = folder / "mine"
    mine.mkdir()
    for path in (mine / "eoq.db", mine / "eoq.db.lock"):
        path.touch()
        os.chown(path, NOBODY, NOBODY)
    os.chown(mine, NOBODY, NOBODY)
    (folder / place).chmod(0o400)
    ran = _as_nobody("daemon", "--db", str(mine / "eoq.db"), "--socket", str(mine / "s"))
    assert (ran.status, f"`chmod u+{letters} {folder / place}`" in ran.errors) == (77, True), ran.errors


@root_only
@pytest.mark.parametrize(("closed", "letters"), [("s", "rw"), ("", "rwx")])
@pytest.mark.slow
def test_who_has_closed_his_own_socket_is_told_to_open_it(daemon: Daemon, closed: str, letters: str) -> None:
    for path in (daemon.socket.parent, daemon.socket):
        os.chown(path, NOBODY, NOBODY)
    place = daemon.socket.parent / closed
    place.chmod(0)
    for command in ("status", "send q x"):
        ran = _as_nobody(*command.split(), "--socket", str(daemon.socket))
        assert (ran.status, f"`chmod u+{letters} {place}`" in ran.errors) == (77, True), ran.errors
    place.chmod(0o700)
    assert _as_nobody("send", "q", "x", "--socket", str(daemon.socket)).status == 0


@root_only
@pytest.mark.slow
def test_a_folder_that_may_not_be_read_exits_77(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "closed").mkdir(0o700)
    ran = _as_nobody("daemon", "--db", str(folder / "closed" / "eoq.db"), "--socket", "/tmp/nobody-s")  # noqa: S108 # is not made
    assert ran.status == 77, ran.errors
    assert str(folder / "closed") in ran.errors


# ── whose program listens ───────────────────────────────────────────────────────────────────────────────────

LISTEN = f"""
import os, socket, sys
os.setuid({NOBODY - 1})
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o666)
    listening.listen()
    print("listens", flush=True)
    while True:
        with listening.accept()[0] as connection:
            print(repr(connection.recv(1000)), flush=True)
"""


@root_only
@pytest.mark.parametrize("command", ["send q secret", "status"])
@pytest.mark.slow
def test_a_message_is_not_sent_to_the_program_of_another_user(command: str) -> None:
    with short_folder() as folder:
        folder.chmod(0o777)
        path = folder / "s"
        with python_process(LISTEN, str(path)) as other:
            assert read_line_of(other) == b"listens\n"
            ran = _as_nobody(*command.split(), "--socket", str(path))
            assert ran.status == 77
            assert f"is that of another user (uid {NOBODY - 1}), who would get your messages" in ran.errors
            assert read_line_of(other) == b"b''\n", "nothing was sent"


ASYNC_SEND = f"""
import asyncio, os, sys
import eoq, eoq.client.aio, eoq.transport.aio_connection
async def send():
    async with eoq.connect_async(sys.argv[1]) as client:
        await client.send("q", "secret")
os.setuid({NOBODY})
try:
    asyncio.run(send())
except eoq.Forbidden as error:
    print(error, flush=True)
"""


@root_only
def test_an_asyncio_client_does_not_send_to_the_program_of_another_user() -> None:
    with short_folder() as folder:
        folder.chmod(0o777)
        path = folder / "s"
        with python_process(LISTEN, str(path)) as other:
            assert read_line_of(other) == b"listens\n"
            with python_process(ASYNC_SEND, str(path)) as client:
                assert b"is that of another user" in read_line_of(client)
            assert read_line_of(other) == b"b''\n", "nothing was sent"


@root_only
@pytest.mark.slow
def test_the_daemon_of_root_gets_the_messages_of_others(daemon: Daemon) -> None:
    daemon.folder.chmod(0o755)
    daemon.socket.chmod(0o666)
    assert _as_nobody("send", "q", "x", "--socket", str(daemon.socket)).status == 0


# ── the spool of another user ───────────────────────────────────────────────────────────────────────────────


@root_only
def test_what_root_leaves_in_the_spool_of_a_user_belongs_to_that_user(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    os.chown(spool, NOBODY, NOBODY)
    eoq.Spool(spool).send("q", "x")
    (file,) = (spool / "q").iterdir()
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (spool / "q", file)} == {(NOBODY, NOBODY)}
