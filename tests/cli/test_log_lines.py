"""The lines of the daemon's log: their form, where they go, and what they tell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import eoq
from tests.support import Daemon, Shell, clean_environment, eventually, running_daemon


def _make_dead(daemon: Daemon, error: str = "no such account") -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("mail", "x", id="a")
        client.reject(client.receive("mail")[0], error)


def test_a_line_has_time_and_level_and_says_which_message_is_dead(daemon: Daemon) -> None:
    _make_dead(daemon, "two\nlines\x1b[31m")
    line = eventually(lambda: next((line for line in daemon.said.splitlines() if "dead letter" in line), ""))
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"{stamp} WARNING eoq daemon: mail: a is a dead letter: two lines \[31m", line)
    assert re.match(rf"{stamp} INFO eoq daemon: pid", daemon.said)


def test_lines_of_json_have_queue_and_id() -> None:
    with running_daemon("--log-format", "json") as daemon:
        _make_dead(daemon)
        eventually(lambda: "dead letter" in daemon.said)
        lines = [json.loads(line) for line in daemon.said.splitlines()]
        (dead,) = [line for line in lines if "dead letter" in line["message"]]
        assert (dead["queue"], dead["id"], dead["level"]) == ("mail", "a", "warning")
        assert all(line["time"].endswith("Z") and line["logger"] for line in lines)


def test_a_log_file_is_opened_again_on_sighup(folder: Path) -> None:
    log = folder / "eoq.log"
    with running_daemon("--log", str(log)) as daemon:
        eventually(lambda: "pid" in log.read_text())
        assert log.stat().st_mode & 0o777 == 0o600
        log.rename(folder / "old.log")
        daemon.signal(signal.SIGHUP)
        eventually(lambda: log.exists() and "SIGHUP" in log.read_text())
        _make_dead(daemon)
        eventually(lambda: "dead letter" in log.read_text())
        assert "dead letter" not in (folder / "old.log").read_text()
        assert daemon.said == ""


def test_a_log_that_cannot_be_opened_again_is_said_and_the_old_one_goes_on(folder: Path) -> None:
    log = folder / "logs" / "eoq.log"
    log.parent.mkdir()
    with running_daemon("--log", str(log)) as daemon:
        moved = folder / "moved"
        log.parent.rename(moved)
        daemon.signal(signal.SIGHUP)
        eventually(lambda: "cannot be opened" in (moved / "eoq.log").read_text())
        assert daemon.serves()


def test_the_daemon_in_the_background_opens_its_log_again(alone: Shell, folder: Path) -> None:
    db = folder / "eoq.db"
    assert alone.run(f"eoq start --db {db}").status == 0
    log = folder / "eoq.db.log"
    log.rename(folder / "old.log")
    os.kill(alone.run("eoq status --json").rows[0]["pid"], signal.SIGHUP)
    eventually(lambda: log.exists() and "SIGHUP" in log.read_text())


def test_journald_gets_priorities(folder: Path) -> None:
    said = folder / "said"
    with said.open("wb") as file:
        found = os.fstat(file.fileno())
        environment = clean_environment(JOURNAL_STREAM=f"{found.st_dev}:{found.st_ino}")
        command = [sys.executable, "-m", "eoq.cli", "daemon", "--db", str(folder / "eoq.db")]
        process = subprocess.Popen([*command, "--socket", str(folder / "s")], stderr=file, env=environment, cwd=folder)
    try:
        eventually(lambda: "<6>eoq daemon: pid" in said.read_text())
    finally:
        process.terminate()
        process.wait()
    assert all(re.match(r"<[2-7]>", line) for line in said.read_text().splitlines())
