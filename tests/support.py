"""Tools for tests with a real daemon: its process, a raw connection, a shell, and waiting with a deadline.

Nothing here waits by sleeping for a fixed time, and nothing replaces code of eoq.

    with running_daemon() as daemon, Wire(daemon.socket) as wire:
        assert wire.ask({"op": "send", "queue": "q", "body": "hi"})["ok"]
        daemon.kill()        # kill -9
        daemon.start()       # on the same files
"""

from __future__ import annotations

import json
import os
import pty
import random
import select
import shutil
import signal
import socket as sockets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from tests.forker import Forked, Forker, forker

T = TypeVar("T")
Fields = dict[str, Any]

PATIENCE: Final = float(os.environ.get("TEST_PATIENCE", "60"))
"""Seconds until a wait fails the test. No step takes nearly that long, so a busy machine does not fail tests."""
PAUSE: Final = 0.005
"""Seconds between two checks of a condition."""
NOBODY: Final = 65534
"""The user id of ``nobody``, for tests of what other users are not allowed to do."""
HAS_PROC: Final = Path("/proc/self/status").exists()
"""Whether the memory of a process can be read from ``/proc`` (Linux)."""


def eventually(condition: Callable[[], T], seconds: float = PATIENCE, *, what: str = "") -> T:
    """Return the first true value of ``condition``. Fail the test if there is none within ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(PAUSE)  # between two checks


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder under /tmp, and remove it at the end. Its path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="eoq-", dir="/tmp"))

    def remove() -> bool:
        # A process that is just ending may remove its own files at the same time.
        with suppress(OSError):
            shutil.rmtree(folder)
        return not folder.exists()

    try:
        yield folder
    finally:
        eventually(remove, what=f"{folder} is removed")


def memory_folder() -> Path | None:
    """Return the folder whose files are in memory, for private folders in it; None where there is none."""
    folder = Path("/dev/shm")  # noqa: S108 # only private folders are made in it
    return folder if folder.is_dir() else None


def free_port() -> int:
    """Return a port that is free, below those that the system hands out by itself: nobody takes it meanwhile."""
    ports = random.Random(os.urandom(8))
    while True:
        port = ports.randrange(15_000, 32_000)
        with suppress(OSError), sockets.create_server(("127.0.0.1", port)):
            return port


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without the variables and the configuration of eoq, and with ``more``."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("EOQ_")}
    return {**others, "XDG_CONFIG_HOME": "/nonexistent", **more}


def resident_kilobytes(pid: int) -> int:
    """Return the present memory of a process (VmRSS)."""
    return _memory(pid, "VmRSS")


def peak_kilobytes(pid: int) -> int:
    """Return the largest memory that a process has had (VmHWM)."""
    return _memory(pid, "VmHWM")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def runs(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def _is_stopped(pid: int) -> bool:
    """Return whether SIGSTOP has reached every thread of a process: one in a write to the disk stops after it."""
    with suppress(FileNotFoundError, ProcessLookupError):  # the process, or a thread of it, has ended meanwhile
        states = [
            (thread / "stat").read_text().rpartition(") ")[2][0] for thread in Path(f"/proc/{pid}/task").iterdir()
        ]
        return all(state in "TtZX" for state in states)
    return False


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} of process {pid}: it has ended")


# ── the daemon ──────────────────────────────────────────────────────────────────────────────────────────────


class Daemon:
    """A real daemon process on the files of one folder. Make it with `running_daemon`.

    ``options`` are those of ``eoq daemon``. Standard error of all its runs goes to one file. ``own_forker`` is for a
    daemon with a wrong clock.
    """

    def __init__(
        self,
        folder: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        own_forker: Forker | None = None,
    ) -> None:
        self.folder = folder
        self.db = folder / "eoq.db"
        self.socket = folder / "s"
        self._options = tuple(options)
        self._environment = clean_environment(**(environment or {}))
        self._errors = folder / "daemon.err"
        self._forker = own_forker
        self._process: subprocess.Popen[bytes] | Forked | None = None

    @property
    def pid(self) -> int:
        """The process id of the present or latest run."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """Everything that all runs have written to standard error."""
        return self._errors.read_text(errors="replace") if self._errors.exists() else ""

    def command(self) -> list[str]:
        """Return the command line of the next run."""
        paths = ["--db", str(self.db), "--socket", str(self.socket)]
        return [sys.executable, "-m", "eoq.cli", "daemon", *paths, *self._options]

    def start(self) -> None:
        """Start the daemon, and wait for its ``ready`` line."""
        assert not self.running, "the daemon runs already"
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as output:
            with (
                os.fdopen(writing, "wb") as said,
                self._errors.open("ab") as errors,
                Path(os.devnull).open("rb") as nothing,
            ):
                self._process = self._launch((nothing.fileno(), said.fileno(), errors.fileno()))
            readable, _, _ = select.select([output], [], [], PATIENCE)
            line = output.readline() if readable else b"(nothing)"
        if line != f"ready {self.socket}\n".encode():
            self.kill()
            raise AssertionError(f"the daemon said {line!r} instead of `ready`; its errors:\n{self.said}")

    def _launch(self, streams: tuple[int, int, int]) -> subprocess.Popen[bytes] | Forked:
        command = self.command()
        # Not in the checkout: the tests test what is installed.
        if command[0] == sys.executable:
            return (self._forker or forker()).start(command, self._environment, self.folder, streams)
        stdin, stdout, stderr = streams
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=self._environment, cwd=self.folder
        )

    def signal(self, number: int) -> None:
        """Send a signal to the process. After SIGSTOP, wait until all its threads stand still."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP and HAS_PROC:
            eventually(lambda: not self.running or _is_stopped(self.pid), what="the daemon stands still")

    def wait(self) -> int:
        """Wait for the end of the process. Return its exit status, negative if a signal killed it."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        if self.running:
            self.signal(signal.SIGKILL)
            self.wait()

    def terminate(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def restart(self) -> None:
        """Kill the process with SIGKILL, and start another on the same files."""
        self.kill()
        self.start()

    def resident_kilobytes(self) -> int:
        """Return the present memory of the daemon (VmRSS)."""
        return resident_kilobytes(self.pid)

    def wire(self) -> Wire:
        """Return a new raw connection to the daemon."""
        return Wire(self.socket)

    def shell(self) -> Shell:
        """Return a shell whose ``EOQ_SOCKET`` is this daemon's."""
        return Shell(self.socket, self.folder)

    def ask(self, **fields: Any) -> Fields:
        """Send one request on a separate connection, and return the reply."""
        with self.wire() as wire:
            return wire.ask(fields)

    def serves(self) -> bool:
        """Return whether the daemon answers a new connection."""
        try:
            return bool(self.ask(op="status")["ok"])
        except (AssertionError, ConnectionError):
            return False

    def check(self) -> None:
        """Fail the test if the daemon has written a traceback."""
        assert "Traceback" not in self.said, f"the daemon failed inside:\n{self.said}"


