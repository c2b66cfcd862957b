"""The options of a daemon, and where each value comes from. For ``daemon``, ``start`` and ``config show``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from eoq.daemon.config.resolve import Resolved

F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """Add ``--config FILE`` to a command."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="EOQ_CONFIG",
        metavar="FILE",
        help="The configuration, in TOML; else EOQ_CONFIG, else the user's file if it exists (see `eoq config show`).",
    )(command)


def database_option(command: F) -> F:
    """Add ``--db FILE`` to a command."""
    return click.option(
        "--db", envvar="EOQ_DB", metavar="FILE", help="The daemon's file; else EOQ_DB, else the user's."
    )(command)


def daemon_options(command: F) -> F:
    """Add ``--db --socket --max-attempts --config --spool`` to a command."""
    options = [
        database_option,
        click.option(
            "--socket", envvar="EOQ_SOCKET", metavar="PATH", help="Its socket; else EOQ_SOCKET, else the user's."
        ),
        click.option(
            "--max-attempts",
            type=click.IntRange(1, 1_000_000),
            envvar="EOQ_MAX_ATTEMPTS",
            metavar="N",
            help="Deliveries of a message before it is a dead letter, in all queues; else EOQ_MAX_ATTEMPTS, else 10.",
        ),
        config_option,
        click.option(
            "--spool",
            type=click.Path(file_okay=False, path_type=Path),
            envvar="EOQ_SPOOL",
            metavar="DIR",
            help="Store files renamed into DIR/QUEUE as messages; else EOQ_SPOOL, else the folder beside its file.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def from_cli(ctx: click.Context) -> dict[str, Resolved]:
    """Return the values of flags and variables, by the name of the option."""
    from eoq.daemon.config.resolve import Resolved

    values = {}
    for name in ("db", "socket", "spool", "max_attempts", "config"):
        value, source = ctx.params.get(name), ctx.get_parameter_source(name)
        if value is not None and source is ParameterSource.COMMANDLINE:
            values[name] = Resolved(value, f"flag --{name.replace('_', '-')}")
        elif value is not None and source is ParameterSource.ENVIRONMENT:
            values[name] = Resolved(value, f"env EOQ_{name.upper()}")
    return values
