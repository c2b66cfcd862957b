"""Commands that read and change nothing: ``result queues peek tail show find``."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from eoq.errors import NotFound
from eoq.protocol.features import QueueOrder
from eoq.protocol.limits import MAX_BATCH
from eoq.protocol.validation import check_finite
from eoq.transport.single import Single

from . import plain
from .common import NOTHING_THERE, connect, print_json, visible
from .options import Decorator, gather, header_option, json_option, queue_argument, queues_argument, socket_option
from .table import age, body_text, moment, print_table, short

if TYPE_CHECKING:
    from eoq.client.blocking import Client

COUNTED = ("ready", "delayed", "leased", "blocked", "dead")
STATES = (*COUNTED, "done", "forwarded", "expired", "dropped", "cancelled")
ORDERS: Final = get_args(QueueOrder)
SHOWN: Final = 20
"""Queues that are listed in an order other than by name."""
COLUMNS = (
    *("queue", *COUNTED, "oldest_seconds", "sent_rate", "done_rate", "paused"),
    *("oldest_ready_seconds", "consumers", "waiting", "totals", "since_start"),
)
"""The fields of each queue in JSON."""


@click.command()
@queue_argument
@click.argument("id_", metavar="ID")
@click.option(
    "--wait", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait for the result this long."
)
@json_option
@socket_option
def result(queue: str, id_: str, wait: float, as_json: bool, socket: str | None) -> int:
    """Print the stored result of a message. Exit status 1 if there is none yet.

    \b
    eoq result payments order-17 --wait 10
    """
    check_finite("wait", wait)
    with Single(socket) as single:
        return plain.result(single, queue, id_, wait, as_json)


@click.command()
@click.option("--totals", is_flag=True, help="Print what was counted of each queue since the file was made.")
@click.option("--prefix", default="", metavar="TEXT", help="Only queues whose names begin with TEXT.")
@click.option("--after", default="", metavar="NAME", help="Only queues behind this name.")
@click.option("--order", type=click.Choice(ORDERS), help="The first queues in this order.")
@click.option("--contains", metavar="TEXT", help="Only queues with TEXT in their names, whatever its case.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N queues; with --order, 20 by default.")
@json_option
@socket_option
def queues(
    totals: bool,
    prefix: str,
    after: str,
    order: QueueOrder | None,
    contains: str | None,
    limit: int | None,
    as_json: bool,
    socket: str | None,
) -> None:
    """List the queues with their messages, throughput and consumers.

    The columns are: queue; ready, delayed, leased, blocked and dead messages; age of the oldest unsettled message;
    messages sent and done per second; connections that consume; `paused` if the queue is paused. With --totals: queue;
    then the counters by the names that a terminal shows above them. A pipe gets no header line.

    They come by name. With --order: the busiest, or those with most messages (`depth`), most ready or dead ones, most
    sent or done a second, or the oldest ready message (`age`).

    \b
    eoq queues
    eoq queues --order dead --limit 5
    eoq queues --prefix mail. --totals
    eoq queues --json | jq 'select(.dead > 0) | .queue'
    """
    ranked = order is not None or contains is not None
    if ranked and (prefix or after):
        raise click.UsageError("--order and --contains go through all queues: leave out --prefix and --after")
    now = time.time()
    with connect(socket) as client:
        if ranked:
            rows = _first(client, order or "name", contains or "", limit)
        else:
            rows = client.queues(prefix=prefix, after=after, limit=limit)
    for row in rows:
        row["queue"] = row.pop("name")
        oldest = row.pop("oldest")
        row["oldest_seconds"] = None if oldest is None else round(max(now - oldest, 0.0), 3)
        ready = row.pop("oldest_ready")
        row["oldest_ready_seconds"] = None if ready is None else round(max(now - ready, 0.0), 3)
    if as_json:
        for row in rows:
            print_json({column: row[column] for column in COLUMNS if column in row})
    elif rows and totals:
        names = list(rows[0]["totals"])
        print_table(("queue", *names), [[row["queue"], *(row["totals"][name] for name in names)] for row in rows])
    elif rows:
        print_table(
            ("queue", *COUNTED, "oldest", "sent/s", "done/s", "consumers", ""),
            [
                [
                    row["queue"],
                    *(row[state] for state in COUNTED),
                    age(row["oldest_seconds"]),
                    f"{row['sent_rate']:.1f}",
                    f"{row['done_rate']:.1f}",
                    row["consumers"],
                    "paused" if row["paused"] else "",
                ]
                for row in rows
            ],
            _colour,
        )


def _first(client: Client, order: QueueOrder, contains: str, limit: int | None) -> list[dict[str, Any]]:
    """Return the first queues in an order; by name, and without a limit, all of them."""
    if limit is None:
        limit = sys.maxsize if order == "name" else SHOWN
    rows: list[dict[str, Any]] = []
    while len(rows) < limit:
        asked = min(limit - len(rows), MAX_BATCH)
        found = client.overview(order, contains=contains, skip=len(rows), limit=asked)["queues"]
        rows += found
        if len(found) < asked:
            break
    return rows


def _colour(column: str, value: Any) -> str | None:
    """Return the colour of a cell that an operator should notice."""
    if column == "dead" and value:
        return "red"
    return "yellow" if value == "paused" else None


@dataclass(frozen=True, slots=True)
class Search:
    """Which messages of a queue to find, and how to print them."""

    queue: str
    limit: int
    group: str | None
    headers: dict[str, str]
    contains: str | None
    as_json: bool
    socket: str | None


def search_options(default_limit: int) -> Decorator[Any]:
    """Return a decorator that adds the options of `Search` to a command, which receives them as ``search``."""
    return gather(
        "search",
        Search,
        queue=queue_argument,
        limit=click.option(
            "--limit",
            type=click.IntRange(1, MAX_BATCH),
            default=default_limit,
            metavar="N",
            help=f"Print at most N messages; default {default_limit}.",
        ),
        group=click.option("--group", metavar="NAME", help="Only messages of this group."),
        headers=header_option("Only messages with this header; may be repeated."),
        contains=click.option("--contains", metavar="TEXT", help="Only messages with this text in the body."),
        as_json=json_option,
        socket=socket_option,
    )


@click.command()
@click.option("--state", type=click.Choice(STATES), default="ready", help="State of the messages; default ready.")
@search_options(default_limit=10)
def peek(state: str, search: Search) -> None:
    """Print the next messages of QUEUE without leasing them. Exit status 1 if none was found.

    Only the first 50,000 messages of the state are searched.

    \b
    eoq peek mail
    eoq peek mail --state dead --json | jq -r .error
    eoq peek payments --group alice --contains refund
    """
    print_found(search, state)


def print_found(search: Search, state: str) -> None:
    """Print the messages of one state that ``search`` selects. Exit with status 1 if there are none."""
    with connect(search.socket) as client:
        found = client.ask(
            "peek",
            queue=search.queue,
            state=state,
            limit=search.limit,
            group=search.group,
            headers=search.headers or None,
            contains=search.contains,
        )
    messages = found["messages"]
    if search.as_json:
        for message in messages:
            print_json(message)
    elif messages:
        _print_rows(messages)
    if found["more"] and len(messages) < search.limit:
        click.echo(
            f"eoq: not all messages of {search.queue} were searched, and there may be more matches: a search ends "
            "after 50,000 messages, 64 MiB of bodies, or 2 MiB of output",
            err=True,
        )
    if not messages:
        sys.exit(NOTHING_THERE)


@click.command()
@queue_argument
@click.option(
    "-n",
    "--last",
    type=click.IntRange(0, MAX_BATCH),
    default=10,
    metavar="N",
    help="First print the N newest stored messages; default 10.",
)
@json_option
@socket_option
def tail(queue: str, last: int, as_json: bool, socket: str | None) -> None:
    """Follow QUEUE: print each message when it is stored.

    It ends at Ctrl-C. No message is leased.

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
    """Show all that is stored about one message. Exit status 1 if the message is not known.

    \b
    eoq show payments order-17
    """
    print_message(queue, id_, as_json, socket)


