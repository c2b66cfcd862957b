"""Patterns of names, as the configuration has them: which names there are, and what a pattern matches."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache
from typing import Annotated, Final

from msgspec import Meta

MAX_SECTIONS: Final = 1000
"""How many patterns of queues, how many bindings, and how many schedules."""
_PATTERN: Final = r"(?:[A-Za-z0-9*?]|\[[A-Za-z0-9._!-][A-Za-z0-9._-]*\])(?:[A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._-]+\])*"
"""The patterns that can match the name of a queue."""

QueuePattern = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=rf"^(?:{_PATTERN})\Z",
        description="a queue's name of letters, digits and . _ -, or a pattern of these with * ? [...]",
    ),
]


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches the name of a queue."""
    return _compiled(pattern).match(name) is not None


@lru_cache(4 * MAX_SECTIONS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
