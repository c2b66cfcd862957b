"""The steps of the spool reader that concern one file: names and tokens, reading, and the reason of a rejection.

A program that can write to the spool may put anything there, at any moment. So every step uses an open descriptor of
the folder and follows no link. A file is read only in ``.taking``, a folder that belongs to the reader.
"""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import ExitStack, suppress
from typing import Final

from ....errors import EoqError, InvalidRequest
from ....ids import new_id
from ....protocol.limits import MAX_BODY
from ....spool.format import MAX_OPTIONS, WITH_OPTIONS, check_size, open_folder

REASON: Final = ".reason"
"""The end of the name of a file that says why another one was rejected."""
MAX_NAME: Final = 255
"""Bytes of a file's name."""
TOKEN_LENGTH: Final = 36
"""Characters of a token, which is a UUID."""

_TOKEN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\..", re.DOTALL)
_ABANDONED: Final = re.compile(r"\.\d{20}-[0-9a-fA-F-]+\.eoq\.tmp")
"""The unfinished files of `eoq.Spool` and of the function of `eoq shell-init`."""
ABANDONED_SECONDS: Final = 86400.0
"""The age of such a file after which its sender has surely ended."""
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def remove_abandoned(folder: int) -> None:
    """Remove the unfinished files of senders that were killed a day ago. (One that still lives gets an error.)"""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _ABANDONED.fullmatch(entry.name)]
    for name in names:
        with suppress(OSError):
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < time.time() - ABANDONED_SECONDS:
                os.unlink(name, dir_fd=folder)


def enter_folder(stack: ExitStack, name: str, parent: int) -> int:
    """Open the folder ``name`` in ``parent`` until ``stack`` ends. Return its descriptor. Raises `OSError`."""
    descriptor = open_folder(name, parent)
    stack.callback(os.close, descriptor)
    return descriptor


# ── names in `.taking`: TOKEN.NAME ──────────────────────────────────────────────────────────────────────────


def new_tokens(count: int) -> list[str]:
    """Return new tokens, which are UUIDv7s, in ascending order. (Those of one millisecond are made in any order.)"""
    return sorted(new_id() for _ in range(count))


def has_token(file: str) -> bool:
    """Return whether a name in ``.taking`` begins with a token."""
    return _TOKEN.match(file) is not None


def with_token(token: str, name: str) -> str:
    """Return the name that the file ``name`` gets in ``.taking``."""
    return f"{token}.{_shorten(name, MAX_NAME - TOKEN_LENGTH - 1)}"


def token_of(file: str) -> str:
    """Return the token of a file in ``.taking``. It is the id of a message that has none of its own."""
    return file[:TOKEN_LENGTH]


def name_of(file: str) -> str:
    """Return the name that a file in ``.taking`` had before, shortened at its beginning if it was too long."""
    return file[TOKEN_LENGTH + 1 :]


def claimed_at(file: str) -> float:
    """Return when a file got its token, in seconds since the epoch."""
    return int(file[:8] + file[9:13], 16) / 1000


def age(file: str) -> float:
    """Return the seconds since a file got its token."""
    return time.time() - claimed_at(file)


def _shorten(name: str, most: int) -> str:
    """Return the end of a name, in at most ``most`` bytes. The end says what kind of file it is."""
    while len(os.fsencode(name)) > most:
        name = name[1:]
    return name


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def read_file(file: str, folder: int) -> tuple[bytes, int]:
    """Return the content of a file, and the user who owns it.

    Raises `InvalidRequest` or `MessageTooLarge` before it reads more than allowed.
    """
    # Before it is opened: opening a device may already have an effect.
    _check_kind(os.stat(file, dir_fd=folder, follow_symlinks=False))
    descriptor = os.open(file, _READ, dir_fd=folder)
    with os.fdopen(descriptor, "rb", buffering=0) as content:
        found = os.fstat(descriptor)
        _check_kind(found)
        most = MAX_BODY + (MAX_OPTIONS + 1 if file.endswith(WITH_OPTIONS) else 0)
        check_size(found.st_size if found.st_size > most else 0)
        data = bytearray()
        while piece := content.read(most + 1 - len(data)):
            data += piece
    check_size(len(data) if len(data) > most else 0)
    return bytes(data), found.st_uid


def _check_kind(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise InvalidRequest(f"it is {kind}, and a message is a regular file")
    if found.st_nlink > 1:
        raise InvalidRequest("the file has another name as well (a hard link); copy it instead")


# ── rejecting ───────────────────────────────────────────────────────────────────────────────────────────────


def move_to_rejected(file: str, error: EoqError, claimed: int, rejected: int) -> None:
    """Move a file to ``.rejected``, with its reason beside it. It overwrites no other file. Raises `OSError`."""
    name = _free_name(file, rejected)
    # First the reason, so that no rejected file is ever without one.
    write_reason(name + REASON, f"{error.code}: {error}\n", rejected)
    os.rename(file, name, src_dir_fd=claimed, dst_dir_fd=rejected)
    os.fsync(rejected)
    os.fsync(claimed)


def _free_name(file: str, rejected: int) -> str:
    """Return the former name of a file, or its name with the token if ``.rejected`` has the former already."""
    name = _shorten(name_of(file), MAX_NAME - TOKEN_LENGTH - 1 - len(REASON))
    for wanted in (name, name + REASON):
        with suppress(FileNotFoundError):
            os.stat(wanted, dir_fd=rejected, follow_symlinks=False)
            return f"{token_of(file)}.{name}"
    return name


def write_reason(name: str, reason: str, rejected: int) -> None:
    """Write the reason of a rejection. It replaces one that is left from before the reader was killed."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=rejected)
    with os.fdopen(os.open(name, _NEW, 0o600, dir_fd=rejected), "wb") as file:
        file.write(reason.encode(errors="backslashreplace"))
