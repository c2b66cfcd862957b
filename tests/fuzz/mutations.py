"""Values and changes that break what reads them: lines of the wire, options of spool files, rows, configurations."""

from __future__ import annotations

import random
from typing import Any, Final

STRANGE: Final[list[Any]] = [
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e-320,
    1e308, "", " ", "x", "\x00", "\ud800", "🦆", "q" * 300, "0.1.1", "'", "\\", [], [[]], [None], [0],
    ["x"], ["x"] * 2000,
    {}, {"": ""}, {"op": "send"}, {"receipt": "0.1.1"}, [{"body": "x"}], [{"receipt": "0.1.1"}] * 3,
    [{"queue": "q", "body": "x", "id": "same"}] * 3, "ffffffff.7fffffffffffffff.7fffffffffffffff", "0.0.0", "0._1.1",
    "0. 1.1", "0.+1.1", "0.0x1.1", "0.٣.1",
]  # fmt: skip
"""Values for any field."""
PIECES: Final = [b"{", b"}", b"[", b"]", b'"', b"\\", b"\xff", b"\x00", b"9" * 30, b"e9", b"-", b"\n", b"\xed\xa0\x80"]
"""Bytes that mean something to a parser, or that no text has."""


def mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return ``data`` with one to four changes. One of them is to go on as ``other`` from some place."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at:at] = rng.choice(PIECES)
            case 2:
                del changed[at : at + rng.randint(1, 8)]
            case 3:
                changed[at:at] = changed[at : at + rng.randint(1, 20)]
            case _:
                changed[at:] = other[rng.randrange(len(other)) :]
    return bytes(changed)
