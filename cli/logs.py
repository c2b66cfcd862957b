"""The log of the daemon and of a relay, on standard error. Of many lines of one kind, it has some.

A client can leave ten thousand wrong files in a spool. Each is rejected, with its reason beside it. The log has the
first `AT_ONCE` lines of that kind, and then one a second, which says how many were left out.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

AT_ONCE: Final = 10
"""How many lines of one kind are printed at once. After that, one a second."""
MOST_KINDS: Final = 1000
"""How many kinds are remembered."""


@dataclass(slots=True)
class _Kind:
    """The lines of one logger that have the same text, but for the values in it."""

    allowed: float = AT_ONCE
    """How many lines may be printed, as of ``since``."""
    since: float = field(default_factory=time.monotonic)
    left_out: int = 0
    last: logging.LogRecord | None = None
    """The last line, if it was left out."""

    def allows(self, record: logging.LogRecord) -> bool:
        """Return whether a line may be printed. If not, count it."""
        now = time.monotonic()
        self.allowed = min(AT_ONCE, self.allowed + now - self.since)
        self.since = now
        if self.allowed < 1:
            self.left_out += 1
            self.last = record
            return False
        self.allowed -= 1
        return True


class SparingHandler(logging.Handler):
    """Prints the log to standard error, and leaves lines out where there are many of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, or count it as left out."""
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds.setdefault((record.name, str(record.msg)), _Kind())
        if kind.allows(record):
            self._print(kind, record)

    def close(self) -> None:
        """Print, at the end of the process, the last lines of what was left out."""
        for kind in self._kinds.values():
            if kind.last is not None:
                kind.left_out -= 1
                self._print(kind, kind.last)
        self._kinds.clear()
        super().close()

    def _print(self, kind: _Kind, record: logging.LogRecord) -> None:
        text = self.format(record)
        if kind.left_out:
            text += f" ({kind.left_out:,} lines like this were left out before it)"
        kind.left_out, kind.last = 0, None
        if sys.stderr is not None:
            with suppress(OSError, ValueError):  # a full disk, a closed terminal: the process goes on without its log
                print(text, file=sys.stderr, flush=True)


def log_to_standard_error(prefix: str) -> None:
    """Print the log from now on, each line with ``prefix`` before it."""
    logging.basicConfig(level=logging.INFO, handlers=[SparingHandler()], format=f"{prefix}: %(message)s")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it would log every change
