"""`eoq prove`: commands that are killed at their writes, or at moments of their run."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from eoq.testing.proof.ptrace import can_trace
from tests.support import PATIENCE, Shell, clean_environment, eventually

pytestmark = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "command -v sqlite3"], capture_output=True, check=False).returncode != 0,
    reason="there is no `sqlite3` command",
)
needs_ptrace = pytest.mark.skipif(not can_trace(), reason="this system does not allow ptrace")

GOOD = """#!/bin/sh
read -r cents
sqlite3 "$1" "begin immediate;
  insert into booking select '$EOQ_ID', $cents where not exists (select 1 from seen where id = '$EOQ_ID');
  insert or ignore into seen values ('$EOQ_ID');
  commit"
echo booked
"""
COMMITS = """#!/bin/sh
sqlite3 "$1" "insert into booking values ('$EOQ_ID', 1)"
"""
SECOND = """#!/bin/sh
echo "$EOQ_ID" >> second.log
sqlite3 "$1" "insert or ignore into seen values ('$EOQ_ID')"
"""
ATTEMPT = """#!/bin/sh
sqlite3 "$1" "insert or ignore into seen values ('$EOQ_ID-$EOQ_ATTEMPT')"
"""
CALLS = """#!/bin/sh
{python} -c 'import socket, sys; socket.socket().connect_ex(("127.0.0.1", 9))'
sqlite3 "$1" "insert or ignore into seen values ('$EOQ_ID')"
"""
ITSELF = """#!/bin/sh
sqlite3 shop.db "insert into booking values ('$EOQ_ID', 1)"
"""

RING = """#!/bin/sh
{python} -c 'import ctypes
assert ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) == -1'
exec ./good "$1"
"""
SPLIT = """#!{python}
import ctypes, mmap, os, sqlite3, sys
name = b"/tmp/" + b"n" * 100  # the address lies in two pages
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
pages[mmap.PAGESIZE - 20 : mmap.PAGESIZE + 87] = (1).to_bytes(2, sys.byteorder) + name
at = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + mmap.PAGESIZE - 20
libc = ctypes.CDLL(None)
libc.connect(libc.socket(1, 1, 0), ctypes.c_void_p(at), 107)
with sqlite3.connect(sys.argv[1]) as shop:
    shop.execute("insert or ignore into seen values (?)", (os.environ["EOQ_ID"],))
