"""The lines of the wire: JSON, one object per line, and how bytes travel in it. No socket, no clock.

Client and daemon import this file, and PROTOCOL.md specifies it. The daemon's typed requests are in
``daemon/requests.py``.
"""

from __future__ import annotations

import binascii
import json
from math import inf

from ..errors import EoqError, InvalidRequest, from_wire

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final, TypeAlias

STEADY: Final = 100
"""Requests over one connection after which ``msgspec`` is worth its import (about 10 ms)."""
LARGE: Final = 8 * 1024
"""Bytes of one line after which ``msgspec`` is worth its import at once."""

Fields: TypeAlias = "dict[str, Any]"

_decode_json = json.JSONDecoder().decode
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


class LineBuffer:
    """A buffer that cuts a stream of bytes into lines.

    Once a line has more than ``limit`` bytes, ``overflowed`` is true and everything that follows is ignored.
    ``unfinished`` is the number of bytes of the line that is not complete yet.
    """

    def __init__(self, limit: int) -> None:
        self.overflowed = False
        self.unfinished = 0
        self._limit = limit
        self._buffer = bytearray()

    def clear(self) -> None:
        """Forget the line that is not complete yet."""
        self.unfinished = 0
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes, without their line feeds."""
        if self.overflowed:
            return []
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self.unfinished:
            self._buffer += lines[0]
            lines[0] = bytes(self._buffer)
            self._buffer = bytearray()
        if rest:
            self._buffer += rest
        self.unfinished = len(self._buffer)
        for index, line in enumerate(lines):
            if len(line) > self._limit:
                self.overflowed = True
                return lines[:index]
        self.overflowed = self.unfinished > self._limit
        return lines


CHECKED: Final = ("send", "send_many", "ack", "settle")
"""The most frequent large requests. `calls.py` makes them of text and checked numbers only."""


def encode(fields: Mapping[str, Any]) -> bytes:
    """Return one line of the wire. Raises `InvalidRequest` for values that JSON does not have (NaN, infinity)."""
    try:
        return _encode_json(fields).encode("ascii") + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from error


class Codec:
    """The encoder of the requests of one connection, and the decoder of their replies.

    A connection begins with the standard library's ``json``, so that a shell command that sends one message does not
    wait for an import. It goes on with ``msgspec``, which is several times as fast, after `STEADY` requests or a line
    of `LARGE` bytes. It writes only the requests of `CHECKED` with it: ``msgspec`` would write NaN as null, and a date
    as text, where ``json`` refuses both. A program that sends few requests never gains from it, and says so with
    ``few``.
    """

    def __init__(self, few: bool = False) -> None:
        self._json_requests_left: float = inf if few else STEADY
        self._large: float = inf if few else LARGE
        self._fast_encode: Callable[[Any], bytes] | None = None
        self._decode: Callable[[bytes], Any] = _decode_line
        self._mismatches: tuple[type[Exception], ...] = (AttributeError, KeyError, TypeError, RecursionError)
        """What goes wrong with a line that is not a reply. A `ValueError` says so itself."""

    def encode(self, fields: Fields) -> bytes:
        """Return a request as one line. Raises `InvalidRequest` for values that JSON does not have."""
        if self._fast_encode is None:
            if self._json_requests_left > 0:
                self._json_requests_left -= 1
                line = encode(fields)
                if len(line) >= self._large:
                    self._json_requests_left = 0
                return line
            self._fast_encode = self._switch()
        if fields["op"] not in CHECKED:
            return encode(fields)
        try:
            return self._fast_encode(fields) + b"\n"
        except (ValueError, TypeError, OverflowError, RecursionError):
            # A subclass of str, a very large number: the standard library writes them, or says why it cannot.
            return encode(fields)

    def decode(self, line: bytes) -> tuple[int | None, Fields | EoqError]:
        """Return the ``rid`` of a reply, and its fields or the error it carries.

        Raises `ValueError` where the line is not a reply of an eoq daemon.
        """
        if self._fast_encode is None and len(line) >= self._large:
            self._fast_encode = self._switch()
        try:
            reply = self._decode(line)
            rid = reply.get("rid")
            if rid is not None and not isinstance(rid, int):
                raise TypeError
            if reply["ok"]:
                return rid, reply
            error = reply["error"]
            return rid, from_wire(error["code"], error["message"])
        except self._mismatches as mismatch:
            raise ValueError(f"not a reply of an eoq daemon: {line[:100]!r}") from mismatch

    def _switch(self) -> Callable[[Any], bytes]:
        """Go on with ``msgspec``. Return its encoder."""
        import msgspec.json

        self._mismatches += (msgspec.DecodeError,)  # in its earlier versions it is no `ValueError`
        self._decode = msgspec.json.Decoder().decode
        return msgspec.json.Encoder().encode


def _decode_line(line: bytes) -> Any:
    return _decode_json(line.decode())


def put_bytes(fields: Fields, name: str, value: bytes) -> None:
    """Add ``value`` to ``fields`` as ``name`` where it is UTF-8 text, else in base64 as ``name_base64``."""
    try:
        fields[name] = value.decode()
    except UnicodeDecodeError:
        fields[name + "_base64"] = binascii.b2a_base64(value, newline=False).decode()


def get_bytes(text: str | None, in_base64: str | None, name: str) -> bytes | None:
    """Return the bytes that `put_bytes` wrote, or None where there are none. Raises `InvalidRequest`."""
    if in_base64 is None:
        return None if text is None else text.encode()
    if text is not None:
        raise InvalidRequest(f"give `{name}` or `{name}_base64`, not both")
    return from_base64(in_base64, name)


def from_base64(text: str, name: str) -> bytes:
    """Return the bytes of the field ``<name>_base64``. Raises `InvalidRequest` where it is not base64."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise InvalidRequest(f"`{name}_base64` is not base64: {error}") from error
