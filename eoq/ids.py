"""Message ids: UUIDv7 (RFC 9562), made where the caller gives none.

They begin with the time, so that the daemon's index of ids grows at its end and stays fast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

RANDOM_BYTES: Final = 10
TOGETHER: Final = 50
"""Ids that are drawn together where there are many."""


def new_id() -> str:
    """A new UUIDv7 as text. Written by hand because ``uuid`` gained it only in Python 3.14."""
    head, number = _draw()
    return f"{head}{number:012x}"


def new_ids() -> Iterator[str]:
    """New ids, without end.

    Those drawn together count upwards from a random number (RFC 9562, 6.2, method 2), so that they lie beside each
    other in the index; and asking for the random bytes of each takes as long as all the rest.
    """
    while True:
        head, first = _draw()
        for number in range(first, first + TOGETHER):
            yield f"{head}{number:012x}"


def _draw() -> tuple[str, int]:
    """All of an id but its last twelve digits, and the number that they are: so small that it can be counted up."""
    moment = f"{time.time_ns() // 1_000_000:012x}"
    random = os.urandom(RANDOM_BYTES).hex()
    return f"{moment[:8]}-{moment[8:]}-7{random[:3]}-8{random[3:6]}-", int(random[6:17], 16)
