"""Test ``eoq bench``: its figures, that it leaves nothing behind, and that it touches nothing of the user's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import PATIENCE, Shell, eventually, runs

QUICK = "--rounds 1 --seconds 0.02"
NAMES = [
    f"{what}, {how}"
    for what in ("send", "receive and ack", "effect once")
    for how in ("one at a time", "100 at a time")
]


@pytest.mark.slow
def test_both_sides_of_each_row_are_measured(alone: Shell, folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    ran = alone.run(f"eoq bench --dir disk --json {QUICK}")
    assert (ran.status, ran.errors) == (0, "")
    found = json.loads(ran.text)
    assert found["folder"] == str(disk)
    assert 0 < found["sync_ms"] <= found["sync_p99_ms"]
    assert [row["name"] for row in found["rows"]] == NAMES
    for row in found["rows"]:
        assert row["raw"] > 0 and row["eoq"] > 0
        assert row["ratio"] == pytest.approx(row["eoq"] / row["raw"], abs=0.02 + (1 + row["ratio"]) / row["raw"])
    assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_the_table_says_what_was_measured_and_where(alone: Shell, folder: Path) -> None:
    ran = alone.run(f"eoq bench {QUICK}")
    assert (ran.status, ran.errors) == (0, "")
    assert ran.lines[0].startswith(f"{folder}: a sync takes ")
    assert [line[:32].strip() for line in ran.lines[3:9]] == NAMES
    assert "medians of 1" in ran.lines[-1]


def _daemon_in(folder: Path) -> int | None:
    """Return the pid of the daemon that `eoq bench` runs, once it runs."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"daemon" in line and any(word.startswith(os.fsencode(folder)) for word in line):
            return int(process.name)
    return None


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
@pytest.mark.slow
def test_nothing_is_left_behind_when_it_is_ended(
    alone: Shell, folder: Path, number: signal.Signals, status: int
) -> None:
    disk, temporary = folder / "disk", folder / "tmp"
    disk.mkdir()
    temporary.mkdir()
    running = alone.start(
        "exec eoq bench --dir disk --rounds 1000",
        env={**alone.environment, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with running:
        pid = eventually(lambda: _daemon_in(disk), what="its daemon runs")
        assert pid is not None
        eventually(lambda: list(disk.glob(".eoq-bench-*/raw.db")), what="it measures")
        running.send_signal(number)
        out, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out, errors) == (status, b"", b"")
    eventually(lambda: not runs(pid), what="its daemon ends")
    if number != signal.SIGKILL:  # nothing can remove files after that
        assert [*disk.iterdir(), *temporary.iterdir()] == []


@pytest.mark.parametrize("command", [f"bench --dir . {QUICK}", "demo --payments 20 --kills 1"])
@pytest.mark.slow
def test_nothing_of_the_user_is_read_or_sent(alone: Shell, folder: Path, command: str) -> None:
    (folder / "config" / "eoq").mkdir(parents=True)
    (folder / "config" / "eoq" / "eoq.toml").write_text("nonsense")
    (folder / "spool" / "q").mkdir(parents=True)
    (folder / "spool" / "q" / "waiting").write_text("a message for the user's own daemon")
    ran = alone.run(
        f"eoq {command}", XDG_CONFIG_HOME=str(folder / "config"), EOQ_SPOOL=str(folder / "spool"), EOQ_MAX_ATTEMPTS="1"
    )
    assert ran.status == 0, ran.errors
    assert (folder / "spool" / "q" / "waiting").exists()


@pytest.mark.parametrize("options", ["--dir none", "--rounds 0", "--seconds 0", "--seconds 1000"])
@pytest.mark.slow
def test_wrong_usage_is_2(alone: Shell, options: str) -> None:
    assert alone.run(f"eoq bench {options}").status == 2
