"""The features of a daemon, as its ``status`` names them. A client uses a field of a request only where it is known."""

from __future__ import annotations

from typing import Final

HANDLES: Final = "handles"
"""``receive`` takes ``handles``: how many of the messages are handled at once."""