"""


@pytest.fixture
def shop(folder: Path) -> Iterator[Shell]:
    """Return a shell in a folder with `shop.db` and the commands, and check at the end that the file is as it was."""
    with closing(sqlite3.connect(folder / "shop.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table booking (id text, cents integer)")
        database.execute("create table seen (id text primary key)")
        database.commit()
    before = (folder / "shop.db").read_bytes()
    for name, text in (
        ("good", GOOD), ("commits", COMMITS), ("second", SECOND), ("attempt", ATTEMPT), ("itself", ITSELF),
        ("calls", CALLS.replace("{python}", sys.executable)),
        ("ring", RING.replace("{python}", sys.executable)), ("split", SPLIT.replace("{python}", sys.executable)),
    ):  # fmt: skip
        (folder / name).write_text(text)
        (folder / name).chmod(0o700)
    yield Shell(folder / "s", folder)
    assert (folder / "shop.db").read_bytes() == before


@needs_ptrace
@pytest.mark.slow
def test_a_command_that_notes_its_id_passes(shop: Shell) -> None:
    done = shop.run("eoq prove q --db shop.db --body 5 -- ./good shop.db")
    assert done.status == 0, done.errors
    assert "crash points, 0 differences" in done.text and "by ptrace" in done.text
    assert int(done.text.split()[0]) > 5


@needs_ptrace
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("./commits shop.db", "killed at write"),
        ("./second {db}", "writes to a second file"),
        ("sh -c 'exec ./attempt \"$EOQ_PROVE_DB\"'", "depends on the attempt"),
        ("./calls shop.db", "`connect to 127.0.0.1 port 9` happened 2 times, and once without a kill"),
    ],
)
def test_planted_faults_are_found(shop: Shell, command: str, text: str) -> None:
    done = shop.run(f"eoq prove q --db shop.db --body 5 --json -- {command}")
    assert done.status == 65, done.errors
    found = json.loads(done.text)
    assert not found["ok"] and found["differences"] == 1 and found["messages"] == 1
    assert text in f"{found['difference']['place']}: {found['difference']['text']}"


@needs_ptrace
@pytest.mark.slow
def test_a_program_that_would_use_io_uring_does_without_it(shop: Shell) -> None:
    """Node.js is such a program: it asks for io_uring, and uses the other calls where there is none."""
    done = shop.run("eoq prove q --db shop.db --body 5 --second-kills 0 -- ./ring shop.db")
    assert done.status == 0, done.text + done.errors
    assert "crash points, 0 differences" in done.text


@needs_ptrace
@pytest.mark.slow
def test_a_call_is_named_in_full_wherever_its_address_lies(shop: Shell) -> None:
    done = shop.run("eoq prove q --db shop.db --body 5 -- ./split shop.db")
    assert done.status == 65, done.errors
    assert f"`connect to /tmp/{'n' * 100}` happened 2 times" in done.text


@pytest.mark.slow
def test_a_sweep_of_moments_says_that_it_is_one(shop: Shell) -> None:
    done = shop.run("eoq prove q --db shop.db --body 5 --moments 5 -- ./good shop.db")
    assert (done.status, done.text.splitlines()[0]) == (0, "6 crash points, 0 differences")
    assert "a sweep of 5 moments of each run, because ptrace is not used here" in done.text
    done = shop.run("eoq prove q --db shop.db --body 5 --moments 5 -- ./commits shop.db")
    assert done.status == 65 and "1 row more than without a kill" in done.text


@pytest.mark.slow
def test_the_users_file_cannot_be_changed(shop: Shell) -> None:
    if can_trace():
        done = shop.run("eoq prove q --db shop.db --body 5 -- ./itself")
        assert done.status == 65
        assert "opens" in done.errors and "itself, and not the copy" in done.errors and "{db}" in done.errors
    done = shop.run("eoq prove q --db shop.db --body 5 --moments 5 -- ./itself")
    assert done.status == 65 and "database is locked" in done.text
    done = shop.run("eoq prove q --db shop.db --body 5 -- true")
    assert done.status == 65 and "has written nothing to the copy" in done.errors


@pytest.mark.slow
def test_waiting_messages_are_used_and_stay(shop: Shell) -> None:
    shop.run("eoq start")
    try:
        assert shop.run("eoq prove q --db shop.db -- ./good shop.db").status == 1
        shop.run("eoq send q 5 --id a && eoq send q 6 --id b")
        done = shop.run("eoq prove q --db shop.db --limit 1 --moments 2 --json -- ./good shop.db")
        assert json.loads(done.text)["messages"] == 1
        assert shop.run("eoq peek q --json | jq -r .id").text.split() == ["a", "b"]
    finally:
        shop.run("eoq stop")


def test_a_command_that_is_not_there_is_refused(shop: Shell) -> None:
    done = shop.run("eoq prove q --db shop.db --body 5 -- ./absent shop.db")
    assert done.status == 2 and "is not found" in done.errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process_and_no_copy(shop: Shell, folder: Path, number: signal.Signals) -> None:
    command = [
        "eoq",
        "prove",
        "q",
        "--db",
        "shop.db",
        "--body",
        "5",
        "--",
        "sh",
        "-c",
        "echo $$ > pid; sleep 60; : {db}",
    ]
    environment = clean_environment(TMPDIR=str(folder))
    with subprocess.Popen(
        [sys.executable, "-m", "eoq.cli", *command[1:]], cwd=folder, env=environment, stderr=subprocess.PIPE
    ) as process:
        pid = int(eventually(lambda: (folder / "pid").exists() and (folder / "pid").read_text()))
        process.send_signal(number)
        assert process.wait(PATIENCE) == (130 if number == signal.SIGINT else 143)
    eventually(lambda: not _runs(pid))
    for place in (folder, Path("/dev/shm")):  # noqa: S108 # it is only looked at
        assert not list(place.glob(f"eoq-proof-{process.pid}-*"))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
