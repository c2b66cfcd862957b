"""`eoq once`: a command that runs once for a key, and whose output is repeated ever after."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from subprocess import PIPE
from types import FrameType
from typing import IO, cast

import click

from eoq.client.once import once_status
from eoq.protocol.calls import OnceOutcome as Ran
from eoq.protocol.limits import MAX_OUTPUT

from .common import connect, socket_option
from .guard import Guard

CANNOT_RUN = 126
NOT_FOUND = 127


@click.command(
    epilog="""\b
Examples:
  eoq once "report-$(date +%F)" -- ./make-report      # cron, on any number of tries
  eoq once charge:order-17 -- ./charge 17 5.00        # prints the first run's output ever after
  eoq once import-42 --ttl 86400 --fingerprint @command -- ./import 42""",
)
@click.argument("key")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=float, metavar="SECONDS", help="How long the outcome is kept (for ever).")
@click.option("--wait", type=float, metavar="SECONDS", help="How long to wait for another run of KEY (without end).")
@click.option("--keep-failure", is_flag=True, help="Keep also the outcome of a command that fails.")
@click.option(
    "--fingerprint",
    metavar="TEXT",
    help="What KEY stands for; with another text KEY is refused. @command takes the command line.",
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
    """Run COMMAND unless KEY is done already; then repeat its stored output and exit status.

    Of two at once the second waits for the first. A command that fails (exit status not 0) leaves KEY open, unless
    --keep-failure; so does one that is killed, or whose `eoq once` is. COMMAND finds KEY in EOQ_ID: what it does
    elsewhere should carry it on as idempotency key, since a run that is killed in the middle runs again.

    A command started from a terminal is the only one that outlives a `kill -9` of its `eoq once`.

    Standard output is stored, up to 8 MiB of any bytes; standard error passes through. The exit status is the
    command's (128 and the signal's number if it was killed).
    """
    if fingerprint == "@command":
        fingerprint = _fingerprint(command)
    ran_here = False
    guard = Guard()  # before there is a connection that it would keep open
    with connect(socket) as client:

        def run() -> tuple[Ran, bool]:
            nonlocal ran_here
            ran_here = True
            ran = _run(guard, command, {**os.environ, "EOQ_ID": key, "EOQ_SOCKET": str(client.path.absolute())})
            return ran, ran.status == 0 or (keep_failure and ran.status not in (CANNOT_RUN, NOT_FOUND))

        ran = once_status(client.channel, key, run, ttl=ttl, fingerprint=fingerprint, wait=wait)
    if ran.output is None:
        click.echo(
            f"eoq: the output of {key!r} has {ran.output_bytes:,} bytes, more than the {MAX_OUTPUT:,} that are kept: "
            "it is printed by the first run alone",
            err=True,
        )
    elif not ran_here:
        sys.stdout.buffer.write(ran.output)
        sys.stdout.buffer.flush()
    sys.exit(ran.status)


def _fingerprint(command: tuple[str, ...]) -> str:
    import hashlib

    return "command:" + hashlib.sha256("\0".join(command).encode(errors="surrogateescape")).hexdigest()


def _run(guard: Guard, command: tuple[str, ...], environment: dict[str, str]) -> Ran:
    """Runs the command; its output goes on to ours as it comes, and is gathered."""
    # At a terminal it stays in our process group, since no other may read from it.
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
    printed = _Printed()

    def forward(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            if own_group:
                os.killpg(process.pid, number)
            elif number != signal.SIGINT:  # Ctrl-C has reached it by itself
                process.send_signal(number)

    before = [(number, signal.signal(number, forward)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        size = 0
        kept: list[bytes] = []
        while chunk := os.read(output.fileno(), 64 * 1024):
            size += len(chunk)
            if size <= MAX_OUTPUT:
                kept.append(chunk)
            else:
                kept.clear()
            printed.write(chunk)
        status = process.wait()
    except BaseException:
        # Whatever ends us before it: the key is open then, and must find no old copy at work.
        with suppress(ProcessLookupError):
            (os.killpg if own_group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        if own_group:
            guard.remove(process.pid)
        for number, handler in before:
            signal.signal(number, handler)
    printed.tell()
    status = 128 - status if status < 0 else status
    return Ran(status, b"".join(kept) if size <= MAX_OUTPUT else None, size)


class _Printed:
    """What the command writes, on our own standard output. Where that fails, it goes on, and its output is stored."""

    def __init__(self) -> None:
        self._error: OSError | None = None

    def write(self, chunk: bytes) -> None:
        """Prints it, as long as that could be done."""
        try:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        except OSError as error:
            self._error = None if isinstance(error, BrokenPipeError) else error  # whoever read it has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def tell(self) -> None:
        """Says at the end that it failed."""
        if self._error is not None:
            click.echo(f"eoq: the output cannot be written ({self._error}), but is stored for this key", err=True)
