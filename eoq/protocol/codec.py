"""The wire, sans-IO: lines of JSON, their limits, and how bytes travel in them. No socket, no clock.

Both sides import this file; PROTOCOL.md specifies it. For a few small lines it needs nothing but the standard library's
``json``, so that a shell command which sends one message starts fast; only for larger ones, or for many, is ``msgspec``
worth its import. The daemon's typed requests are in ``daemon/requests.py``.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Final

from ..errors import EoqError, InvalidRequest, from_wire

MANY: Final = 50
"""Messages or acks in one request for which ``msgspec`` is worth its import."""
LARGE: Final = 8 * 1024
"""Bytes of a reply for which it is."""
STEADY: Final = 100
"""Requests over one connection after which it is."""
OFTEN: Final = ("send", "send_many", "ack", "settle")
"""Requests that ``msgspec`` writes. All that is in them is text, or a number that was checked: it would write NaN as
null, and a date as text."""

Fields = dict[str, Any]

_decode_json = json.JSONDecoder().decode
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


class LineBuffer:
    """Cuts a stream of bytes into lines. Once a line grows over ``limit`` bytes, ``overflowed`` is true and
    nothing more is taken. ``kept`` are the bytes of the line that is not complete yet.
    """

    def __init__(self, limit: int) -> None:
        self.overflowed = False
        self.kept = 0
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their line feeds."""
        if self.overflowed:
            return []
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self.kept:
            self._buffer += lines[0]
            lines[0] = bytes(self._buffer)
            self._buffer = bytearray()
        if rest:
            self._buffer += rest
        self.kept = len(self._buffer)
        for index, line in enumerate(lines):
            if len(line) > self._limit:
                self.overflowed = True
                return lines[:index]
        self.overflowed = self.kept > self._limit
        return lines


def encode(fields: Mapping[str, Any]) -> bytes:
    """One line of the wire; raises `InvalidRequest` for what JSON cannot say (NaN, infinity)."""
    try:
        if fields.get("op") in OFTEN and (
            "msgspec" in sys.modules
            or fields.get("rid", 0) > STEADY
            or len(fields.get("messages") or fields.get("acks") or ()) >= MANY
        ):
            with suppress(TypeError, OverflowError):  # a subclass of str or float, a very large number
                return _quick_encoder()(fields) + b"\n"
        return _encode_json(fields).encode("ascii") + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from error


# Several times as fast as json, once imported.


@cache
def _quick_encoder() -> Callable[[Any], bytes]:
    import msgspec.json

    return msgspec.json.Encoder().encode


@cache
def _quick_decoder() -> Callable[[bytes], Any]:
    import msgspec.json

    return msgspec.json.Decoder().decode


def decode_reply(line: bytes) -> tuple[int | None, Fields | EoqError]:
    """A reply line as its ``rid`` and its fields, or the error it carries. Raises `ValueError` for what is none."""
    try:
        quickly = "msgspec" in sys.modules or len(line) >= LARGE
        reply = _quick_decoder()(line) if quickly else _decode_json(line.decode())
        rid = reply.get("rid")
        if rid is not None and not isinstance(rid, int):
            raise TypeError
        if reply["ok"]:
            return rid, reply
        error = reply["error"]
        return rid, from_wire(error["code"], error["message"])
    except (AttributeError, KeyError, TypeError, RecursionError) as mismatch:
        raise ValueError(f"no reply of an eoq daemon: {line[:100]!r}") from mismatch


def put_bytes(fields: Fields, name: str, value: bytes) -> None:
    """Adds ``value`` to ``fields`` as ``name`` where it is UTF-8 text, else as ``name_base64``."""
    try:
        fields[name] = value.decode()
    except UnicodeDecodeError:
        fields[name + "_base64"] = base64.b64encode(value).decode()


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
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"`{name}_base64` is not base64: {error}") from error
