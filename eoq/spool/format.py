"""The format of a spool: the names, options and sizes of its files, and how its folders are opened."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from ..errors import EoqError, Forbidden, InvalidRequest, StorageFailed, StorageFull
from ..message import Outgoing
from ..protocol.limits import MAX_BODY, MAX_HEADERS
from ..protocol.validation import LATEST, body_too_large, check_options, check_seconds, time_left

WITH_OPTIONS: Final = ".eoq"
"""The end of the name of a file whose first line has options."""
UNFINISHED: Final = ".tmp"
"""The end of the name of a file that is not ready. A name that begins with a dot is not ready either."""
MAX_OPTIONS: Final = 8 * MAX_HEADERS
"""Bytes of the first line: enough for the longest headers in their longest JSON spelling, and the other options."""
_OPTIONS: Final = {field.name: field.default for field in fields(Outgoing) if field.name not in ("body", "queue")}
_TRIED_AT: Final = "tried_at"
"""The option that says when the message was first sent to a daemon."""
_LEFT_AT: Final = "left_at"
"""The option that says when the file was written: ``ttl`` counts from then."""
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""How to open a folder."""
_NOT_ALLOWED: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_visible(name: str) -> bool:
    """Return whether a folder of this name may belong to a queue."""
    return not name.startswith(".")


def is_ready(name: str) -> bool:
    """Return whether a file of this name is complete, so that it may be claimed."""
    return is_visible(name) and not name.endswith(UNFINISHED)


def encode(message: Outgoing, tried_at: float | None = None) -> bytes:
    """Return the content of a file with options. The body of the message must be bytes."""
    options: dict[str, Any] = {
        name: value for name, default in _OPTIONS.items() if (value := getattr(message, name)) not in (None, default)
    }
    if tried_at is not None:
        options[_TRIED_AT] = tried_at
    if message.ttl is not None:
        options[_LEFT_AT] = time.time()
    line = json.dumps(options, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    assert isinstance(message.body, bytes)  # noqa: S101 # the sender makes it bytes
    return line.encode() + b"\n" + message.body


def decode(data: bytes) -> tuple[Outgoing, float | None]:
    """Return the message of a file with options, and when it was sent before, or None.

    Raises `InvalidRequest` or `MessageTooLarge`, which say what is wrong with the file.
    """
    line, end, body = data.partition(b"\n")
    if not end or len(line) > MAX_OPTIONS:
        raise InvalidRequest(
            f"its first line, which has the options, does not end within {MAX_OPTIONS:,} bytes; "
            f"write an object such as {{}} and a line feed before the body, or choose a name without {WITH_OPTIONS}"
        )
    check_size(len(body))
    try:
        options = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"its first line, which has the options, is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise InvalidRequest('its first line, which has the options, is not a JSON object such as {"id": "order-17"}')
    tried_at, left_at = _moment(options, _TRIED_AT), _moment(options, _LEFT_AT)
    if unknown := options.keys() - _OPTIONS.keys():
        raise InvalidRequest(f"the option {min(unknown)!r} is not known; the options are {', '.join(_OPTIONS)}")
    message = Outgoing(body, **options)
    check_options(message)
    if message.ttl is not None and left_at is not None:
        message = replace(message, ttl=time_left(message.ttl, left_at))
    return message, tried_at


def _moment(options: dict[str, Any], name: str) -> float | None:
    """Remove an option that is not one of the message, and return it: a time in seconds since the epoch, or None."""
    moment: float | None = options.pop(name, None)
    if moment is not None:
        check_seconds(name, moment, LATEST)
    return moment


def check_size(size: int) -> None:
    """Raise `MessageTooLarge` if a body has too many bytes."""
    if size > MAX_BODY:
        raise body_too_large(size)


def open_folder(name: str, parent: int) -> int:
    """Open the folder ``name`` in ``parent``, and return its descriptor. Raises `OSError` if it is a link."""
    return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)


def storage_error(error: OSError, path: Path) -> EoqError:
    """Return the error of eoq that says why a path of the spool cannot be read or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"there is no space for {str(path)!r}; free some")
    if error.errno in _NOT_ALLOWED:
        return Forbidden(
            f"{str(path)!r} cannot be used ({error.strerror}): it must be a folder this user may write, not a link"
        )
    return StorageFailed(f"{str(path)!r} cannot be read or written: {error.strerror}")
