"""What every connection of eoq to an application's SQLite file is set to."""

from __future__ import annotations

from typing import Final

BUSY_SECONDS: Final = 30.0
"""How long a transaction waits for another writer of the application's file."""
DURABLE: Final = "pragma synchronous = extra"
"""Makes each commit last over a loss of power. In the mode of a rollback journal, ``full`` does not: the journal may
come back, and undo what was committed. With a write-ahead log the two are the same."""
