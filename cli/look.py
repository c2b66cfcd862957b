"""Commands that only look: ``result queues peek show``."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from eoq.errors import InvalidRequest
from eoq.protocol import MAX_BATCH

from .common import (
    NOTHING_THERE,
    bytes_fields,
    connect,
    json_option,
    print_bytes,
    print_json,
    queue_argument,
    socket_option,
    visible,
)
from .table import print_table

STATES = ("ready", "delayed", "leased", "blocked", "dead")
BODY_WIDTH = 60


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
    if found.outcome == "dead":
        raise InvalidRequest(f"{id_} is a dead letter: {found.error or 'no reason was given'}")


@click.command()
@json_option
@socket_option
def queues(as_json: bool, socket: str | None) -> None:
    """List the queues, with how many messages of each wait, and since when.

    \b
    eoq queues
    eoq queues --json | jq 'select(.dead > 0) | .queue'
    """
    now = time.time()
    with connect(socket) as client:
        rows = client.ask("queues")["queues"]
    for row in rows:
        row["queue"] = row.pop("name")
        oldest = row.pop("oldest")
        row["oldest_seconds"] = None if oldest is None else round(max(now - oldest, 0.0), 3)
    columns = ("queue", *STATES, "oldest_seconds")
    if as_json:
        for row in rows:
            print_json({column: row[column] for column in columns})
    elif rows:
        print_table(
            ("queue", *STATES, "oldest"),
            [[row["queue"], *(row[state] for state in STATES), _age(row["oldest_seconds"])] for row in rows],
        )


@click.command()
@queue_argument
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_BATCH),
    default=10,
    metavar="N",
    help="Messages at most; 10 if absent.",
)
@click.option("--state", type=click.Choice(STATES), default="ready", help="Of which state; ready if absent.")
@json_option
@socket_option
def peek(queue: str, limit: int, state: str, as_json: bool, socket: str | None) -> None:
    """Look at the next messages of QUEUE without leasing them. Exit status 1 if there is none.

    \b
    eoq peek mail
    eoq peek mail --state dead --json | jq -r .error
    """
    with connect(socket) as client:
        messages = client.ask("peek", queue=queue, limit=limit, state=state)["messages"]
    if as_json:
        for message in messages:
            print_json(message)
    elif messages:
        now = time.time()
        print_table(
            ("id", "attempts", "priority", "age", "body" if state != "dead" else "error"),
            [
                [
                    message["id"],
                    message["attempts"],
                    message["priority"],
                    _age(now - message["enqueued_at"]),
                    _short(message.get("error", "") if state == "dead" else _body(message)),
                ]
                for message in messages
            ],
        )
    if not messages:
        sys.exit(NOTHING_THERE)


@click.command()
@queue_argument
@click.argument("id_", metavar="ID")
@json_option
@socket_option
def show(queue: str, id_: str, as_json: bool, socket: str | None) -> None:
    """Show all that is known of one message. Exit status 1 if it is not known.

    \b
    eoq show payments order-17
    """
    with connect(socket) as client:
        message = client.ask("show", queue=queue, id=id_)["message"]
    if as_json:
        print_json(message)
        return
    width = max(len(name) for name in message)
    for name, value in message.items():
        if name.endswith("_at"):
            value = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) + f".{int(value % 1 * 1000):03d}"
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        click.echo(f"{name:{width}}  {visible(value)}")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{max(seconds, 0.0):.1f}s"


def _body(message: dict[str, Any]) -> str:
    return str(message["body"]) if "body" in message else "base64:" + str(message.get("body_base64", ""))


def _short(text: str) -> str:
    """A text on one line, cut."""
    cut = visible(text[: BODY_WIDTH + 1])
    return cut if len(cut) <= BODY_WIDTH else cut[: BODY_WIDTH - 1] + "…"
