"""``eoq once``: run a command once for a key, and repeat its output for every later call."""

from __future__ import annotations

import click

from eoq.ids import new_id
from eoq.protocol import calls
from eoq.protocol.validation import check_finite, check_ttl
from eoq.transport.single import Single

from . import plain
from .options import socket_option


@click.command(
    epilog="""\b
Examples:
  eoq once "report-$(date +%F)" -- ./make-report      # cron, on any number of tries
  eoq once charge:order-17 -- ./charge 17 5.00        # later calls print the first run's output
  eoq once import-42 --ttl 86400 --fingerprint @command -- ./import 42""",
)
@click.argument("key")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=float, metavar="SECONDS", help="How long to keep the outcome; default: for ever.")
@click.option(
    "--wait", type=float, metavar="SECONDS", help="How long to wait for another run of KEY; default: without end."
)
@click.option("--keep-failure", is_flag=True, help="Keep the outcome of a command that fails, too.")
@click.option(
    "--fingerprint",
    metavar="TEXT",
    help="What KEY stands for. KEY is refused with any other text. @command stands for the command line.",
)
@socket_option
def once(
    key: str,
    command: tuple[str, ...],
    ttl: float | None,
    wait: float | None,
    keep_failure: bool,
    fingerprint: str | None,
    socket: str | None,
) -> int:
    """Run COMMAND once for KEY, and repeat its output afterwards.

    If KEY is done already, COMMAND does not run: its stored output and exit status are repeated.

    If two calls run at once, the second waits for the first. KEY stays open, so that the next call runs COMMAND
    again, if COMMAND fails (exit status not 0) without --keep-failure, or if `eoq once` is killed. COMMAND finds KEY
    in EOQ_ID. It should pass it on as an idempotency key, because a run that is killed in the middle is repeated.

    A `kill -9` of `eoq once` also kills COMMAND, except if it was started from a terminal.

    Standard output is stored, up to 8 MiB of any bytes; standard error is passed through. The exit status is that of
    COMMAND (128 plus the signal's number if a signal killed it).
    """
    check_ttl(ttl)
    check_finite("wait", wait)
    text = None if fingerprint is None else plain.fingerprint(fingerprint, command)
    request = calls.once(key, new_id(), text, 0.0).fields
    return plain.once(Single(socket), request, command, ttl, wait, keep_failure)
