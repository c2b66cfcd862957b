"""Print rows: aligned columns with a header at a terminal, plain rows in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from .common import visible

BODY_WIDTH = 60
"""Characters of a body that are shown in a row."""


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], colour: Callable[[str, Any], str | None] = lambda *_: None
) -> None:
    """Print ``rows`` in columns, with numbers aligned to the right. Print ``head`` at a terminal only.

    ``colour`` returns the colour of a cell, given the name of its column and its value; a pipe gets none.
    """
    terminal = sys.stdout.isatty()
    texts = [[str(cell) for cell in row] for row in rows]
    lines = [list(head), *texts] if terminal else texts
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(len(head))]
    numeric = [all(isinstance(row[column], int) for row in rows) for column in range(len(head))]

    def padded(line: Sequence[str]) -> list[str]:
        cells = zip(line, widths, numeric, strict=True)
        return [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells]

    if terminal:
        click.echo(click.style("  ".join(padded(head)).rstrip(), bold=True))
    for row, text in zip(rows, texts, strict=True):
        cells = padded(text)
        if terminal:
            colours = [colour(name, cell) for name, cell in zip(head, row, strict=True)]
            cells = [click.style(cell, fg=fg) if fg else cell for cell, fg in zip(cells, colours, strict=True)]
        click.echo("  ".join(cells).rstrip())


def age(seconds: float | None) -> str:
    """Return a duration in its largest fitting unit, or a dash for None."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{max(seconds, 0.0):.1f}s"


def body_text(message: dict[str, Any]) -> str:
    """Return the body of a message as text, in base64 if it is not UTF-8."""
    return str(message["body"]) if "body" in message else "base64:" + str(message.get("body_base64", ""))


def short(text: str) -> str:
    """Return ``text`` on one line, cut to `BODY_WIDTH` characters."""
    cut = visible(text[: BODY_WIDTH + 1])
    return cut if len(cut) <= BODY_WIDTH else cut[: BODY_WIDTH - 1] + "…"


def moment(seconds: float) -> str:
    """Return seconds since the epoch as local time, to the millisecond."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"
