"""``eoq relay``: send the outboxes of applications' files."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from pathlib import Path

import click

from eoq.client.aio import connect_async
from eoq.outbox.file import OutboxFile
from eoq.outbox.relay import RESEND_WITHIN, Relay
from eoq.outbox.rows import OutboxStore

from .common import print_json, visible
from .databases import Database, DatabaseType, shown
from .logs import log_to_standard_error
from .options import json_option, socket_option

SET_ASIDE = 65
"""Exit status while rows are set aside: they are bad data until the operator corrects or deletes them."""
LISTED = 1000
"""How many rows ``--list`` prints of one file, at most."""


@click.command()
@click.argument("files", metavar="APP.db…", nargs=-1, required=True, type=DatabaseType())
@click.option("--until-empty", is_flag=True, help="Send what is in the outboxes, then end.")
@click.option("--list", "only_list", is_flag=True, help="Print the rows that are set aside, and send nothing.")
@click.option(
    "--resend-within",
    type=click.FloatRange(min=0),
    default=RESEND_WITHIN,
    metavar="SECONDS",
    help="Set a row aside if it was first sent longer ago and never confirmed; 6 days if absent. "
    "It must be less than the daemon's retention.",
)
@json_option
@socket_option
def relay(
    files: tuple[Database, ...],
    until_empty: bool,
    only_list: bool,
    resend_within: float,
    as_json: bool,
    socket: str | None,
) -> None:
    """Send the outboxes of APP.db… to the daemon, each message once.

    APP.db is a SQLite file, or the URL of a PostgreSQL database without its password (that comes from PGPASSFILE or a
    service). Writes wake the relay. It runs until it is stopped (Ctrl-C or SIGTERM), and waits while the daemon does
    not run. Several relays may run on one outbox. A message that cannot be sent (its body is too large, or its id
    belongs to another message) is set aside: its row stays, with the reason in the column `error`, and only its own
    group waits for it. Correct the row and set its `error` to null, or delete it.

    \b
    eoq relay shop.db
    eoq relay shop.db --until-empty     # exit status 65 while rows are set aside
    eoq relay shop.db --list
    eoq relay postgresql://shop@db/shop
    """
    log_to_standard_error("eoq relay")
    if only_list:
        for place in files:
            _list(place, as_json)
    elif until_empty:
        aside = asyncio.run(_flush(files, socket, resend_within, as_json))
        if aside:
            named = shlex.join(str(place) for place in files)
            click.echo(f"eoq relay: rows set aside: {aside:,}; `eoq relay --list {named}` shows them", err=True)
            sys.exit(SET_ASIDE)
    else:
        asyncio.run(_run(files, socket, resend_within))


async def _run(files: tuple[Database, ...], socket: str | None, resend_within: float) -> None:
    """Run the relays until SIGTERM. Ctrl-C cancels this coroutine."""
    async with connect_async(socket) as client:
        relays = [Relay(_open(place), client, resend_within=resend_within) for place in files]
        for one in relays:
            await one.check()
        tasks = [asyncio.create_task(one.run()) for one in relays]
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        stopping = asyncio.create_task(stopped.wait())
        try:
            click.echo(f"eoq relay: {', '.join(map(shown, files))} to {client.path}", err=True)
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)


async def _flush(files: tuple[Database, ...], socket: str | None, resend_within: float, as_json: bool) -> int:
    aside = 0
    async with connect_async(socket) as client:
        for place in files:
            one = Relay(_open(place), client, resend_within=resend_within)
            there = await one.flush()
            aside += there
            if as_json:
                print_json({"file": shown(place), "sent": one.sent, "set_aside": there})
    return aside


def _open(place: Database) -> OutboxStore:
    if isinstance(place, Path):
        return OutboxFile(place)
    from eoq.postgres.outbox_table import OutboxTable

    return OutboxTable(place)


def _list(place: Database, as_json: bool) -> None:
    file = _open(place)
    rows = file.list_set_aside(LISTED)
    file.close()
    for row in rows:
        if as_json:
            print_json({"file": shown(place), **row._asdict()})
        else:
            click.echo(visible(f"{row.seq}  {row.queue}  {row.id}  {row.error}"))
