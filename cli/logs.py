"""The log of the daemon and of a relay, on standard error. Of many lines of one kind, it has some.

A client can leave ten thousand wrong files in a spool. Each is rejected, with its reason beside it. The log has the
first `AT_ONCE` lines of that kind, and then one a second, which says how many were left out.

A line has its time and its level. Under journald it has its priority instead, since the journal knows the time. As JSON
it has fields of its own for the queue and the id of the message that it is about, where it is about one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from eoq.errors import Forbidden

AT_ONCE: Final = 10
"""How many lines of one kind are printed at once. After that, one a second."""
PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""The priorities of syslog, by the levels from which on they are used."""
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


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────────────


class TextFormatter(logging.Formatter):
    """Lines for people: time, level, program, text."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, or its lines."""
        return f"{_time(record)} {record.levelname} {self._program}: {super().format(record)}"


class JournalFormatter(TextFormatter):
    """Lines for journald: each begins with its priority, as syslog numbers it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, or its lines."""
        priority = next((number for level, number in PRIORITIES if record.levelno >= level), 7)
        text = f"{self._program}: {logging.Formatter.format(self, record)}"
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """Lines for programs: one JSON object each."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "queue": getattr(record, "queue", None),
            "id": getattr(record, "message_id", None),
            "trace": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_journal() -> bool:
    """Return whether standard error is a stream of journald, which says so in a variable."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def log_to_standard_error(program: str, form: str = "text") -> None:
    """Print the log of a program from now on, in lines of ``text`` or ``json``."""
    handler = SparingHandler()
    text = JournalFormatter(program) if _is_journal() else TextFormatter(program)
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it would log every change


# ── a file ──────────────────────────────────────────────────────────────────────────────────────────────────


def redirect_standard_error(log: Path) -> None:
    """Append standard error to a file from now on. Call it again when the file was renamed. Raises `Forbidden`."""
    try:
        # Not blocking: a pipe without a reader would keep the daemon for ever.
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Forbidden(f"the log {log} cannot be opened ({error.strerror}); name another file with --log") from error
    os.set_blocking(descriptor, True)
    os.dup2(descriptor, 2)
    os.close(descriptor)
