"""The journal of one run: what the handler has done until it ended or was killed. Each line is on file at once."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Signature = list[int] | None
"""The size of a file and the time of its last change; None where there is none."""


def signature_of(path: str) -> Signature:
    """Return what a write to a regular file would change."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


class Journal:
    """The writing end, for the processes of a run. A line is one write, so it is whole or absent after a kill."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, kind: str, *values: Any) -> None:
        """Add a line."""
        os.write(self.descriptor, json.dumps([kind, *values]).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


@dataclass(slots=True)
class Ran:
    """What one run has done."""

    statements: list[str] = field(default_factory=list)
    """The places that the handler's own process has seen."""
    writes: list[str] = field(default_factory=list)
    """The writes and syncs of the database's files."""
    calls: Counter[str] = field(default_factory=Counter)
    """What it did outside its files: connections, programs that it started."""
    files: dict[str, Signature] = field(default_factory=dict)
    """Other files that were opened to be written, with what they were before."""
    outcome: str | None = None
    """How the message was settled; None where it was not."""
    result: str | None = None
    error: str | None = None
    seconds: float = 0.0
    refused: str | None = None
    """Why the run cannot count."""


def read_journal(path: Path) -> Ran:
    """Return what the lines of a journal say."""
    ran = Ran()
    last = ""
    for line in path.read_bytes().splitlines():
        kind, *values = json.loads(line)
        if kind == "statement":
            last = values[0]
            ran.statements.append(last)
        elif kind == "write":
            ran.writes.append(f"{values[0]} (during: {last})" if last else values[0])
        elif kind == "call":
            ran.calls[values[0]] += 1
        elif kind == "file":
            ran.files.setdefault(values[0], values[1])
        elif kind == "settled":
            ran.outcome, ran.result, ran.error = values
        elif kind == "error":
            ran.error = values[0]
        elif kind == "refused":
            ran.refused = values[0]
    return ran
