"""The progress of long work: one line at a terminal, which is written over, and nothing in a pipe."""

from __future__ import annotations

import sys
import time
from typing import Final

SECONDS: Final = 0.1
"""How often the line is written, at most."""


class ProgressLine:
    """Shows what is being done and how far it is. Call it as often as you like."""

    def __init__(self) -> None:
        self.shows = sys.stderr is not None and sys.stderr.isatty()
        """Whether there is a terminal to show it."""
        self._shown_at = 0.0
        self._text = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.shows or (now < self._shown_at + SECONDS and done < total):
            return
        self._shown_at = now
        text = f"{what} {100 * done // max(total, 1)} %" if done else f"{what} …"
        if text != self._text:
            self._text = text
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the line."""
        if self._text:
            self._text = ""
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
