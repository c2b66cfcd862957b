"""The run of ``eoq once``: the command of a key, whose output is printed while it runs, and then stored."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from subprocess import PIPE
from types import FrameType
from typing import IO, cast

from eoq.client.once import once_status
from eoq.protocol.calls import OnceOutcome as Ran
from eoq.protocol.codec import Fields
from eoq.protocol.limits import MAX_OUTPUT

from .common import connect, print_output, report
from .guard import Guard

CANNOT_RUN = 126
NOT_FOUND = 127
CHUNK = 64 * 1024
"""Bytes of one read of the command's output."""


def run_once(
    socket: str, request: Fields, command: Sequence[str], *, ttl: float | None, wait: float | None, keep_failure: bool
) -> int:
    """Run a command for the key that ``request`` has asked for, or print what another caller stores for it.

    Return the exit status of the command.
    """
    key, ran_here = request["key"], False
    guard = Guard()  # before the connection: the forked guard would keep a copy of it open
    with connect(socket) as client:

        def run() -> tuple[Ran, bool]:
            nonlocal ran_here
            ran_here = True
            ran = _run(guard, command, {**os.environ, "EOQ_ID": key, "EOQ_SOCKET": str(client.path.absolute())})
            return ran, ran.status == 0 or (keep_failure and ran.status not in (CANNOT_RUN, NOT_FOUND))

        ran = once_status(
            client.channel,
            key,
            run,
            ttl=ttl,
            fingerprint=request.get("fingerprint"),
            wait=wait,
            token=request["token"],
        )
    if ran.output is None or not ran_here:
        print_output(key, ran.output, ran.output_bytes)
    return ran.status


def _run(guard: Guard, command: Sequence[str], environment: dict[str, str]) -> Ran:
    """Run the command to its end. Print its output while it runs, and return it with the exit status."""
    # At a terminal the command stays in our process group: only that group may read from the terminal.
    own_group = sys.stdin is None or not sys.stdin.isatty()
    try:
        process = subprocess.Popen(command, stdout=PIPE, env=environment, process_group=0 if own_group else None)
    except FileNotFoundError:
        report(f"{command[0]}: no such command; the key stays open")
        return Ran(NOT_FOUND, b"", 0)
    except OSError as error:
        hint = "; a script needs a first line such as #!/bin/sh" if error.errno == errno.ENOEXEC else ""
        report(f"{command[0]} cannot be run: {error.strerror}{hint}; the key stays open")
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
            report(f"the output cannot be written ({self._error}), but is stored for this key")
