"""The library of an earlier version works with this daemon: its programs may be brought over one by one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Final

import pytest

from tests.support import Daemon

OLD: Final = "2694c25"
"""The commit of the earlier version."""
ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = """
import sqlite3, sys
import eoq

assert eoq.__file__.startswith(sys.argv[2]), eoq.__file__
with eoq.connect(sys.argv[1]) as client:
    client.send_many("q", [eoq.Outgoing(f"{n}", id=f"m{n}", priority=-n) for n in range(8)])
    assert client.send("q", "0", id="m0").duplicate
    first, second, third, fourth = client.receive("q", 4, lease=60)
    first.ack("done", [eoq.Outgoing("more", queue="next", id="n0")])
    first.ack("done", [eoq.Outgoing("more", queue="next", id="n0")])
    assert client.result("q", "m0").body == b"done"
    second.nack(0, "again")
    third.reject("no")
    fourth.extend(30)
    client.ack(fourth.receipt)
    assert client.show("q", "m2")["state"] == "dead"
    (again,) = client.receive("q")
    assert (again.id, again.attempt) == ("m1", 2)
    try:
        client.ack(second)
    except eoq.LeaseLost:
        pass
    else:
        raise AssertionError("a lease that was given back")
    with eoq.Inbox(sqlite3.connect("app.db", isolation_level=None)) as inbox:
        inbox.process(again, lambda tx, message: message.text)
        for message in client.consume("q", prefetch=10, idle=0.5):
            inbox.process(message, lambda tx, message: message.text)
    assert client.result("q", "m7").body == b"7"
    assert client.once("key", lambda: b"once") == b"once"
    client.work("next", lambda message: "worked", until_empty=True)
    assert client.result("next", "n0").body == b"worked"
    assert [row["ready"] + row["leased"] for row in client.queues()] == [0, 0]
    assert [message["id"] for message in client.peek("q", state="done")]
print("all is well")
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package of the earlier version."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    archive = subprocess.run(["git", "archive", OLD, "eoq", "cli"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("the history is not here")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    (folder / "cli").rename(folder / "eoq" / "cli")
    return folder


@pytest.mark.slow
def test_a_program_with_the_library_of_an_earlier_version_works(daemon: Daemon, old: Path) -> None:
    program = daemon.folder / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, str(program), str(daemon.socket), str(old)],
        cwd=daemon.folder,
        env={**os.environ, "PYTHONPATH": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "all is well\n", ran.stderr
