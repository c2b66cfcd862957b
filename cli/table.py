"""Tables, as the commands that look print them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click


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
