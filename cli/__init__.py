"""The command line, installed as ``eoq.cli``: one module for each family of commands, thin over the library.

`main` is what the program `eoq` runs. The commands that scripts call most have a quick way; all else goes to click.
"""

from __future__ import annotations

import sys

from . import quick

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(words: Sequence[str] | None = None, prog_name: str | None = None) -> None:
    """Run the command of these words (else those of this process), and end the process with its exit status."""
    words = sys.argv[1:] if words is None else words
    status = quick.run(words)
    if status is None:
        from .commands import commands

        commands(words, prog_name=prog_name)
    sys.exit(status)
