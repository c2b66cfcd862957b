"""Names of queues and patterns of them: `orders`, `orders.*`. The wildcards are those of the configuration."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Final

from ..errors import InvalidRequest
from ..protocol.validation import check_queue

_PATTERN: Final = re.compile(r"(?:[A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._-]+\]){1,200}")


def is_pattern(name: str) -> bool:
    """Return whether a text is a pattern, and not the name of one queue."""
    return any(character in name for character in "*?[")


def check_pattern(name: str) -> str:
    """Return the name of a queue, or a pattern. Raises `InvalidRequest` for a text that matches no queue."""
    if not is_pattern(name):
        return check_queue(name)
    if _PATTERN.fullmatch(name) is None:
        raise InvalidRequest(f"{name!r} is no pattern of queues: write letters, digits and . _ - with * ? [...]")
    return name


def check_ingested(name: str) -> str:
    """Return the name of the queue of an ingest. Raises `InvalidRequest` for a pattern, and for no name of a queue."""
    if is_pattern(name):
        raise InvalidRequest(
            f"an ingest takes one queue, and {name!r} is a pattern, which only a forward takes: name each queue that "
            "this machine is to process, in an ingest of its own"
        )
    return check_queue(name)


def literal_prefix(pattern: str) -> str:
    """Return how all names begin that a pattern matches."""
    return re.split(r"[*?\[]", pattern, maxsplit=1)[0]


def as_regex(pattern: str) -> str:
    """Return a pattern as a regular expression of POSIX, for the whole name."""
    meanings = {"*": ".*", "?": ".", ".": "[.]"}
    parts = [meanings.get(part, part.replace("[!", "[^")) for part in re.findall(r"\[[^\]]*\]|.", pattern)]
    return f"^{''.join(parts)}$"


def matches(queue: str, pattern: str) -> bool:
    """Return whether a pattern matches the name of a queue."""
    return fnmatchcase(queue, pattern)
