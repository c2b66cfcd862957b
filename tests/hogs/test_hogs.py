"""With any one client or file doing its worst, others are served, and the daemon's memory and log stay small.

``python -m tests.hogs`` prints the figures. The limits here allow for a machine that does other work as well.
"""

from __future__ import annotations

import time

import pytest

from tests.hogs.hogs import HOGS
from tests.hogs.run import run
from tests.support import HAS_PROC

SECONDS = 4.0
LONGEST = 5.0
"""Seconds that a request of another client may take. The tests beside this one take most of the processors."""
MEMORY = 512 * 1024
"""Kilobytes that the daemon may have."""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC, reason="reads the daemon's memory from /proc")
@pytest.mark.parametrize("hog", HOGS)
def test_others_are_served(hog: str) -> None:
    begun = time.monotonic()
    report = run(hog, SECONDS, settle=0)
    assert not report.problems, report
    assert report.longest < LONGEST, report
    assert report.peak < MEMORY, report
    assert report.lines <= time.monotonic() - begun + 20, report
