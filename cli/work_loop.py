"""What ``eoq work`` and ``eoq apply`` share: their loop, which waits for a daemon that is killed, and what they say."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final, NoReturn, TypeVar

import click

from eoq.client.blocking import Client
from eoq.errors import Unavailable
from eoq.protocol.limits import DEFAULT_LEASE, MAX_LEASE
from eoq.worker.in_flight import Summary

from .common import connect, print_json, visible

F = TypeVar("F", bound=Callable[..., Any])

AGAIN_SECONDS: Final = 0.5
"""Between two tries to reach a daemon that did not come back within a client's patience."""
TERMINATED: Final = 128 + signal.SIGTERM
"""Exit status after a second SIGTERM, as shells give it."""


def until_empty_option(command: F) -> F:
    """``--until-empty``."""
    return click.option("--until-empty", is_flag=True, help="End when nothing is ready: for cron, and for tests.")(
        command
    )


def lease_option(command: F) -> F:
    """``--lease SECONDS``."""
    return click.option(
        "--lease",
        type=click.FloatRange(min=0, min_open=True, max=MAX_LEASE),
        default=DEFAULT_LEASE,
        metavar="SECONDS",
        help="A message comes again so long after its worker froze; 30 if absent. Extended while it is handled.",
    )(command)


def work_on(socket: str | None, until_empty: bool, as_json: bool, loop: Callable[[Client], Summary]) -> None:
    """Runs ``loop`` until it ends by itself or is stopped, and says what it did.

    A daemon that was never there is an error at once. One that went away is waited for; with ``until_empty`` only
    as long as a client does, so that no job of cron hangs.
    """
    signal.signal(signal.SIGTERM, _terminated)
    with _logging(), connect(socket) as client:
        client.ask("status")
        total = Summary()
        while True:
            try:
                total = loop(client)
                break
            except Unavailable as error:
                if until_empty:
                    raise
                _say(f"{error}; it is waited for")
                time.sleep(AGAIN_SECONDS)
    if as_json:
        print_json(asdict(total))
    elif sys.stderr.isatty():
        click.echo("eoq: " + ", ".join(f"{count:,} {outcome}" for outcome, count in asdict(total).items()), err=True)


def _terminated(_number: int, _frame: object) -> NoReturn:
    """What SIGTERM does where no loop has taken it: at the start, and as the second one."""
    sys.exit(TERMINATED)


class _OnStandardError(logging.Handler):
    """The worker's log, a line for each record: all of an error's text is kept with its message."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(visible(record.getMessage().partition("\n")[0]))


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it, or it cannot be written; the messages are what matters
        click.echo(f"eoq: {text}", err=True)


@contextmanager
def _logging() -> Any:
    log = logging.getLogger("eoq.worker")
    handler = _OnStandardError()
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
