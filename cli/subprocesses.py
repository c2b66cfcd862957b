"""One command of ``eoq work``, run for one message: its input, its output, its time, its end. No click here.

Each command has a process group of its own, so that Ctrl-C at the terminal does not hit it, and a time-out or a
second signal ends all it has started.
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
"""Bytes of one read or write: what a pipe holds."""
TAIL: Final = 1000
"""Bytes of the end of standard error that are kept for the error's text."""
GRACE_SECONDS: Final = 5.0
"""What a command whose time is over has between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. ``status`` is negative where a signal ended it, as for `subprocess`."""

    status: int
    output: bytes
    """Its standard output, up to the limit."""
    too_long: bool
    """It wrote more than that, and found its standard output closed."""
    timed_out: bool
    errors: str
    """The end of its standard error."""


class Commands:
    """Runs one command line, many times and from many threads.

    ``limit`` is in bytes of output, ``timeout`` in seconds.
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
        """Runs it to its end; ``body`` is its standard input, and its standard error goes to ours.

        What it wrote until it exited is its output: a process that it leaves behind in the background holds
        nobody up. Raises `OSError` where it cannot be started.
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
        """Kills what runs; nothing is started from now on."""
        with self._lock:
            self._killed = True
            for running in self._running:
                running.signal(signal.SIGKILL)


class _Running:
    """One process, between its start and its end."""

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
        """Its process id, which is that of its group as well."""
        return self._process.pid

    def _wait(self, write_end: int) -> None:
        """Waits for the exit, in a thread of its own, and wakes the one that serves the pipes."""
        self._process.wait()
        os.close(write_end)

    def signal(self, number: signal.Signals) -> None:
        """Signals all of its group that still runs."""
        with suppress(ProcessLookupError, PermissionError):  # they have ended; zombies, on macOS
            os.killpg(self.pid, number)

    def run(self, body: bytes, timeout: float | None) -> Ended:
        """Serves the pipes until it has exited."""
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
        """Until the exit. Whether the time was over before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        endings = [signal.SIGKILL, signal.SIGTERM]
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            for key, _ in self._selector.select(left):
                if key.data is None:
                    if len(endings) < 2:
                        self.signal(signal.SIGKILL)  # what it had started and has not ended by itself
                    return len(endings) < 2
                key.data(key.fileobj)
            if deadline is not None and time.monotonic() >= deadline:
                self.signal(endings.pop())
                deadline = time.monotonic() + GRACE_SECONDS if endings else None

    def _write(self, stdin: IO[bytes]) -> None:
        try:
            written = os.write(stdin.fileno(), self._body[:CHUNK]) if self._body else 0
        except BrokenPipeError:  # it does not want the rest, which is its right
            written = len(self._body)
        self._body = self._body[written:]
        if not self._body:
            self._close(stdin)

    def _read_output(self, stdout: IO[bytes]) -> bool:
        data = self._read(stdout)
        self._output += data[: self._limit - len(self._output) + 1]
        if len(self._output) > self._limit:
            # Closed: it gets SIGPIPE, like in `command | head`, instead of writing for ever.
            self._too_long = True
            del self._output[self._limit :]
            self._close(stdout)
        return bool(data)

    def _read_errors(self, stderr: IO[bytes]) -> bool:
        data = self._read(stderr)
        self._errors = (self._errors + data)[-TAIL:]
        if data:
            with suppress(OSError, ValueError):  # nobody reads ours; the message is what matters
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
    """Why a command failed, in words, with the end of what it said."""
    if ended.timed_out:
        text = "it took longer than its time and was ended"
    elif ended.status < 0:
        text = f"ended by signal {-ended.status} ({signal.strsignal(-ended.status)})"
    else:
        text = f"exit status {ended.status}"
    return f"{text}: {ended.errors}" if ended.errors else text
