"""Measure what an idle process does, from /proc: its event loop must sleep, and watching must cost almost nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

MOST: Final = 0.1
"""The part of one processor that an idle process may use. Watching costs 0.5 %, more on a machine that is busy."""


def is_idle(pid: int, seconds: float = 1.0) -> bool:
    """Return whether the event loop of a process slept for ``seconds``, and its other threads used almost no time."""
    wakeups, used = _wakeups_of_the_event_loop(pid), _processor_seconds(pid)
    threading.Event().wait(seconds)  # only time can show that nothing happens
    return _wakeups_of_the_event_loop(pid) == wakeups and _processor_seconds(pid) - used < MOST * seconds


def _wakeups_of_the_event_loop(pid: int) -> int:
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def _processor_seconds(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
