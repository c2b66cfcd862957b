"""How commands show rows to people: columns at a terminal, plain rows in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from .common import visible

BODY_WIDTH = 60


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns, numbers to the right; the head only at a terminal, so that a pipe gets nothing but rows."""
    texts = [[str(cell) for cell in row] for row in rows]
    lines = [list(head), *texts] if sys.stdout.isatty() else texts
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    numeric = [all(isinstance(row[column], int) for row in rows) for column in range(len(head))]
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        text = "  ".join(cells).rstrip()
        click.echo(click.style(text, bold=True) if number == 0 and lines is not texts else text)


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{max(seconds, 0.0):.1f}s"


def body_text(message: dict[str, Any]) -> str:
    return str(message["body"]) if "body" in message else "base64:" + str(message.get("body_base64", ""))


def short(text: str) -> str:
    """A text on one line, cut."""
    cut = visible(text[: BODY_WIDTH + 1])
    return cut if len(cut) <= BODY_WIDTH else cut[: BODY_WIDTH - 1] + "…"


def moment(seconds: float) -> str:
    """Seconds since the epoch as local time, to the millisecond."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"
