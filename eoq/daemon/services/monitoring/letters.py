"""Each message that becomes a dead letter has a line in the log, with its queue, its id and its last error."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from ...records import End

MOST_SHOWN: Final = 200
"""Characters of an error in the log."""

log = logging.getLogger("eoq.dead")


def log_dead_letters(ends: Sequence[End]) -> None:
    """Write a line for each dead letter among messages that have ended. Among those of acks there is none."""
    if ends and ends[0].outcome in ("done", "forwarded"):
        return
    for end in ends:
        if end.outcome == "dead":
            about = {"queue": end.queue, "message_id": end.id}
            error = _shown(end.error or "no reason was given")
            log.warning("%s: %s is a dead letter: %s", end.queue, _shown(end.id), error, extra=about)


def _shown(text: str) -> str:
    """Return a text on one line, without characters that a terminal would act on."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MOST_SHOWN])
