"""The command line, installed as ``eoq.cli``: one module per family of commands, thin over the library.

A command's module is imported only when the command runs, so that `eoq send` starts as fast as Python allows.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from eoq import __version__
from eoq.errors import EoqError

_HOMES = {
    "daemon": ("daemon", "start", "stop", "status"),
    "send": ("send",),
    "receive": ("receive", "ack", "nack", "reject", "extend"),
    "once": ("once",),
    "relay": ("relay",),
    "work": ("work",),
    "apply": ("apply",),
    "queries": ("result", "queues", "peek", "tail", "show"),
    "admin": ("pause", "resume", "purge"),
    "dead": ("dead",),
    "schedule": ("schedule",),
    "topics": ("bind", "unbind", "topics"),
    "demo": ("demo",),
    "config": ("config",),
}
_HOME_OF = {command: home for home, commands in _HOMES.items() for command in commands}

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""
INPUT_OUTPUT_ERROR = 74
"""Exit status where standard input or output failed (EX_IOERR)."""


class _Commands(click.Group):
    """Finds commands by name, and ends with an error's exit status instead of a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_HOME_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _HOME_OF.get(cmd_name)
        if home is None:
            return None
        command: click.Command = getattr(import_module(f".{home}", __name__), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        _open_closed_streams()
        try:
            outcome = super().invoke(ctx)
            sys.stdout.flush()
        except EoqError as error:
            click.echo(f"eoq: {error}", err=True)
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except OSError as error:
            # What is left in the buffer would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if not isinstance(error, BrokenPipeError):  # whoever reads no more, as `head`, has had enough
                click.echo(f"eoq: cannot read or write: {error}; see to the disk or the redirection", err=True)
            sys.exit(INPUT_OUTPUT_ERROR)
        return outcome


def _open_closed_streams() -> None:
    """What the caller has closed is empty, or goes nowhere, instead of failing in the middle.

    First of all, so that nothing else that is opened takes the numbers 0 to 2.
    """
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 # stays open as long as the process
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 # stays open as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 # stays open as long as the process


def _colours() -> bool | None:
    """False where the user wants none or the terminal has none; None leaves it to click: at a terminal only."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "color": _colours()})
@click.version_option(__version__, prog_name="eoq")
def main() -> None:
    """The exactly-once queue for one machine.

    \b
    eoq start                        the daemon, in the background
    eoq send mail 'hello'            a message, on disk when the command returns
    eoq receive mail --json          lease it
    eoq ack RECEIPT                  settle it
    eoq demo                         see it survive kill -9

    \b
    Exit status: 0 done · 1 nothing there · 2 usage · 65 bad data · 69 daemon not reachable · 70 failed inside ·
    74 input or output failed · 75 try again later · 77 not allowed · 130 Ctrl-C
    """
