"""What a traced process is about to do, in terms of the database: a write to its files, or something outside them."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Final

from .journal import Journal, signature_of
from .ptrace import SystemCall

_WRITES: Final = {
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate", "fsync", "fdatasync",
}  # fmt: skip
_COPIES: Final = {"sendfile": 0, "copy_file_range": 2}
"""Calls that write without an address, with the argument of the descriptor they write to."""
_WORDS: Final = {"fsync": "sync", "fdatasync": "sync", "ftruncate": "truncation", "fallocate": "allocation"}
_OPENS: Final = {"open": (0, 1, None), "openat": (1, 2, 0), "creat": (0, None, None), "openat2": (1, None, 0)}
"""For each call the arguments with the path, the flags and the folder."""
_FOR_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES: Final = os.O_WRONLY | os.O_RDWR
_DNS: Final = 53
_SYSTEM_SOCKETS: Final = ("/run/", "/var/run/", "/dev/log")
"""Where the sockets of the system's own services are: names, users, the log."""
SUFFIXES: Final = ("", "-wal", "-journal")


class Seen:
    """Decides on each system call of a run. `see` returns whether the run is to be killed before the call."""

    def __init__(self, database: Path, guarded: Path | None, journal: Journal, stop_at: int | None) -> None:
        """``database`` is the copy, in a folder of the proof's.

        ``guarded`` is the user's own file, which may not be opened to be written.
        """
        self._files = {f"{database}{suffix}" for suffix in SUFFIXES}
        self._folder = f"{database.parent.parent}/"
        self._guarded = set() if guarded is None else {f"{guarded}{suffix}" for suffix in SUFFIXES}
        self._journal = journal
        self._stop_at = stop_at
        self._count = 0

    def see(self, call: SystemCall) -> bool:
        """Note the call. Return whether to kill the process before it."""
        if call.name in _WRITES or call.name in _COPIES:
            file = call.file(_COPIES.get(call.name, 0))
            if file in self._guarded:  # over a connection that was open before the run
                return self._refuse(file)
            return file in self._files and self._write(f"{_WORDS.get(call.name, 'write')} of {_name(file)}")
        if call.name in _OPENS:
            return self._opens(call)
        if call.name in ("unlink", "unlinkat"):
            path = call.path(0) if call.name == "unlink" else call.path(1, 0)
            return path in self._files and self._write(f"removal of {_name(path)}")
        if call.name in ("rename", "renameat", "renameat2"):
            self._file(call.path(1) if call.name == "rename" else call.path(3, 2))
        elif call.name == "truncate":
            self._file(call.path(0))
        elif call.name in ("connect", "sendto"):
            self._connects(call)
        elif not call.name:
            self._journal.note("refused", "the command has a program that cannot be traced: it is for 32 bits")
            return True
        return False

    def _write(self, place: str) -> bool:
        self._count += 1
        self._journal.note("write", place)
        return self._count == self._stop_at

    def _opens(self, call: SystemCall) -> bool:
        path_at, flags_at, folder_at = _OPENS[call.name]
        if call.name == "creat":
            flags = _FOR_WRITING
        elif flags_at is not None:
            flags = call.arguments[flags_at]
        else:
            (flags,) = struct.unpack("=Q", call.memory(2, 8).ljust(8, b"\0"))
        if not flags & _FOR_WRITING:
            return False
        path = call.path(path_at, folder_at)
        if self._guarded and os.path.realpath(path) in self._guarded:
            return self._refuse(path)
        if flags & (_CHANGES | os.O_TRUNC):
            self._file(path)
        return False

    def _refuse(self, path: str) -> bool:
        self._journal.note("refused", own_file(path))
        return True

    def _file(self, path: str) -> None:
        if is_second_file(path, self._folder):
            self._journal.note("file", path, signature_of(path))

    def _connects(self, call: SystemCall) -> None:
        where, size = (1, 2) if call.name == "connect" else (4, 5)
        if not call.arguments[where]:
            return
        address = call.memory(where, min(call.arguments[size], 128))
        if len(address) < 3:
            return
        (family,) = struct.unpack_from("=H", address)
        if family == 1:
            path = os.fsdecode(address[2:].rstrip(b"\0"))
            if not path.startswith(_SYSTEM_SOCKETS):
                self._journal.note("call", f"connect to {path}")
        elif family in (2, 10) and len(address) >= 8:
            (port,) = struct.unpack_from("!H", address, 2)
            if port != _DNS:
                self._journal.note("call", f"connect to {_host(family, address)} port {port}")


def own_file(path: str) -> str:
    """Return why a run that is about to write to the user's own file is ended."""
    return f"the handler opens {path} itself, and not the copy"


def is_second_file(path: str, folder: str) -> bool:
    """Return whether a write to ``path`` may be an effect beside the database: not a device, not a compiled file."""
    if path.startswith((folder, "/proc/")) or ".pyc" in path.rpartition("/")[2]:
        return False
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except OSError:
        return True


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _host(family: int, address: bytes) -> str:
    import socket

    part = address[4:8] if family == socket.AF_INET else address[8:24].ljust(16, b"\0")
    return socket.inet_ntop(family, part)
