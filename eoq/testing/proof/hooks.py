"""Seeing each statement of a Python handler, and what it does outside its database, from within its process.

The connections to SQLite files get a trace callback when they are made, whichever library makes them. An audit hook of
Python tells of files, sockets and programs. None of that can be undone: it is done in a child that ends with its run.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from .children import KILLED
from .journal import Journal, signature_of
from .seen import is_second_file, own_file

Place = tuple[ModuleType, str]
"""A module and one of its names."""
_LONGEST: Final = 120
"""Characters of a place."""
_FOR_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_CONNECTS: Final = ("socket.connect", "socket.sendto", "socket.sendmsg")
_PROGRAMS: Final = {"subprocess.Popen": 1, "os.system": 0, "os.exec": 1, "os.posix_spawn": 1}
"""The events of programs that are started, with the argument that shows what is started."""
_TARGETS: Final = {"os.rename": 1, "os.link": 1, "os.truncate": 0}


class _State(threading.local):
    """Whether this thread is in the hook: what the hook does is not seen."""

    busy = False


class Hooks:
    """The crash points within one process. At the one with the number ``stop_at`` the process ends, as by SIGKILL."""

    def __init__(
        self, folder: Path, guarded: Path, journal: Journal, stop_at: int | None, places: Sequence[Place]
    ) -> None:
        """``folder`` is the proof's. ``guarded`` is the user's own file, at whose opening the process ends.

        ``places`` are those of `places_of_connect`.
        """
        self._guarded = str(guarded)
        self._folder = f"{folder}/"
        self._journal = journal
        self._stop_at = stop_at
        self._count = 0
        self._state = _State()
        self._places = places

    def install(self) -> None:
        """See everything from now on."""
        original = sqlite3.connect

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = original(*arguments, **options)
            connection.set_trace_callback(self._statement)
            return connection

        # Not by the audit hook: it is told of a connection before a callback can be set.
        for module, name in self._places:
            setattr(module, name, connect)
        sys.addaudithook(self._audit)

    def point(self, place: str) -> None:
        """Note a crash point, and end the process if it is the one to stop at."""
        self._count += 1
        text = " ".join(place.split())
        self._journal.note("statement", text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
        if self._count == self._stop_at:
            os._exit(KILLED)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._state.busy:
            return
        self._state.busy = True
        try:
            self._see(event, arguments)
        finally:
            self._state.busy = False

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "sqlite3.connect":
            self._file(_database_path(arguments[0]), "opens the database")
        elif event == "open":
            path, _mode, flags = arguments
            if isinstance(flags, int) and flags & _FOR_WRITING:
                self._file(path, "writes to")
        elif event in _TARGETS:
            self._file(arguments[_TARGETS[event]], "writes to")
        elif event in _CONNECTS:
            self._call(f"connect to {_address(arguments[1])}")
        elif event in _PROGRAMS:
            self._call(f"run {arguments[_PROGRAMS[event]]!r}")

    def _statement(self, text: str) -> None:
        if not text.startswith("--"):  # a statement of a trigger
            self.point(text)

    def _file(self, path: object, verb: str) -> None:
        if isinstance(path, str | bytes | os.PathLike) and path:
            absolute = os.path.realpath(os.fsdecode(path))
            if absolute == self._guarded:
                self._journal.note("refused", own_file(absolute))
                os._exit(KILLED)
            if is_second_file(absolute, self._folder):
                self.point(f"{verb} {absolute}")
                self._journal.note("file", absolute, signature_of(absolute))

    def _call(self, what: str) -> None:
        self.point(what)
        self._journal.note("call", what)


def places_of_connect() -> list[Place]:
    """Return where modules have `sqlite3.connect`, under any name. It looks at all modules, so ask once."""
    return [
        (module, name)
        for module in list(sys.modules.values())
        for name, value in list(getattr(module, "__dict__", {}).items())
        if value is sqlite3.connect
    ]


def _database_path(database: object) -> str:
    """Return the path of the file that `sqlite3.connect` opens; empty where it opens none."""
    if not isinstance(database, str | bytes | os.PathLike):
        return ""
    text = os.fsdecode(database)
    if text.startswith("file:"):
        text = "" if "mode=memory" in text or "mode=ro" in text else unquote(urlsplit(text).path)
    return "" if text.startswith(":memory:") else text


def _address(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]} port {address[1]}"
    return os.fsdecode(address) if isinstance(address, bytes) else str(address)
