"""Commands that explain what the daemon does: ``metrics why``."""

from __future__ import annotations

import click

from .common import connect, print_json, visible
from .options import json_option, queue_argument, socket_option


@click.command()
@socket_option
def metrics(socket: str | None) -> None:
    """Print the metrics of the daemon and of each queue, in the text format of Prometheus.

    For a scrape without a command, let the daemon listen: `listen = "127.0.0.1:9464"` under [metrics] in its
    configuration.

    \b
    eoq metrics
    eoq metrics | grep eoq_queue_messages
    """
    with connect(socket) as client:
        click.echo(client.metrics(), nl=False)


@click.command()
@queue_argument
@click.argument("id_", metavar="ID")
@json_option
@socket_option
def why(queue: str, id_: str, as_json: bool, socket: str | None) -> None:
    """Say why a message is not delivered now. Exit status 1 if the message is not known.

    \b
    eoq why payments order-17
    eoq why payments order-17 --json | jq -r '.reasons[].reason'
    """
    with connect(socket) as client:
        found = client.why(queue, id_)
    if as_json:
        print_json({"queue": queue, "id": id_, **found})
        return
    for reason in found["reasons"]:
        click.echo(visible(f"{found['state']}: {reason['text']}"))
