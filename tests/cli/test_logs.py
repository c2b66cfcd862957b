"""The log of a daemon: of many lines of one kind it has some, and says how many were left out."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.integration.spools import put, waiting
from tests.support import eventually, running_daemon

FILES = 60


def test_many_wrong_files_leave_few_lines(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    for number in range(FILES):
        put(spool, "q", f"{number:03}.eoq", "no options")
    began = time.monotonic()
    with running_daemon("--spool", str(spool)) as daemon:
        eventually(lambda: daemon.ask(op="status")["spool_rejected"] == FILES)
        assert waiting(spool, "q") == []
        assert daemon.terminate() == 0
        took = time.monotonic() - began
        lines = [line for line in daemon.said.splitlines() if "is rejected" in line]
    assert "000.eoq" in lines[0]
    assert "059.eoq" in lines[-1], "the last one is there in any case"
    assert len(lines) <= 12 + took
    left_out = sum(int(count) for line in lines for count in re.findall(r"\((\d+) lines like this were left out", line))
    assert len(lines) + left_out == FILES
