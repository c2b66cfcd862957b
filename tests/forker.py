"""Start Python programs of the tests quickly: one process imports eoq once, and forks for each program.

The default tests start more than a thousand daemons. To import asyncio and eoq takes most of the time of such a start,
and it is the same each time. The forker has imported them. What it starts is a process like any other: with a process
id, an environment, a folder and standard streams of its own, and it can be killed. When the tests end, also because
they are killed, the forker ends, and what it has started is killed.

    process = forker().start([sys.executable, "-m", "eoq.cli", "daemon"], environment, folder, (stdin, stdout, stderr))
    process.send_signal(signal.SIGKILL)
    process.wait(20)

This file is also the program of the forker.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket as sockets
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

WATCH_SECONDS: Final = 1.0
"""How often to look whether the parent still runs. Its end of a socket does not tell: a fork of it may have it too."""


# ── in the tests ────────────────────────────────────────────────────────────────────────────────────────────


class Forked:
    """A process that the forker has started. Its methods are those of `subprocess.Popen`."""

    def __init__(self, keeper: sockets.socket, arguments: Sequence[str]) -> None:
        self._keeper = keeper
        self._arguments = arguments
        self._answers = keeper.makefile("r")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, negative if a signal killed the process, or None while it runs."""
        if self.returncode is None and select.select([self._keeper], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit status. Raise `subprocess.TimeoutExpired` after ``timeout`` seconds."""
        if self.returncode is None and not select.select([self._keeper], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self._arguments, timeout)
        self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _end(self) -> None:
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._keeper.close()


class Forker:
    """The process that forks. It ends with the process that made this object."""

    def __init__(self, clock: Path | None = None) -> None:
        """``clock`` is a file with the seconds by which the wall clock of its programs is wrong. It may change."""
        self._socket, other = sockets.socketpair()
        with other:
            self._process = subprocess.Popen(
                # -P: the folder of this file is not on the path of the programs.
                # The rest is for whoever reads the command line of a daemon, which is the forker's.
                [
                    sys.executable,
                    "-P",
                    __file__,
                    str(other.fileno()),
                    str(os.getpid()),
                    str(clock or ""),
                    "eoq",
                    "daemon",
                ],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if not name.startswith("EOQ_")},
                start_new_session=True,
            )

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, streams: tuple[int, int, int]
    ) -> Forked:
        """Start ``python -m MODULE …`` or ``python SCRIPT …`` with three standard streams, and return its process."""
        request = json.dumps({"arguments": arguments[1:], "environment": dict(environment), "folder": str(folder)})
        ours, theirs = sockets.socketpair()
        # In a file, because a long one may be read from the socket in pieces.
        with theirs, tempfile.TemporaryFile() as file:
            file.write(request.encode())
            file.flush()
            sockets.send_fds(self._socket, [b"."], [*streams, theirs.fileno(), file.fileno()])
        return Forked(ours, arguments)

    def close(self) -> None:
        """End the forker. The processes that it has started are killed."""
        self._socket.close()
        self._process.wait()


@functools.cache
def forker() -> Forker:
    """Return the forker of this process. The first call starts it."""
    made = Forker()
    atexit.register(made.close)
    return made


# ── the forker ──────────────────────────────────────────────────────────────────────────────────────────────


def serve(requests: sockets.socket, parent: int) -> None:
    """Fork for each request until the process ``parent`` closes its side or ends. Each child has a keeper."""
    while _runs_still(parent, requests):
        data, descriptors, _, _ = sockets.recv_fds(requests, 1, 5)
        if not data:
            return
        *streams, request = descriptors
        if os.fork() == 0:
            requests.close()
            with os.fdopen(request, "rb") as file:
                file.seek(0)
                asked = json.load(file)
            _keep(asked, streams)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _runs_still(parent: int, channel: sockets.socket | int) -> bool:
    """Wait until something can be read from ``channel``. Return False where the process ``parent`` ends before."""
    while not select.select([channel], [], [], WATCH_SECONDS)[0]:
        if os.getppid() != parent:
            return False
    return True


def _keep(request: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    """Start the program. Write its process id and, when it has ended, its exit status to the last of ``streams``.

    Kill the program where the forker has ended, or the other side of the last stream is closed.
    """
    forker = os.getppid()
    pid = os.fork()
    if pid == 0:
        _run(request, streams)
    for stream in streams[:3]:
        os.close(stream)

    def kill_without_parent() -> None:
        _runs_still(forker, streams[3])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    with contextlib.suppress(BrokenPipeError):
        os.write(streams[3], f"{pid}\n".encode())
    threading.Thread(target=kill_without_parent, daemon=True).start()
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(streams[3], f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(request: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    """Become the program: take its streams, folder, environment and arguments, run it, and exit as Python does."""
    for number in range(3):
        os.dup2(streams[number], number)
    for stream in streams:
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    first, *rest = request["arguments"]
    status: object = 1
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if ended.code is not None else 0
    except BaseException:  # noqa: BLE001 # as Python does at the end of a program
        traceback.print_exc()
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    # Not os._exit: a program may have registered what is to run at its end.
    sys.exit(status)


def _set_clock(file: Path) -> None:
    """Make the wall clock wrong by what a file says, as if the clock of the machine was set."""
    seconds, nanoseconds = time.time, time.time_ns
    vars(time)["time"] = lambda: seconds() + float(file.read_text())
    vars(time)["time_ns"] = lambda: nanoseconds() + round(float(file.read_text()) * 1e9)


if __name__ == "__main__":
    if sys.argv[3]:
        _set_clock(Path(sys.argv[3]))  # before the imports, which keep `time.time`
    for module in ("eoq.cli.daemon", "eoq.daemon.main"):  # so that the programs need not import them
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    serve(sockets.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
