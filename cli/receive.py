"""``eoq receive``, and the commands for a message that it leased: ``ack nack reject extend``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from eoq.client.blocking import Client
from eoq.errors import EoqError, Unavailable
from eoq.message import Message
from eoq.protocol.limits import DEFAULT_LEASE, MAX_BATCH, MAX_LEASE, POLL_SECONDS

from .common import NOTHING_THERE, bytes_fields, connect, print_bytes, print_json, read_body
from .options import json_option, queue_argument, socket_option


@click.command()
@queue_argument
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_BATCH),
    default=1,
    metavar="N",
    help="Lease at most N messages; default 1.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait this long for the first message; default 0.",
)
@click.option(
    "--lease",
    type=click.FloatRange(min=0, min_open=True, max=MAX_LEASE),
    default=DEFAULT_LEASE,
    metavar="SECONDS",
    help="Time to settle a message before it is delivered again; default 30.",
)
@click.option("--ack", "acks", is_flag=True, help="Ack each message after it is printed.")
@json_option
@socket_option
def receive(queue: str, limit: int, wait: float, lease: float, acks: bool, as_json: bool, socket: str | None) -> None:
    """Lease the next messages of QUEUE and print their bodies. Exit status 1 if there are none.

    With --json, one object a line: id, receipt, body (or body_base64), headers, attempt and the rest. Pass the
    receipt to `eoq ack`, `nack`, `reject` or `extend`. A message that is not settled in time is delivered again.

    \b
    eoq receive mail --wait 10 --json
    eoq receive mail --json | jq -r .receipt | xargs -r eoq ack
    eoq receive mail --limit 100 --ack
    """
    with connect(socket) as client:
        while True:
            messages = client.receive(queue, limit, min(wait, POLL_SECONDS), lease=lease)
            wait -= POLL_SECONDS
            if messages or wait <= 0:
                break
        for message in messages:
            if as_json:
                print_json(_fields(message))
            else:
                print_bytes(message.body)
        if acks:
            sys.stdout.flush()
            client.ack_many([(message, None) for message in messages])
    if not messages:
        sys.exit(NOTHING_THERE)


def _fields(message: Message) -> dict[str, Any]:
    """Return the JSON fields of a message."""
    return {
        "id": message.id,
        "receipt": message.receipt,
        **bytes_fields("body", message.body),
        "headers": dict(message.headers),
        "attempt": message.attempt,
        "priority": message.priority,
        "group": message.group,
        "enqueued_at": message.enqueued_at,
        "seq": message.seq,
        "queue": message.queue,
    }


def receipts_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``RECEIPT…``, which the command receives as ``receipts``."""
    return click.argument("receipts", metavar="RECEIPT…", nargs=-1, required=True)(command)


def _for_each(receipts: Sequence[str], socket: str | None, settle: Callable[[Client, str], None]) -> None:
    """Settle the message of each receipt. End with the highest exit status if some could not be settled.

    Each error names its receipt. Where the daemon cannot be reached, the remaining ones are not tried.
    """
    status = 0
    with connect(socket) as client:
        for index, receipt in enumerate(receipts):
            try:
                settle(client, receipt)
            except EoqError as error:
                if len(receipts) == 1:
                    raise
                click.echo(f"eoq: receipt {receipt}: {error}", err=True)
                status = max(status, error.exit_status)
                if isinstance(error, Unavailable):
                    if rest := receipts[index + 1 :]:
                        click.echo(f"eoq: not tried: {' '.join(rest)}", err=True)
                    break
    if status:
        sys.exit(status)


@click.command()
@receipts_argument
@click.option("--result", metavar="TEXT|-", help="Store this result of the message; - reads standard input.")
@socket_option
def ack(receipts: tuple[str, ...], result: str | None, socket: str | None) -> None:
    """Ack the message of each RECEIPT: settle it as done.

    \b
    eoq ack "$receipt"
    eoq ack "$first" "$second"     # each on its own; the exit status is that of the worst
    wc -l < report.csv | eoq ack "$receipt" --result -
    """
    body = None if result is None else read_body(result, "result")
    _for_each(receipts, socket, lambda client, receipt: client.ack(receipt, body))


@click.command()
@receipts_argument
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Deliver it again this much later.")
@click.option("--error", metavar="TEXT", help="The reason, stored with the message.")
@socket_option
def nack(receipts: tuple[str, ...], delay: float | None, error: str | None, socket: str | None) -> None:
    """Nack the message of each RECEIPT, to be delivered again.

    Without --delay the first retry comes at once, and later ones after growing waits.

    \b
    eoq nack "$receipt" --delay 60 --error 'the bank is closed'
    """
    _for_each(receipts, socket, lambda client, receipt: client.nack(receipt, delay, error))


@click.command()
@receipts_argument
@click.option("--error", metavar="TEXT", help="The reason, stored with the message.")
@socket_option
def reject(receipts: tuple[str, ...], error: str | None, socket: str | None) -> None:
    """Reject the message of each RECEIPT: make it a dead letter.

    A dead letter is kept with its error, and not delivered.

    \b
    eoq reject "$receipt" --error 'no such account'
    """
    _for_each(receipts, socket, lambda client, receipt: client.reject(receipt, error))


@click.command()
@click.argument("receipt")
@click.argument("seconds", type=click.FloatRange(min=0, min_open=True, max=MAX_LEASE))
@socket_option
def extend(receipt: str, seconds: float, socket: str | None) -> None:
    """Extend the lease of RECEIPT: it ends SECONDS from now.

    \b
    eoq extend "$receipt" 300
    """
    with connect(socket) as client:
        client.extend(receipt, seconds)
