"""``eoq once``: run a command once for a key, and repeat its output for every later call."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from subprocess import PIPE
from types import FrameType
from typing import IO, cast

import click

from eoq.client.once import once_status
from eoq.protocol.calls import OnceOutcome as Ran
from eoq.protocol.limits import MAX_OUTPUT

from .common import connect
from .guard import Guard
from .options import socket_option

CANNOT_RUN = 126
NOT_FOUND = 127
CHUNK = 64 * 1024
"""Bytes of one read of the command's output."""


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
) -> None:
    """Run COMMAND once for KEY, and repeat its output afterwards.

    If KEY is done already, COMMAND does not run: its stored output and exit status are repeated.

    If two calls run at once, the second waits for the first. KEY stays open, so that the next call runs COMMAND
    again, if COMMAND fails (exit status not 0) without --keep-failure, or if `eoq once` is killed. COMMAND finds KEY
    in EOQ_ID. It should pass it on as an idempotency key, because a run that is killed in the middle is repeated.

    A `kill -9` of `eoq once` also kills COMMAND, except if it was started from a terminal.

    Standard output is stored, up to 8 MiB of any bytes; standard error is passed through. The exit status is that of
    COMMAND (128 plus the signal's number if a signal killed it).
    """
    if fingerprint == "@command":
        fingerprint = _fingerprint(command)
    ran_here = False
    guard = Guard()  # before the connection: the forked guard would keep a copy of it open
    with connect(socket) as client:

        def run() -> tuple[Ran, bool]:
            nonlocal ran_here
            ran_here = True
            ran = _run(guard, command, {**os.environ, "EOQ_ID": key, "EOQ_SOCKET": str(client.path.absolute())})
            return ran, ran.status == 0 or (keep_failure and ran.status not in (CANNOT_RUN, NOT_FOUND))

        ran = once_status(client.channel, key, run, ttl=ttl, fingerprint=fingerprint, wait=wait)
    if ran.output is None:
        click.echo(
            f"eoq: the output of {key!r} has {ran.output_bytes:,} bytes, and at most {MAX_OUTPUT:,} are stored: "
            "only the first run prints it",
            err=True,
        )
    elif not ran_here:
        sys.stdout.buffer.write(ran.output)
        sys.stdout.buffer.flush()
    sys.exit(ran.status)


def _fingerprint(command: tuple[str, ...]) -> str:
    """Return a fingerprint of a command line."""
    import hashlib

    return "command:" + hashlib.sha256("\0".join(command).encode(errors="surrogateescape")).hexdigest()


def _run(guard: Guard, command: tuple[str, ...], environment: dict[str, str]) -> Ran:
    """Run the command to its end. Print its output while it runs, and return it with the exit status."""
    # At a terminal the command stays in our process group: only that group may read from the terminal.
    own_group = sys.stdin is None or not sys.stdin.isatty()
    try:
        process = subprocess.Popen(command, stdout=PIPE, env=environment, process_group=0 if own_group else None)
    except FileNotFoundError:
        click.echo(f"eoq: {command[0]}: no such command; the key stays open", err=True)
        return Ran(NOT_FOUND, b"", 0)
    except OSError as error:
        hint = "; a script needs a first line such as #!/bin/sh" if error.errno == errno.ENOEXEC else ""
        click.echo(f"eoq: {command[0]} cannot be run: {error.strerror}{hint}; the key stays open", err=True)
        return Ran(CANNOT_RUN, b"", 0)

    if own_group:
        guard.add(process.pid)
    output = cast(IO[bytes], process.stdout)
    printer = _Printer()
    with _forwarded_signals(process, own_group):
        try:
            size = 0
            kept: list[bytes] = []
            while chunk := os.read(output.fileno(), CHUNK):
                size += len(chunk)
                if size <= MAX_OUTPUT:
                    kept.append(chunk)
                else:
                    kept.clear()
                printer.write(chunk)
            status = process.wait()
        except BaseException:
            # The key is open again when this process ends. The next run must not meet this one.
            with suppress(ProcessLookupError):
                (os.killpg if own_group else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            if own_group:
                guard.remove(process.pid)
    printer.report()
    status = 128 - status if status < 0 else status
    return Ran(status, b"".join(kept) if size <= MAX_OUTPUT else None, size)


@contextmanager
def _forwarded_signals(process: subprocess.Popen[bytes], own_group: bool) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on to the command instead of ending this process."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            if own_group:
                os.killpg(process.pid, number)
            elif number != signal.SIGINT:  # the terminal has sent Ctrl-C to it as well
                process.send_signal(number)

    before = [(number, signal.signal(number, forward)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _Printer:
    """The printing of the command's output. If it fails, the command runs on, because its output is stored."""

    def __init__(self) -> None:
        self._error: OSError | None = None

    def write(self, chunk: bytes) -> None:
        """Print ``chunk``, unless an earlier one could not be printed."""
        try:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        except OSError as error:
            self._error = None if isinstance(error, BrokenPipeError) else error  # a reader may leave early
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def report(self) -> None:
        """Tell the user if output could not be printed."""
        if self._error is not None:
            click.echo(f"eoq: the output cannot be written ({self._error}), but is stored for this key", err=True)
