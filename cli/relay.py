"""`eoq relay`: sends what the outboxes of applications' files hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

import click

from eoq.aio import connect_async
from eoq.relay import Relay

from .common import json_option, print_json, socket_option


@click.command()
@click.argument(
    "files", metavar="APP.db…", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--until-empty", is_flag=True, help="Send what is there, then end.")
@json_option
@socket_option
def relay(files: tuple[Path, ...], until_empty: bool, as_json: bool, socket: str | None) -> None:
    """Send what the outboxes of APP.db… hold to the daemon, each message once.

    Woken by writes to the files; runs until it is stopped (Ctrl-C or SIGTERM). Any number of relays may run on one
    file. A message that can never be sent (a body too large, an id used for something else) is set aside in its row,
    with the reason in the column `error`, and holds up only its own group.

    \b
    eoq relay shop.db
    eoq relay shop.db --until-empty          # from cron; exit status 1 if something was set aside
    """
    logging.basicConfig(level=logging.WARNING, format="eoq relay: %(message)s", stream=sys.stderr)
    relays = asyncio.run(_relay(files, until_empty, socket))
    for one in relays:
        if as_json:
            print_json({"file": str(one.path), "sent": one.sent, "set_aside": one.set_aside})
    if until_empty and any(one.set_aside for one in relays):
        sys.exit(1)


async def _relay(files: tuple[Path, ...], until_empty: bool, socket: str | None) -> list[Relay]:
    async with connect_async(socket) as client:
        relays = [Relay(path, client) for path in files]
        await client.ask("status")  # a daemon that was never there is told at once
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(one.flush() if until_empty else one.run()) for one in relays]

        def stop() -> None:
            for task in tasks:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        if not until_empty:
            click.echo(f"relaying {', '.join(map(str, files))}", err=True)
        try:
            for task in asyncio.as_completed(tasks):
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        finally:
            stop()
            await asyncio.gather(*tasks, return_exceptions=True)
    return relays
