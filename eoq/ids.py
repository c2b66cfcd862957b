"""New message ids: UUIDv7 (RFC 9562), for messages to which the caller gives no id.

They begin with the time, to a quarter of a microsecond (RFC 9562, 6.2, method 3). So new ids are added at the end of
the daemon's index, and are above all that it knows, which keeps it fast.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

RANDOM_BYTES: Final = 7
DRAWN_TOGETHER: Final = 50
"""How many ids of a series share one draw of random bytes."""


def new_id() -> str:
    """Return a new UUIDv7 as text. Python's ``uuid`` module makes them only since Python 3.14."""
    head, number = _draw()
    return f"{head}{number:012x}"


def new_ids() -> Iterator[str]:
    """Yield new ids without end.

    Those that share a draw count upwards from a random number (RFC 9562, 6.2, method 2). So they are neighbours in the
    index, and the random bytes, which take as long as all the rest, are drawn less often.
    """
    while True:
        head, first = _draw()
        for number in range(first, first + DRAWN_TOGETHER):
            yield f"{head}{number:012x}"


def _draw() -> tuple[str, int]:
    """Return an id in two parts: all but its last twelve digits, and these as a number with room to count up."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    moment = f"{milliseconds:012x}"
    random = os.urandom(RANDOM_BYTES).hex()
    return f"{moment[:8]}-{moment[8:]}-7{rest * 4096 // 1_000_000:03x}-8{random[:3]}-", int(random[3:], 16)
