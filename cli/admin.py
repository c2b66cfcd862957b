"""Commands that change a whole queue: ``pause resume purge``, ``queue delete``."""

from __future__ import annotations

import click

from eoq.errors import NotFound

from .common import confirm, connect, print_json
from .groups import Group
from .options import json_option, queue_argument, socket_option


@click.command()
@queue_argument
@socket_option
def pause(queue: str, socket: str | None) -> None:
    """Pause all deliveries of QUEUE until `eoq resume`.

    The queue stays paused when the daemon restarts. New messages are still stored, and leased ones can be settled.

    \b
    eoq pause mail
    """
    with connect(socket) as client:
        if not client.pause(queue):
            click.echo(f"eoq: {queue} is already paused", err=True)


@click.command()
@queue_argument
@socket_option
def resume(queue: str, socket: str | None) -> None:
    """Resume the deliveries of QUEUE after a pause. Exit status 1 if the queue does not exist.

    \b
    eoq resume mail
    """
    with connect(socket) as client:
        if not client.resume(queue):
            click.echo(f"eoq: {queue} is not paused", err=True)


@click.command()
@queue_argument
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@socket_option
def purge(queue: str, yes: bool, as_json: bool, socket: str | None) -> None:
    """Drop all waiting messages of QUEUE, and print how many. Leased messages and dead letters stay.

    The ids stay known: a message with one of them is a duplicate. Exit status 1 if the queue does not exist.

    \b
    eoq purge mail --yes
    """
    with connect(socket) as client:
        confirm(f"Drop all waiting messages of {queue}?", yes)
        count = client.purge(queue)
    if as_json:
        print_json({"queue": queue, "count": count})
    else:
        click.echo(count)


@click.group(cls=Group)
def queue() -> None:
    """Delete queues. See `eoq queues` for the list of them.

    \b
    eoq queue delete mail
    """


@queue.command()
@queue_argument
@click.option(
    "--forget-ids", is_flag=True, help="Also if ids are remembered: a repeated send of one is then stored again."
)
@socket_option
def delete(queue: str, forget_ids: bool, socket: str | None) -> None:
    """Delete QUEUE, which must have no messages. Exit status 1 if there is no such queue.

    The ids of settled messages are remembered for the retention of the queue, so that a repeated send stores nothing.
    While there are any, the queue is deleted only with --forget-ids. A queue without messages and ids that is neither
    bound nor paused goes by itself.

    \b
    eoq queue delete mail
    eoq queue delete mail --forget-ids
    """
    with connect(socket) as client:
        if not client.delete_queue(queue, forget_ids=forget_ids):
            raise NotFound(f"there is no queue {queue!r}; `eoq queues` lists them")
