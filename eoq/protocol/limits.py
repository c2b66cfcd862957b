"""The limits of the protocol, as PROTOCOL.md states them. Client and daemon import this file.

The longest delay is in ``message.py``, because handlers may ask for one.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from typing import Final

PROTOCOL: Final = 2
"""The version of the protocol. `status` gives it; a daemon that gives none speaks version 1."""
FEATURES: Final = ("digest", "forwarded", "handles", "not_after", "pages", "results")
"""What a daemon of this version knows that one of an earlier version does not. `status` gives it."""
MAX_BODY: Final = 1024 * 1024
"""Bytes of a body or a result."""
MAX_OUTPUT: Final = 8 * 1024 * 1024
"""Bytes of an output that the dedup service keeps."""
MAX_LINE: Final = 16 * 1024 * 1024
"""Bytes of a request line. The largest body in its longest JSON spelling (six bytes per byte) fits twice."""
QUEUES_PAGE: Final = 200
"""Queues that a client asks for at once, where it wants all."""
MAX_BATCH: Final = 1000
"""Messages or receipts in one request."""
MAX_ID: Final = 200
"""Characters of a message id."""
MAX_RECEIPT: Final = 400
"""Characters of a receipt."""
MAX_HEADERS: Final = 64 * 1024
"""Bytes of all headers of a message, as JSON."""
MAX_ERROR: Final = 4096
"""Characters of an error text. The client cuts a longer one."""
MAX_LEASE: Final = 12 * 3600.0
"""Seconds of a lease or an extension."""
MAX_TTL: Final = 100 * 366 * 86400.0
"""Seconds of a time to live: of a message, or of the output of a key."""
MAX_WAIT: Final = 3600.0
"""Seconds that one request may wait. Clients repeat it."""
MAX_PRIORITY: Final = 2**31 - 1
"""The bound of a priority, above and below zero."""
DEFAULT_LEASE: Final = 30.0
"""Seconds of a lease where the consumer names none."""
MAX_QUEUE: Final = 128
"""Characters of the name of a queue or a topic."""
QUEUE_PATTERN: Final = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_QUEUE - 1}}}\Z"
QUEUE_NAMES: Final = (
    f"use 1 to {MAX_QUEUE} letters, digits, dots, dashes and underscores, and begin with a letter or digit"
)

POLL_SECONDS: Final = 20.0
"""How long one request of a client waits. The client repeats it to wait longer."""
REPEAT_SECONDS: Final = 0.05
"""The pause before such a repeat. A daemon that stops ends all waits early, and answers for a while yet."""