@contextmanager
def running_daemon(*options: str, environment: Mapping[str, str] | None = None, start: bool = True) -> Iterator[Daemon]:
    """Run a daemon in a separate folder. At the end it must stop on SIGTERM, without a traceback."""
    with short_folder() as folder:
        daemon = Daemon(folder, options, environment)
        try:
            if start:
                daemon.start()
            yield daemon
            if daemon.running:
                assert daemon.terminate() == 0, daemon.said
            daemon.check()
        except BaseException as error:
            error.add_note(f"the daemon said:\n{daemon.said}")
            raise
        finally:
            daemon.kill()


@contextmanager
def daemon_that_retries_late(folder: Path) -> Iterator[Daemon]:
    """Run a daemon whose third delivery comes much later than any test ends. ``folder`` gets its configuration."""
    config = folder / "eoq.toml"
    config.write_text('[queues."*"]\nretry_base = 3600\nretry_cap = 3600\n')
    with running_daemon("--config", str(config)) as daemon:
        yield daemon


# ── the wire ────────────────────────────────────────────────────────────────────────────────────────────────


class Wire:
    """A raw connection that sends any bytes and reads lines of JSON. Every wait has a time limit."""

    def __init__(self, path: Path, timeout: float = PATIENCE) -> None:
        self.socket = sockets.socket(sockets.AF_UNIX)
        self.socket.settimeout(timeout)
        self._received = b""

        def connect() -> bool:
            try:
                self.socket.connect(str(path))
            except BlockingIOError:  # too many connect at once for the socket's queue
                return False
            return True

        try:
            eventually(connect, timeout, what=f"a connection to {path}")
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def half_close(self) -> None:
        """Close only the sending side, as ``nc -N`` does at the end of its input."""
        self.socket.shutdown(sockets.SHUT_WR)

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def send(self, *requests: Mapping[str, Any]) -> None:
        """Send requests, one a line, in one write."""
        self.write(b"".join(json.dumps(request).encode() + b"\n" for request in requests))

    def read_line(self) -> bytes | None:
        """Return the next line without its line feed, or None if the daemon has closed the connection."""
        while b"\n" not in self._received:
            try:
                data = self.socket.recv(1024 * 1024)
            except ConnectionResetError:
                data = b""
            if not data:
                assert self._received == b"", f"the connection ended in the middle of a line: {self._received[:200]!r}"
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def read(self) -> Fields:
        """Return the next reply."""
        line = self.read_line()
        assert line is not None, "the daemon closed the connection"
        reply: Fields = json.loads(line)
        assert isinstance(reply, dict)
        assert isinstance(reply["ok"], bool)
        return reply

    def ask(self, request: Mapping[str, Any]) -> Fields:
        """Send one request and return the next reply."""
        self.send(request)
        return self.read()

    def ask_line(self, line: bytes) -> Fields:
        """Send one line as it is and return the next reply."""
        self.write(line + b"\n")
        return self.read()

    def silent(self, seconds: float) -> bool:
        """Return whether nothing arrives for ``seconds``. Only waiting can show that."""
        return not self._received and not select.select([self.socket], [], [], seconds)[0]

    def ended(self) -> bool:
        """Return whether the daemon closes the connection without sending more."""
        return self.read_line() is None


