"""Commands that move what a daemon knows of its messages to another: ``export import``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from eoq.errors import InvalidRequest, NotFound

from .common import print_json, report, standard_input
from .daemon_options import config_option, database_option, from_cli
from .options import complete_queue, json_option, socket_option
from .progress import ProgressLine
from .running import database_in_use

if TYPE_CHECKING:
    from eoq.daemon.config.resolve import ResolvedConfig

PROGRESS_SECONDS = 0.1
"""Seconds between two updates of the progress line."""


@click.command()
@click.argument("queues", nargs=-1, metavar="[QUEUE]…", shell_complete=complete_queue)
@database_option
@socket_option
@config_option
@click.pass_context
def export(ctx: click.Context, /, queues: tuple[str, ...], socket: str | None, **_options: object) -> None:
    """Print what the daemon's file knows of its messages, as lines of JSON for `eoq import`.

    That are the messages that wait, with their states, attempts and failures; dead letters with their history; the ids
    of settled messages with outcome and result; paused queues, bindings, schedules and counts. If QUEUEs are named, it
    is what belongs to them; otherwise also the keys of `eoq once` that are done. It is one state of the file. The
    daemon may run. What its configuration file says is not in it.

    The lines have the bodies of messages: keep the file private.

    \b
    eoq export > all.jsonl
    eoq export payments > payments.jsonl
    eoq export | jq -r 'select(.state == "dead") | .id'
    """
    from eoq.daemon.upkeep.exporting import export as lines_of

    resolved = _resolve(ctx)
    progress = ProgressLine()
    output = sys.stdout.buffer
    try:
        for line in lines_of(database_in_use(resolved, socket), queues, resolved.config.storage, progress):
            output.write(line + b"\n")
        output.flush()
    finally:
        progress.end()


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@database_option
@config_option
@json_option
@click.pass_context
def import_(ctx: click.Context, /, file: Path | None, as_json: bool, **_options: object) -> None:
    """Store what `eoq export` has printed, from FILE or standard input. Stop the daemon first.

    Ids and states are kept: a repeated send of an imported id is a duplicate, and its result is there. Schedules go on
    where they were, and what they missed meanwhile is sent as their rule says. What the file knows already stays as it
    is, so an import that was interrupted is repeated as a whole. Order within groups is kept. A line that is wrong is
    refused with its number; the entries before it may be stored.

    Stop the other daemon as well, before the export, if its messages are to be handled here only: a message in both
    is delivered by both. An inbox that both deliver to still runs it once.

    \b
    eoq stop && eoq export > all.jsonl       # here
    eoq import all.jsonl && eoq start        # there
    """
    from eoq.daemon.config.model import LiveConfig
    from eoq.daemon.upkeep.importing import import_lines

    resolved = _resolve(ctx)
    settings = LiveConfig(resolved.config, resolved.queue_overrides).queue
    database = resolved.db.value
    progress = _Lines()
    try:
        with _opened(file) as source:
            done = asyncio.run(import_lines(source, database, settings, resolved.config.storage, progress))
    finally:
        progress.end()
    if as_json:
        print_json({"database": str(database), **done._asdict()})
    else:
        click.echo(done.new)
        report(f"{done.lines:,} entries were read into {database}, {done.lines - done.new:,} of them were known")


@contextmanager
def _opened(file: Path | None) -> Iterator[BinaryIO]:
    if file is None or str(file) == "-":
        yield standard_input()
        return
    try:
        source = file.open("rb")
    except FileNotFoundError:
        raise NotFound(f"{file} does not exist; name the output of `eoq export`") from None
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}; name the output of `eoq export`") from error
    with source:
        yield source


class _Lines:
    """The count of lines that were read, shown if standard error is a terminal."""

    def __init__(self) -> None:
        self._shows = os.isatty(2)
        self._next = 0.0
        self._shown = False

    def __call__(self, lines: int) -> None:
        if self._shows and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self._shown = True
            print(f"\r{lines:,} lines", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _resolve(ctx: click.Context) -> ResolvedConfig:
    from eoq.daemon.config.resolve import resolve

    return resolve(from_cli(ctx))
