"""Commands that change one message: ``cancel edit``."""

from __future__ import annotations

import sys

import click

from .common import NOTHING_THERE, connect, print_json, read_body
from .options import json_option, queue_argument, socket_option, time_option

EFFECT = "it was delivered before, and may have taken effect"


@click.command()
@queue_argument
@click.argument("id_", metavar="ID")
@json_option
@socket_option
def cancel(queue: str, id_: str, as_json: bool, socket: str | None) -> None:
    """Cancel a message, so that it is not delivered any more. To do so again changes nothing.

    Exit status 1 if the message is not known, or has ended otherwise.

    A message that is being handled ends as cancelled when its delivery ends, unless its consumer acks it. The consumer
    learns it with the next `extend`; a worker's handler sees `message.cancelled`.

    \b
    eoq cancel payments order-17
    """
    with connect(socket) as client:
        found = client.cancel(queue, id_)
    if as_json:
        print_json({"queue": queue, "id": id_, **found._asdict()})
    elif found.state == "leased":
        click.echo(f"eoq: {id_} is being handled; it ends as cancelled unless it is acked", err=True)
    elif found.state != "cancelled":
        click.echo(f"eoq: {id_} has ended already, as {found.state}", err=True)
    elif found.delivered:
        click.echo(f"eoq: {id_} is cancelled, but {EFFECT}", err=True)
    if found.state not in ("cancelled", "leased"):
        sys.exit(NOTHING_THERE)


@click.command()
@queue_argument
@click.argument("id_", metavar="ID")
@click.option("--body", metavar="TEXT", help="The new body; `-` is standard input.")
@click.option("--priority", type=int, metavar="N", help="The new priority.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Deliver it after so many seconds.")
@time_option("Deliver it not before this time: epoch seconds or ISO 8601, local if without zone.")
@json_option
@socket_option
def edit(
    queue: str,
    id_: str,
    body: str | None,
    priority: int | None,
    delay: float | None,
    at: float | None,
    as_json: bool,
    socket: str | None,
) -> None:
    """Change the body, the priority or the due time of a message. Exit status 1 if it is not known.

    It is refused while the message is leased. The message stays the one that was sent: a repeated send of the first
    body is a duplicate, and an inbox that has processed it does not apply it again.

    \b
    eoq edit payments order-17 --delay 0
    eoq edit payments order-17 --priority 9 --body '{"amount": 7}'
    """
    if body is None and priority is None and delay is None and at is None:
        raise click.UsageError("say what to change: --body, --priority, --delay or --at")
    if delay is not None and at is not None:
        raise click.UsageError("give --delay or --at, not both")
    content = None if body is None else read_body(body, "body")
    with connect(socket) as client:
        found = client.edit(queue, id_, body=content, priority=priority, delay=delay, at=at)
    if as_json:
        print_json({"queue": queue, "id": id_, **found._asdict()})
    elif found.delivered:
        click.echo(f"eoq: {id_} is changed, but {EFFECT} as it was", err=True)
