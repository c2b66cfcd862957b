"""Message ids: UUIDv7 (RFC 9562), made where the caller gives none.

They begin with the time, so that the daemon's index of ids grows at its end and stays fast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

RANDOM_BYTES: Final = 10
DRAWN: Final = 50
"""Ids whose random bytes are asked of the system at once."""
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def new_id() -> str:
    """A new UUIDv7 as text. Written by hand because ``uuid`` gained it only in Python 3.14."""
    return _id(os.urandom(RANDOM_BYTES).hex())


def new_ids() -> Iterator[str]:
    """New ids, without end. Where there are many, asking for each one's random bytes takes as long as all the rest."""
    while True:
        drawn = os.urandom(RANDOM_BYTES * DRAWN).hex()
        for start in range(0, len(drawn), 2 * RANDOM_BYTES):
            yield _id(drawn[start : start + 2 * RANDOM_BYTES])


def _id(random: str) -> str:
    moment = f"{time.time_ns() // 1_000_000:012x}"
    return f"{moment[:8]}-{moment[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[7:19]}"
