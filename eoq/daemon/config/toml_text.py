"""Values and keys of the configuration as text, as they are written in TOML. For error messages and the log."""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

NO_LIMIT: Final = "none"
"""How the section of a queue removes a limit that a later, wider section sets."""
_LONGEST: Final = 300


def to_text(value: object) -> str:
    """Return a value on one line, as TOML writes it, and cut if it is long."""
    if value is None:
        return NO_LIMIT
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if value.bit_length() < 100 else "a number of too many digits"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, str):
        return shorten(json.dumps(value, ensure_ascii=not value.isprintable()))
    if isinstance(value, msgspec.Struct):
        fields = {field.encode_name: getattr(value, field.name) for field in msgspec.structs.fields(value)}
        return ", ".join(f"{name} = {to_text(item)}" for name, item in fields.items() if item not in (None, {}, []))
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{to_key(name)} = {to_text(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(to_text(item) for item in value) + "]"
    return str(value)  # dates and times


def to_key(*parts: str) -> str:
    """Return a dotted key. Parts that need quotes get them."""
    return ".".join(
        part if re.fullmatch("[A-Za-z0-9_-]+", part) else shorten(json.dumps(part, ensure_ascii=not part.isprintable()))
        for part in parts
    )


def shorten(text: str) -> str:
    """Return a text, cut if it is long."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