def print_message(queue: str, id: str, as_json: bool, socket: str | None) -> None:
    """Print all that is stored about one message: its fields, then one line for each delivery."""
    with connect(socket) as client:
        message = client.show(queue, id)
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
        parts = [f"delivery {delivery['delivery']}"]
        if "delivered_at" in delivery:
            parts.append(
                f"{moment(delivery['delivered_at'])} to {visible(delivery.get('consumer', 'unknown consumer'))}"
            )
        if "failed_at" in delivery:
            parts.append(f"failed {moment(delivery['failed_at'])}: {visible(delivery.get('error', 'no reason given'))}")
        click.echo("  ".join(parts))


def _print_rows(messages: list[dict[str, Any]]) -> None:
    """Print one row for each message: with its error if it is dead, else with its body."""
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


@click.command()
@click.argument("id_", metavar="ID")
@queues_argument
@json_option
@socket_option
def find(id_: str, queues: tuple[str, ...], as_json: bool, socket: str | None) -> None:
    """Find the queues that know a message by its id. Exit status 1 if none does.

    All queues are searched whose messages you may read, or each QUEUE. The columns are: queue; state of the message, or
    how it has ended; when it was stored, or ended. The id of a message that has ended is known for the `retention` of
    its queue.

    \b
    eoq find order-17
    eoq find order-17 --json | jq -r .queue
    """
    with connect(socket) as client:
        found = client.find(id_, queues or None)
    if not found:
        raise NotFound(
            f"{_places(queues)} the message {id_!r}; look whether the id is complete, and whether its message ended "
            "longer ago than the `retention` of its queue (`eoq config show QUEUE`)"
        )
    if as_json:
        for one in found:
            print_json({name: value for name, value in asdict(one).items() if value is not None})
        return
    # A message has one of the two moments.
    rows = [[one.queue, one.state, moment(one.settled_at or one.enqueued_at or 0.0)] for one in found]
    print_table(("queue", "state", "stored or ended"), rows)


def _places(queues: tuple[str, ...]) -> str:
    return f"none of the queues {', '.join(queues)} knows" if queues else "no queue that you may read knows"
