"""Durations as people write them: `30d`, `12h`, `90m`, `45s`, or a number of seconds."""

from __future__ import annotations

import math
import re
from typing import Final

from ..errors import InvalidRequest

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_FORM: Final = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([smhdw]?)\s*")


def read_duration(value: str | float) -> float:
    """Return a duration in seconds. Raises `InvalidRequest` if it is not one."""
    if isinstance(value, str):
        found = _FORM.fullmatch(value)
        if found is not None:
            return float(found[1]) * _UNITS[found[2]]
    elif not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise InvalidRequest(f"{value!r} is no duration: write seconds, or a number with s, m, h, d or w, such as 30d")
