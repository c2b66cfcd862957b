"""The commands, by click: one module for each family of them, which is imported only when the command runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from keyword import iskeyword
from typing import Any

import click
from click.shell_completion import CompletionItem

from eoq import __version__
from eoq.errors import EoqError

from .catalogue import MEANT, MODULE_OF, SECTIONS
from .common import end, open_closed_streams
from .groups import Group


class _Commands(Group):
    """The commands, each imported when it is used.

    A command may return its exit status. An error ends the program with its exit status, not a traceback.
    """

    meant = MEANT

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(MODULE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = MODULE_OF.get(cmd_name)
        if module is None:
            return None
        name = cmd_name.replace("-", "_") + "_" * iskeyword(cmd_name)
        command: click.Command = getattr(import_module(f".{module}", __package__), name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command. Without its help, which would load all of them."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name) for name in MODULE_OF if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed = {name for names in SECTIONS.values() for name in names}
        more = tuple(name for name in MODULE_OF if name not in listed)
        for title, names in {**SECTIONS, "More": more}.items():
            self.write_commands(ctx, formatter, title, names)

    def main(self, *arguments: Any, **options: Any) -> Any:
        open_closed_streams()
        _allow_all_characters()
        return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            status = super().invoke(ctx)
            sys.stdout.flush()
        except (EoqError, KeyboardInterrupt, OSError) as error:
            status = end(error)
        if status:
            sys.exit(status)


def _allow_all_characters() -> None:
    """Print a character that the encoding of the locale does not have, such as EUC-JP's, as an escape."""
    stdout = sys.stdout  # standard error is so by default
    if isinstance(stdout, TextIOWrapper) and stdout.encoding.lower() != "utf-8":
        stdout.reconfigure(errors="backslashreplace")


def _colours() -> bool | None:
    """Return False if the user or the terminal wants no colours, else None: click then decides by the terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "color": _colours()})
@click.version_option(__version__, prog_name="eoq")
def commands() -> None:
    """Exactly-once message queue for one machine.

    \b
    eoq start                        start the daemon in the background
    eoq send mail 'hello'            send a message; it is on disk when the command returns
    eoq receive mail --json          lease it
    eoq ack RECEIPT                  settle it
    eoq demo                         watch it survive kill -9

    \b
    Exit status: 0 done · 1 nothing there · 2 usage · 65 bad data · 69 daemon not reachable · 70 failed inside ·
    74 input or output failed · 75 try again later · 77 not allowed · 130 Ctrl-C
    """
