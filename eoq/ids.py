"""Message ids: UUIDv7 (RFC 9562), made where the caller gives none.

They begin with the time, so that the daemon's index of ids grows at its end and stays fast.
"""

from __future__ import annotations

import os
import time


def new_id() -> str:
    """A new UUIDv7 as text. Written by hand because ``uuid`` gained it only in Python 3.14."""
    random = int.from_bytes(os.urandom(10), "big")
    milliseconds = time.time_ns() // 1_000_000
    value = (
        (milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | (random >> 62 & 0xFFF) << 64
        | 0b10 << 62
        | random & 0x3FFF_FFFF_FFFF_FFFF
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
