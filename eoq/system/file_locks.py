"""Which other processes hold locks on a file. Linux tells; elsewhere none is found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MOST: Final = 5
"""How many processes are named."""


def lock_holders(path: Path) -> list[str]:
    """Return the other processes with POSIX locks on a file, as "NAME (pid 17)". Open nothing, so drop no lock."""
    try:
        inode = f":{path.stat().st_ino}"
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    fields = [line.replace("-> ", "").split() for line in lines]
    pids = {int(one[4]) for one in fields if len(one) > 5 and one[5].endswith(inode) and one[4].isdecimal()}
    return [f"{_name(pid)} (pid {pid})" for pid in sorted(pids - {os.getpid()})[:MOST]]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process"