def error_of(reply: Mapping[str, Any]) -> str:
    """Return the error code of a reply. Fail the test if the reply is no error or has no text for the user."""
    assert reply["ok"] is False, reply
    assert reply["error"].keys() == {"code", "message"}
    assert len(reply["error"]["message"]) > 10
    return str(reply["error"]["code"])


# ── other processes ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ran:
    """The exit status and the output of a command."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode()

    @property
    def errors(self) -> str:
        """Standard error as text."""
        return self.stderr.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The lines of standard output."""
        return self.text.splitlines()

    @property
    def rows(self) -> list[Any]:
        """Standard output as JSON, one value a line."""
        return [json.loads(line) for line in self.lines]


class Shell:
    """Runs scripts in ``bash``, with ``eoq`` on the path and ``EOQ_SOCKET`` set."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self.socket = socket
        self.folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a script."""
        beside = str(Path(sys.executable).parent)
        return clean_environment(
            PATH=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]),
            EOQ_SOCKET=str(self.socket),
            EOQ_DB=str(self.folder / "eoq.db"),
        )

    def start(self, script: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a script in a separate session. ``options`` are those of `subprocess.Popen`."""
        return subprocess.Popen(
            ["bash", "-c", script],
            **{"env": self.environment, "cwd": self.folder, "start_new_session": True, **options},
        )

    def run(self, script: str, stdin: bytes = b"", *, timeout: float = PATIENCE * 2, **environment: str) -> Ran:
        """Run a script to its end, with ``environment`` added. Fail the test if it writes a Python traceback."""
        process = self.start(
            script,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.environment, **environment},
        )
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout)
            except BaseException:
                kill_group(process)
                raise
        ran = Ran(process.returncode, stdout, stderr)
        assert "Traceback" not in ran.errors, f"{script}\n{ran.errors}"
        return ran


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started in a separate session, and all processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def python_process(code: str, *arguments: str, socket: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``code`` in a Python process whose standard output is a pipe. Kill it at the end if it still runs."""
    environment = clean_environment(**({} if socket is None else {"EOQ_SOCKET": str(socket)}))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=environment, cwd=tempfile.gettempdir()
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_line_of(process: subprocess.Popen[bytes], seconds: float = PATIENCE) -> bytes:
    """Return the next line of a process's standard output. Fail the test after ``seconds``.

    Use it only if the process writes one line at a time: the wait does not see lines that Python has read ahead.
    """
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], seconds)
    assert readable, f"no line from process {process.pid} within {seconds:g} s"
    return process.stdout.readline()


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Open a pseudo-terminal: the user's end, and the end that a program writes to."""
    seen, written = pty.openpty()
    try:
        yield seen, written
    finally:
        for descriptor in (seen, written):
            with suppress(OSError):
                os.close(descriptor)


def run_at_terminal(shell: Shell, script: str, stream: Literal["stdout", "stderr"], **environment: str) -> str:
    """Run a script with a terminal as one of its streams. Return what it writes there. It must succeed."""
    with terminal() as (seen, written):
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, stream: written}
        process = shell.start(script, **streams, env={**shell.environment, **environment})
        with process:
            os.close(written)
            shown = b""
            try:
                with suppress(OSError):  # Linux raises EIO after the last writer has closed the terminal
                    while data := os.read(seen, 4096):
                        shown += data
                assert process.wait(PATIENCE) == 0
            finally:
                kill_group(process)
    return shown.decode()
