"""Commands that only look: ``result queues peek tail show``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from eoq.protocol.limits import MAX_BATCH

from .common import (
    NOTHING_THERE,
    F,
    bytes_fields,
    connect,
    header_option,
    json_option,
    print_bytes,
    print_json,
    queue_argument,
    refuse_failed,
    socket_option,
    visible,
)
from .table import age, body_text, moment, print_table, short

COUNTED = ("ready", "delayed", "leased", "blocked", "dead")
STATES = (*COUNTED, "done", "expired", "dropped")


@click.command()
@queue_argument
@click.argument("id_", metavar="ID")
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait so long for it.")
@json_option
@socket_option
def result(queue: str, id_: str, wait: float, as_json: bool, socket: str | None) -> None:
    """Print the stored result of a message. Exit status 1 if there is none (yet).

    \b
    eoq result payments order-17 --wait 10
    """
    with connect(socket) as client:
        found = client.result(queue, id_, wait)
    if found is None:
        sys.exit(NOTHING_THERE)
    if as_json:
        fields = {} if found.body is None else bytes_fields("result", found.body)
        error = {} if found.error is None else {"error": found.error}
        print_json({"queue": queue, "id": id_, "outcome": found.outcome, **fields, **error})
    elif found.body is not None:
        print_bytes(found.body)
    refuse_failed(id_, found)


@click.command()
@json_option
@socket_option
def queues(as_json: bool, socket: str | None) -> None:
    """List the queues: messages in each state, since when the oldest waits, and how many a second come and get done.

    In a pipe there is no head. The columns are the queue, its messages that are ready, delayed, leased, blocked and
    dead, the age of its oldest one, sent and done a second, and `paused` where it is.

    \b
    eoq queues
    eoq queues --json | jq 'select(.dead > 0) | .queue'
    """
    now = time.time()
    with connect(socket) as client:
        rows = client.queues()
    for row in rows:
        row["queue"] = row.pop("name")
        oldest = row.pop("oldest")
        row["oldest_seconds"] = None if oldest is None else round(max(now - oldest, 0.0), 3)
    columns = ("queue", *COUNTED, "oldest_seconds", "sent_rate", "done_rate", "paused")
    if as_json:
        for row in rows:
            print_json({column: row[column] for column in columns})
    elif rows:
        print_table(
            ("queue", *COUNTED, "oldest", "sent/s", "done/s", ""),
            [
                [
                    row["queue"],
                    *(row[state] for state in COUNTED),
                    age(row["oldest_seconds"]),
                    f"{row['sent_rate']:.1f}",
                    f"{row['done_rate']:.1f}",
                    "paused" if row["paused"] else "",
                ]
                for row in rows
            ],
            _colour,
        )


def _colour(column: str, value: Any) -> str | None:
    """What asks for somebody to look."""
    if column == "dead" and value:
        return "red"
    return "yellow" if value == "paused" else None


def filtered(default_limit: int) -> Callable[[F], F]:
    """``QUEUE`` and which of its messages are wanted: ``--limit --group --header --contains``."""

    def decorate(command: F) -> F:
        for option in (
            socket_option,
            json_option,
            click.option("--contains", metavar="TEXT", help="Only with this text in the body."),
            header_option("Only with this header; may be repeated."),
            click.option("--group", metavar="NAME", help="Only of this group."),
            click.option(
                "--limit",
                type=click.IntRange(1, MAX_BATCH),
                default=default_limit,
                metavar="N",
                help=f"Messages at most; {default_limit} if absent.",
            ),
            queue_argument,
        ):
            command = option(command)
        return command

    return decorate


@click.command()
@click.option("--state", type=click.Choice(STATES), default="ready", help="Of which state; ready if absent.")
@filtered(10)
def peek(**wanted: Any) -> None:
    """Look at the next messages of QUEUE without leasing them. Exit status 1 if none was found.

    Of the state only the first 50,000 are looked at for those that are wanted.

    \b
    eoq peek mail
    eoq peek mail --state dead --json | jq -r .error
    eoq peek payments --group alice --contains refund
    """
    print_found(**wanted)


def print_found(
    *,
    queue: str,
    state: str,
    limit: int,
    group: str | None,
    headers: dict[str, str],
    contains: str | None,
    as_json: bool,
    socket: str | None,
) -> None:
    """Prints the messages of one state that are wanted; ends with 1 if none was found."""
    with connect(socket) as client:
        found = client.ask(
            "peek", queue=queue, state=state, limit=limit, group=group, headers=headers or None, contains=contains
        )
    messages = found["messages"]
    if as_json:
        for message in messages:
            print_json(message)
    elif messages:
        print_messages(messages)
    if found["more"] and len(messages) < limit:
        click.echo(
            f"eoq: not all of {queue} was looked at, and there may be more matches: a look ends after 50,000 messages, "
            "64 MiB of bodies, or 2 MiB to show",
            err=True,
        )
    if not messages:
        sys.exit(NOTHING_THERE)


@click.command()
@queue_argument
@click.option("-n", "--last", type=click.IntRange(0, MAX_BATCH), default=10, help="First so many that are there; 10.")
@json_option
@socket_option
def tail(queue: str, last: int, as_json: bool, socket: str | None) -> None:
    """Follow QUEUE: print each message as it is stored, until Ctrl-C. Nothing is leased.

    \b
    eoq tail mail
    eoq tail payments -n 0 --json | jq -r .body
    """
    with connect(socket) as client:
        for message in client.tail(queue, last=last):
            if as_json:
                print_json(message)
            else:
                click.echo(f"{moment(message['enqueued_at'])}  {visible(message['id'])}  {short(body_text(message))}")
            sys.stdout.flush()


@click.command()
@queue_argument
@click.argument("id_", metavar="ID")
@json_option
@socket_option
def show(queue: str, id_: str, as_json: bool, socket: str | None) -> None:
    """Show the whole life of one message. Exit status 1 if it is not known.

    \b
    eoq show payments order-17
    """
    print_life(queue, id_, as_json, socket)


def print_life(queue: str, id_: str, as_json: bool, socket: str | None) -> None:
    """Prints all that is known of one message."""
    with connect(socket) as client:
        message = client.show(queue, id_)
    if as_json:
        print_json(message)
        return
    history = message.pop("history", [])
    width = max(len(name) for name in message)
    for name, value in message.items():
        if name.endswith("_at"):
            value = moment(value)
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:{width}}  {visible(value)}")
    for delivery in history:
        told = [f"delivery {delivery['delivery']}"]
        if "delivered_at" in delivery:
            told.append(f"{moment(delivery['delivered_at'])} to {visible(delivery.get('consumer', 'somebody'))}")
        if "failed_at" in delivery:
            told.append(f"failed {moment(delivery['failed_at'])}: {visible(delivery.get('error', 'no reason given'))}")
        click.echo("  ".join(told))


def print_messages(messages: list[dict[str, Any]]) -> None:
    """A line a message, with the error of one that failed."""
    now = time.time()
    dead = messages[0]["state"] == "dead"
    print_table(
        ("id", "attempts", "priority", "age", "error" if dead else "body"),
        [
            [
                visible(message["id"]),
                message["attempts"],
                message["priority"],
                age(now - message["enqueued_at"]),
                short(message.get("error", "") if dead else body_text(message)),
            ]
            for message in messages
        ],
    )
