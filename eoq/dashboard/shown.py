"""What the browser is shown of messages, which may hold anything: bounded texts without characters that deceive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

PREVIEW: Final = 160
"""Characters of a body or an error in a list."""
WHOLE: Final = 65_536
"""Characters of a body or a result on the page of its message."""
TEXT: Final = 4_096
"""Characters of any other text."""
ENTRIES: Final = 100
"""Entries of an object or an array, such as headers and deliveries."""
_BODIES: Final = ("body", "body_base64", "result", "result_base64")


def shown(fields: Mapping[str, Any], *, longest: int = WHOLE) -> dict[str, Any]:
    """Return the fields of a message for the browser. Bodies and results have at most ``longest`` characters.

    A text that was cut has its number of characters in a field of the same name with ``_cut``.
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        limit = longest if name in _BODIES else min(longest, TEXT)
        # An id is printable as it is, and actions need the exact one.
        found[name] = value if name in ("id", "queue") else _bounded(value, limit)
        if isinstance(value, str) and len(value) > limit:
            found[f"{name}_cut"] = len(value)
    return found


def _bounded(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return visible(value[:limit])
    if isinstance(value, Mapping):
        return {visible(str(key)[:TEXT]): _bounded(value[key], limit) for key in list(value)[:ENTRIES]}
    if isinstance(value, list):
        return [_bounded(one, limit) for one in value[:ENTRIES]]
    return value


def visible(text: str) -> str:
    """Return ``text`` with a dot for each character that is not printed, such as one that reverses what follows it."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "·" for letter in text)


def as_json(value: object, status: int = 200) -> Response:
    """Return an answer in JSON. It is ASCII, so that also half a character can be sent."""
    return Response(json.dumps(value), status, media_type="application/json")
