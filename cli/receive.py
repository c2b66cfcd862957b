"""``eoq receive``, and the commands for a message that it leased: ``ack nack reject extend``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from eoq.protocol import calls
from eoq.protocol.limits import DEFAULT_LEASE, MAX_BATCH, MAX_LEASE
from eoq.protocol.validation import check_finite
from eoq.transport.single import Single

from . import plain
from .common import read_body
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
def receive(queue: str, limit: int, wait: float, lease: float, acks: bool, as_json: bool, socket: str | None) -> int:
    """Lease the next messages of QUEUE and print their bodies. Exit status 1 if there are none.

    With --json, one object a line: id, receipt, body (or body_base64), headers, attempt and the rest. Pass the
    receipt to `eoq ack`, `nack`, `reject` or `extend`. A message that is not settled in time is delivered again.

    \b
    eoq receive mail --wait 10 --json
    eoq receive mail --json | jq -r .receipt | xargs -r eoq ack
    eoq receive mail --limit 100 --ack
    """
    check_finite("wait", wait)
    check_finite("lease", lease)
    with Single(socket) as single:
        return plain.receive(single, queue, limit, wait, lease, acks, as_json)


def receipts_argument(command: Callable[..., int]) -> Callable[..., int]:
    """Add ``RECEIPT…``, which the command receives as ``receipts``."""
    return click.argument("receipts", metavar="RECEIPT…", nargs=-1, required=True)(command)


def _settle_each(receipts: Sequence[str], socket: str | None, call: Callable[[str], calls.Call[None]]) -> int:
    with Single(socket) as single:
        return plain.settle_each(single, receipts, lambda receipt: call(receipt).fields)


@click.command()
@receipts_argument
@click.option("--result", metavar="TEXT|-", help="Store this result of the message; - reads standard input.")
@socket_option
def ack(receipts: tuple[str, ...], result: str | None, socket: str | None) -> int:
    """Ack the message of each RECEIPT: settle it as done.

    \b
    eoq ack "$receipt"
    eoq ack "$first" "$second"     # each on its own; the exit status is that of the worst
    wc -l < report.csv | eoq ack "$receipt" --result -
    """
    body = None if result is None else read_body(result, "result")
    return _settle_each(receipts, socket, lambda receipt: calls.ack(receipt, body, []))


@click.command()
@receipts_argument
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Deliver it again this much later.")
@click.option("--error", metavar="TEXT", help="The reason, stored with the message.")
@socket_option
def nack(receipts: tuple[str, ...], delay: float | None, error: str | None, socket: str | None) -> int:
    """Nack the message of each RECEIPT, to be delivered again.

    Without --delay the first retry comes at once, and later ones after growing waits.

    \b
    eoq nack "$receipt" --delay 60 --error 'the bank is closed'
    """
    return _settle_each(receipts, socket, lambda receipt: calls.nack(receipt, delay, error))


@click.command()
@receipts_argument
@click.option("--error", metavar="TEXT", help="The reason, stored with the message.")
@socket_option
def reject(receipts: tuple[str, ...], error: str | None, socket: str | None) -> int:
    """Reject the message of each RECEIPT: make it a dead letter.

    A dead letter is kept with its error, and not delivered.

    \b
    eoq reject "$receipt" --error 'no such account'
    """
    return _settle_each(receipts, socket, lambda receipt: calls.reject(receipt, error))


@click.command()
@click.argument("receipt")
@click.argument("seconds", type=click.FloatRange(min=0, min_open=True, max=MAX_LEASE))
@socket_option
def extend(receipt: str, seconds: float, socket: str | None) -> int:
    """Extend the lease of RECEIPT: it ends SECONDS from now. It says whether the message was cancelled meanwhile.

    \b
    eoq extend "$receipt" 300
    """
    check_finite("seconds", seconds)
    with Single(socket) as single:
        return plain.extend(single, receipt, seconds)
