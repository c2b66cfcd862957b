"""Topics: ``bind unbind topics``."""

from __future__ import annotations

import click

from .common import connect, header_option, json_option, print_json, queue_argument, socket_option, topic_argument
from .table import print_table


@click.command()
@topic_argument
@queue_argument
@header_option("Only messages with this header; may be repeated.")
@socket_option
def bind(topic: str, queue: str, headers: dict[str, str], socket: str | None) -> None:
    """Bind QUEUE to TOPIC: what is sent to TOPIC goes to each queue bound to it, in one transaction.

    Bound again, it has the new headers. The configuration can bind as well.

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
    """End the binding of QUEUE to TOPIC; messages it has already stay. Exit status 1 if there is none.

    \b
    eoq unbind orders orders.fraud
    """
    with connect(socket) as client:
        client.unbind(topic, queue)


@click.command()
@json_option
@socket_option
def topics(as_json: bool, socket: str | None) -> None:
    """List which queues are bound to which topics.

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
