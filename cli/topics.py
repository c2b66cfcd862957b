"""Commands for topics: ``bind unbind topics``."""

from __future__ import annotations

import click

from .common import connect, print_json
from .options import header_option, json_option, queue_argument, socket_option, topic_argument
from .table import print_table


@click.command()
@topic_argument
@queue_argument
@header_option("Deliver only messages with this header; may be repeated.")
@socket_option
def bind(topic: str, queue: str, headers: dict[str, str], socket: str | None) -> None:
    """Bind QUEUE to TOPIC.

    A message sent to TOPIC goes to every bound queue, in one transaction. Binding again replaces the headers.
    Bindings may also be declared in the configuration file of the daemon.

    \b
    eoq bind orders orders.mail
    eoq bind orders orders.fraud --header risk=high
    eoq send orders '{"order": 17}' --id order-17 --header risk=high
    """
    with connect(socket) as client:
        client.bind(topic, queue, headers or None)


@click.command()
@topic_argument
@queue_argument
@socket_option
def unbind(topic: str, queue: str, socket: str | None) -> None:
    """Remove the binding of QUEUE to TOPIC. Messages already in QUEUE stay. Exit status 1 if it is not bound.

    \b
    eoq unbind orders orders.fraud
    """
    with connect(socket) as client:
        client.unbind(topic, queue)


@click.command()
@json_option
@socket_option
def topics(as_json: bool, socket: str | None) -> None:
    """List the topics, with the queues bound to each.

    \b
    eoq topics
    """
    with connect(socket) as client:
        bindings = client.topics()
    if as_json:
        for binding in bindings:
            print_json(binding)
    elif bindings:
        print_table(
            ("topic", "queue", "headers"),
            [
                [b["topic"], b["queue"], " ".join(f"{name}={value}" for name, value in b.get("headers", {}).items())]
                for b in bindings
            ],
        )
