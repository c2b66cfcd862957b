"""Run the command of ``eoq work`` for one message: feed its input, collect its output, and enforce its time-out.

Each command has a process group of its own. So Ctrl-C at the terminal does not reach it, and a time-out or a second
signal ends every process that it has started. This file does not use click.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, Final

from .guard import Guard

CHUNK: Final = 64 * 1024
"""Bytes of one read or write: the capacity of a pipe."""
TAIL: Final = 1000
"""How many of the last bytes of standard error to keep for the error text."""
GRACE_SECONDS: Final = 5.0
"""Time between SIGTERM and SIGKILL for a command that takes too long."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    """The exit status; negative if a signal ended the command, as in `subprocess`."""
    output: bytes
    """Standard output, up to the limit."""
    too_long: bool
    """Whether standard output exceeded the limit. It was closed then."""
    timed_out: bool
    """Whether the command was ended because it took too long."""
    errors: str
    """The end of standard error."""


class Commands:
    """One command line, to be run many times and from many threads.

    ``limit`` is the largest output in bytes, ``timeout`` the longest run in seconds.
    """

    def __init__(self, command: Sequence[str], limit: int, timeout: float | None) -> None:
        self._command = list(command)
        self._limit = limit
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: set[_Running] = set()
        self._killed = False
        self._guard = Guard()

    def run(self, body: bytes, variables: Mapping[str, str]) -> Ended:
        """Run the command to its end with ``body`` as standard input, and copy its standard error to ours.

        ``variables`` is its whole environment. The output is what was written before the command exited: a process
        that it leaves in the background does not delay the result. Raises `OSError` if it cannot be started.
        """
        with ExitStack() as stack:
            with self._lock:
                if self._killed:
                    raise InterruptedError("the commands were killed")
                running = _Running(self._command, variables, self._limit, stack)
                self._running.add(running)
                self._guard.add(running.pid)
            try:
                return running.run(body, self._timeout)
            finally:
                with self._lock:
                    self._running.discard(running)
                    self._guard.remove(running.pid)

    def kill(self) -> None:
        """Kill all running commands, and start no more."""
        with self._lock:
            self._killed = True
            for running in self._running:
                running.signal(signal.SIGKILL)


class _Running:
    """A command that runs: its process, its pipes, and what it has written so far."""

    def __init__(self, command: list[str], variables: Mapping[str, str], limit: int, stack: ExitStack) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=variables, process_group=0, bufsize=0
        )
        self._limit = limit
        self._output = bytearray()
        self._too_long = False
        self._errors = b""
        self._body = memoryview(b"")
        self._selector = stack.enter_context(selectors.DefaultSelector())
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None  # noqa: S101 # they are pipes
            os.set_blocking(stream.fileno(), False)
            stack.callback(stream.close)
        self._exited, write_end = os.pipe()
        stack.callback(os.close, self._exited)
        threading.Thread(target=self._wait, args=(write_end,), daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the process group."""
        return self._process.pid

    def _wait(self, write_end: int) -> None:
        """Wait for the exit in a separate thread, then wake the thread that serves the pipes."""
        self._process.wait()
        os.close(write_end)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group that still runs."""
        with suppress(ProcessLookupError, PermissionError):  # all have ended (PermissionError: zombies on macOS)
            os.killpg(self.pid, number)

    def run(self, body: bytes, timeout: float | None) -> Ended:
        """Serve the pipes until the command has exited."""
        self._body = memoryview(body)
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None and stdout is not None and stderr is not None  # noqa: S101 # they are pipes
        self._selector.register(stdin, selectors.EVENT_WRITE, self._write)
        self._selector.register(stdout, selectors.EVENT_READ, self._read_output)
        self._selector.register(stderr, selectors.EVENT_READ, self._read_errors)
        self._selector.register(self._exited, selectors.EVENT_READ, None)
        try:
            timed_out = self._serve(timeout)
            for stream, read in ((stdout, self._read_output), (stderr, self._read_errors)):
                while not stream.closed and read(stream):
                    pass
        except BaseException:
            self.signal(signal.SIGKILL)
            raise
        status = self._process.wait()
        errors = self._errors.decode(errors="replace").strip()
        return Ended(status, bytes(self._output), self._too_long, timed_out, errors)

    def _serve(self, timeout: float | None) -> bool:
        """Move data through the pipes until the exit. Return whether the command was ended for taking too long."""
        deadline = None if timeout is None else time.monotonic() + timeout
        signals = [signal.SIGTERM, signal.SIGKILL]
        while True:
            remaining = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            for key, _ in self._selector.select(remaining):
                if key.data is None:
                    timed_out = len(signals) < 2
                    if timed_out:
                        self.signal(signal.SIGKILL)  # processes that the command started may have ignored SIGTERM
                    return timed_out
                key.data(key.fileobj)
            if deadline is not None and time.monotonic() >= deadline:
                self.signal(signals.pop(0))
                deadline = time.monotonic() + GRACE_SECONDS if signals else None

    def _write(self, stdin: IO[bytes]) -> None:
        try:
            written = os.write(stdin.fileno(), self._body[:CHUNK]) if self._body else 0
        except BrokenPipeError:  # a command need not read its whole input
            written = len(self._body)
        self._body = self._body[written:]
        if not self._body:
            self._close(stdin)

    def _read_output(self, stdout: IO[bytes]) -> bool:
        data = self._read(stdout)
        self._output += data[: self._limit - len(self._output) + 1]
        if len(self._output) > self._limit:
            # Closing the pipe ends an endless writer by SIGPIPE, as in `command | head`.
            self._too_long = True
            del self._output[self._limit :]
            self._close(stdout)
        return bool(data)

    def _read_errors(self, stderr: IO[bytes]) -> bool:
        data = self._read(stderr)
        self._errors = (self._errors + data)[-TAIL:]
        if data:
            with suppress(OSError, ValueError):  # a closed standard error must not fail the message
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
        return bool(data)

    def _read(self, stream: IO[bytes]) -> bytes:
        try:
            data = os.read(stream.fileno(), CHUNK)
        except BlockingIOError:
            return b""
        if not data:
            self._close(stream)
        return data

    def _close(self, stream: IO[bytes]) -> None:
        with suppress(KeyError):
            self._selector.unregister(stream)
        stream.close()


def reason(ended: Ended) -> str:
    """Return why a command failed, with the end of its standard error."""
    if ended.timed_out:
        text = "the command took longer than its time-out and was ended"
    elif ended.status < 0:
        text = f"ended by signal {-ended.status} ({signal.strsignal(-ended.status)})"
    else:
        text = f"exit status {ended.status}"
    return f"{text}: {ended.errors}" if ended.errors else text
