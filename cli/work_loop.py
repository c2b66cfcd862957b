"""What ``eoq work`` and ``eoq apply`` share: their options, the loop that waits for a lost daemon, and the log."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Final, NoReturn

import click

from eoq.client.blocking import Client
from eoq.errors import Unavailable
from eoq.protocol.limits import DEFAULT_LEASE, MAX_LEASE
from eoq.worker.in_flight import Summary

from .common import connect, print_json, visible
from .options import gather, json_option, socket_option

RECONNECT_SECONDS: Final = 0.5
"""Pause between two attempts to reach a daemon, once the client itself has given up."""
TERMINATED: Final = 128 + signal.SIGTERM
"""Exit status after a second SIGTERM, as shells report it."""


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """The options of a command that handles messages until it is stopped. ``lease`` is in seconds."""

    until_empty: bool
    lease: float
    as_json: bool
    socket: str | None


loop_options = gather(
    "options",
    LoopOptions,
    until_empty=click.option("--until-empty", is_flag=True, help="Exit when no message is ready, for cron and tests."),
    lease=click.option(
        "--lease",
        type=click.FloatRange(min=0, min_open=True, max=MAX_LEASE),
        default=DEFAULT_LEASE,
        metavar="SECONDS",
        help="How long after its worker freezes a message is delivered again; default 30. "
        "The lease is extended while the message is handled.",
    ),
    as_json=json_option,
    socket=socket_option,
)
"""Add the options of `LoopOptions` to a command, which receives them as its argument ``options``."""


def run_loop(options: LoopOptions, loop: Callable[[Client], Summary]) -> None:
    """Run ``loop`` until it ends or is stopped, and print the counts of its messages.

    Raises `Unavailable` at once if no daemon runs at the start. If the daemon goes away later, wait for it without
    end; with ``until_empty`` only as long as a client waits by itself, so that a cron job does not hang.
    """
    signal.signal(signal.SIGTERM, _exit_terminated)
    with _log_to_standard_error(), connect(options.socket) as client:
        client.ask("status")
        total = Summary()
        while True:
            try:
                total = loop(client)
                break
            except Unavailable as error:
                if options.until_empty:
                    raise
                _print_error(f"{error}; waiting for it")
                time.sleep(RECONNECT_SECONDS)  # the daemon may take long to come back; do not keep a processor busy
    if options.as_json:
        print_json(asdict(total))
    elif sys.stderr.isatty():
        click.echo("eoq: " + ", ".join(f"{count:,} {outcome}" for outcome, count in asdict(total).items()), err=True)


def _exit_terminated(_number: int, _frame: object) -> NoReturn:
    """Exit on a SIGTERM that no worker loop handles: during the start, or the second one."""
    sys.exit(TERMINATED)


class _OnStandardError(logging.Handler):
    """A log handler that prints the first line of each record. The whole error is stored with its message."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_error(visible(record.getMessage().partition("\n")[0]))


def _print_error(text: str) -> None:
    with suppress(OSError, ValueError):  # a closed or full standard error must not stop the messages
        click.echo(f"eoq: {text}", err=True)


@contextmanager
def _log_to_standard_error() -> Iterator[None]:
    log = logging.getLogger("eoq.worker")
    handler = _OnStandardError()
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
