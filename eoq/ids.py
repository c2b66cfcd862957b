"""Message ids: UUIDv7 (RFC 9562), made where the caller gives none.

They begin with the time, so that the daemon's index of ids grows at its end and stays fast.
"""

from __future__ import annotations

import os
import time


def new_id() -> str:
    """A new UUIDv7 as text. Written by hand because ``uuid`` gained it only in Python 3.14."""
    time_hex = f"{time.time_ns() // 1_000_000:012x}"
    random_hex = os.urandom(10).hex()
    variant = "89ab"[int(random_hex[3], 16) & 3]
    return f"{time_hex[:8]}-{time_hex[8:]}-7{random_hex[:3]}-{variant}{random_hex[4:7]}-{random_hex[7:19]}"
