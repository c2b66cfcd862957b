"""Runs a daemon, one hog, and another client that measures how long it waits."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support import PATIENCE, Daemon, Wire, peak_kilobytes, resident_kilobytes, running_daemon

ROOT: Final = Path(__file__).parents[2]
CONFIG: Final = """\
[queues.full]
max_depth = 20000
when_full = "drop_oldest"

[queues."*"]
retention = 20
"""
PAUSE: Final = 0.005
"""Seconds between two requests of the other client."""
SETTLE_SECONDS: Final = 60.0
"""How long the daemon may take, after the hog has left, until its memory is what it was."""


@dataclass(slots=True)
class Report:
    """What a hog did to others."""

    hog: str
    seconds: float
    requests: int = 0
    longest: float = 0.0
    """The longest wait of the other client, in seconds."""
    slow: int = 0
    """Requests of the other client that took longer than `SLOW` seconds."""
    before: int = 0
    peak: int = 0
    after: int = 0
    """Memory of the daemon in kilobytes: before, at most, and in the end."""
    lines: int = 0
    """Lines of the daemon's log."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        line = (
            f"{self.hog:26} longest wait {self.longest:6.3f} s of {self.requests:6,} ({self.slow:3} over 0.1 s); "
            f"memory {self.before // 1024:3} → {self.peak // 1024:3} → {self.after // 1024:3} MB; "
            f"log {self.lines:3} lines in {self.seconds:.0f} s"
        )
        return "\n".join([line, *self.problems])


SLOW: Final = 0.1
"""Seconds."""


def run(hog: str, seconds: float, settle: float = SETTLE_SECONDS) -> Report:
    """Let a hog trouble a daemon for a time, and return what another client noticed of it."""
    folder = Path(tempfile.mkdtemp(prefix="eoq-hogs-"))
    try:
        (folder / "eoq.toml").write_text(CONFIG)
        options = ("--spool", str(folder / "spool"), "--config", str(folder / "eoq.toml"))
        with running_daemon(*options) as daemon:
            return _run(daemon, folder / "spool", hog, seconds, settle)
    finally:
        shutil.rmtree(folder)


def _run(daemon: Daemon, spool: Path, hog: str, seconds: float, settle: float) -> Report:
    report = Report(hog, seconds)
    with daemon.wire() as wire:
        for _ in range(20):
            _round(wire, report)
        report.before, report.longest, report.slow = resident_kilobytes(daemon.pid), 0.0, 0
        lines = daemon.said.count("\n")
        command = [sys.executable, "-m", "tests.hogs.hogs", hog, str(daemon.socket), str(spool), str(seconds)]
        with subprocess.Popen(command, cwd=ROOT) as process:
            while process.poll() is None:
                _round(wire, report)
        if process.returncode:
            report.problems.append(f"the hog failed with {process.returncode}")
        after = time.monotonic() + 2
        while time.monotonic() < after:  # what it has left behind may be worse
            _round(wire, report)
        report.lines = daemon.said.count("\n") - lines
        report.peak = peak_kilobytes(daemon.pid)
        until = time.monotonic() + settle
        report.after = resident_kilobytes(daemon.pid)
        while time.monotonic() < until and report.after > report.before + 32 * 1024:
            _round(wire, report)
            report.after = resident_kilobytes(daemon.pid)
    if "Traceback" in daemon.said:
        report.problems.append(daemon.said[-2000:])
    return report


def _round(wire: Wire, report: Report) -> None:
    """Send a message, receive it, and ack it. Each is waited for."""
    _ask(wire, report, {"op": "send", "queue": "other", "body": "x"})
    messages = _ask(wire, report, {"op": "receive", "queue": "other", "wait": PATIENCE})["messages"]
    _ask(wire, report, {"op": "ack", "receipt": messages[0]["receipt"]})
    time.sleep(PAUSE)


def _ask(wire: Wire, report: Report, request: dict[str, object]) -> dict[str, list[dict[str, str]]]:
    began = time.perf_counter()
    reply = wire.ask(request)
    took = time.perf_counter() - began
    assert reply["ok"], reply
    report.requests += 1
    report.longest = max(report.longest, took)
    report.slow += took > SLOW
    return reply
