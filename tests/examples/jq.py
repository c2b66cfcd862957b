"""A stand-in for ``jq`` on machines without it. It knows only the filters that the examples use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

FILTERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    ".receipt": lambda message: message["receipt"],
    ".id": lambda message: message["id"],
    ".attempt": lambda message: message["attempt"],
    ".body": lambda message: message["body"],
    ".body_base64": lambda message: message["body_base64"],
    'has("body")': lambda message: "body" in message,
}


def main(arguments: list[str]) -> None:
    """Apply one filter to standard input. ``-r`` prints text as it is; ``-j`` also omits the line feed at the end."""
    flag = arguments.pop(0) if arguments[0].startswith("-") else ""
    (name,) = arguments
    value = FILTERS[name](json.load(sys.stdin))
    text = value if flag in ("-r", "-j") and isinstance(value, str) else json.dumps(value)
    sys.stdout.buffer.write(text.encode() + (b"" if flag == "-j" else b"\n"))


if __name__ == "__main__":
    main(sys.argv[1:])
