"""Commands that steer a queue: ``pause resume purge``."""

from __future__ import annotations

import click

from .common import confirm, connect, json_option, print_json, queue_argument, socket_option


@click.command()
@queue_argument
@socket_option
def pause(queue: str, socket: str | None) -> None:
    """Hold back all deliveries of QUEUE, also after a restart. Sends go on; what is leased can be settled.

    \b
    eoq pause mail
    """
    with connect(socket) as client:
        if not client.pause(queue):
            click.echo(f"eoq: {queue} is paused already", err=True)


@click.command()
@queue_argument
@socket_option
def resume(queue: str, socket: str | None) -> None:
    """Let the deliveries of QUEUE go on after a pause. Exit status 1 if there is no such queue.

    \b
    eoq resume mail
    """
    with connect(socket) as client:
        if not client.resume(queue):
            click.echo(f"eoq: {queue} is not paused", err=True)


@click.command()
@queue_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@socket_option
def purge(queue: str, yes: bool, as_json: bool, socket: str | None) -> None:
    """Drop all messages of QUEUE that wait; leased ones and dead letters stay. Prints how many went.

    Their ids stay known: sent again, they are duplicates. Exit status 1 if there is no such queue.

    \b
    eoq purge mail --yes
    """
    with connect(socket) as client:
        confirm(f"Drop all messages that wait in {queue}?", yes)
        count = client.purge(queue)
    if as_json:
        print_json({"queue": queue, "count": count})
    else:
        click.echo(count)
