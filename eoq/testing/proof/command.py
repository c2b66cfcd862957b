"""A handler that is a command, as for ``eoq work``: killed at its writes by ptrace, or else at moments of its run."""

from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from ...errors import InvalidRequest
from ...message import Message
from .children import KILLED, run_child
from .journal import Journal, Ran
from .ptrace import can_trace, trace
from .report import CannotProve, Point
from .seen import SUFFIXES, Seen

PLACEHOLDER: Final = "{db}"
VARIABLE: Final = "EOQ_PROVE_DB"
"""The variable of the command's environment with the path of the copy."""
MOMENTS: Final = 100
REJECTED: Final = 100
"""The exit status with which a command rejects its message."""
_TAIL: Final = 500
"""Bytes of standard error in an error."""
_MOST_OUTPUT: Final = 1024 * 1024
_HOW: Final = f"write {PLACEHOLDER} in the command where the file's path belongs, or let it read ${VARIABLE}"


class CommandHandler:
    """A command line. Where an argument is the path of ``db``, or has ``{db}`` in it, it gets the path of the copy."""

    def __init__(
        self, command: Sequence[str], db: Path, *, timeout: float, moments: int = MOMENTS, traced: bool | None = None
    ) -> None:
        """``timeout`` is in seconds for one run. ``traced`` says whether to use ptrace; None means where it works.

        Without ptrace each message is killed at ``moments`` moments, evenly over its run.
        """
        self._command = list(command)
        self._db = db.resolve()
        self._named = {str(db), str(self._db)}
        self._timeout = timeout
        self._moments = moments
        self._traced = can_trace() if traced is None else traced

    @property
    def method(self) -> str:
        if self._traced:
            return "each write and sync of the file and its log, by ptrace, and the end of the command"
        return (
            f"a sweep of {self._moments:,} moments of each run, because ptrace is not used here, and the end of the "
            "command; what happens between two moments is not seen, nor what the command does outside the file"
        )

    def points(self, ran: Ran) -> list[Point]:
        if self._traced:
            places = [Point("write", number, place) for number, place in enumerate(ran.writes, start=1)]
        else:
            moments = ((number, ran.seconds * number / self._moments) for number in range(1, self._moments + 1))
            places = [Point("moment", number, f"after {at * 1000:.1f} ms", at) for number, at in moments]
        return [*places, Point("end", 1, "the command has ended, and its message is not acked")]

    def run(self, database: Path, message: Message, attempt: int, stop: Point | None, *, watched: bool) -> Ran:
        root = database.parent.parent
        (root / "tmp").mkdir(exist_ok=True)
        body, output, errors = (root / name for name in ("body", "output", "errors"))
        body.write_bytes(message.body)
        environment = self._environment(message, attempt, database, root)
        command = self._words(database)

        def deliver(journal: Journal) -> int:
            _redirect(body, output, errors)
            if self._traced:
                at = stop.number if stop is not None and stop.source == "write" else None
                seen = Seen(database, self._db, journal, at)
                status = trace(lambda: os.execvpe(command[0], command, environment), seen.see)  # noqa: S606 # no shell
            else:
                status = self._run_until(command, environment, stop)
            if status is None or stop is not None:
                return KILLED
            self._settle(journal, status, output, errors)
            return 0

        journal = database.parent.with_suffix(".journal")
        if watched:
            with self._user_file_locked():
                before = _signatures(database)
                ran = run_child(journal, deliver, self._timeout)
                writes = bool(ran.writes) if self._traced else _signatures(database) != before
        else:
            ran, writes = run_child(journal, deliver, self._timeout), True
        if ran.refused is not None:
            raise CannotProve(f"{ran.refused}; a proof works on copies: {_HOW}")
        if not writes and ran.outcome == "done" and attempt == 1:
            raise CannotProve(f"the command has written nothing to the copy of {self._db.name}: {_HOW}")
        return ran

    def _run_until(self, command: list[str], environment: Mapping[str, str], stop: Point | None) -> int | None:
        process = subprocess.Popen(command, env=environment)
        if stop is None or stop.source != "moment":
            return process.wait()
        with suppress(subprocess.TimeoutExpired):
            process.wait(stop.after)
        os.killpg(0, signal.SIGKILL)  # this process as well
        return None

    @contextmanager
    def _user_file_locked(self) -> Iterator[None]:
        """Without ptrace, lock the user's file while it is not known whether the command writes to it."""
        if self._traced:
            yield
            return
        with closing(sqlite3.connect(self._db, timeout=5, isolation_level=None)) as database:
            try:
                database.execute("begin immediate")
            except sqlite3.Error as error:
                raise InvalidRequest(
                    f"{self._db} cannot be locked: {error}; try again when no program writes to it"
                ) from error
            yield
            database.execute("rollback")

    def _words(self, database: Path) -> list[str]:
        return [
            str(database) if word in self._named else word.replace(PLACEHOLDER, str(database)) for word in self._command
        ]

    def _environment(self, message: Message, attempt: int, database: Path, root: Path) -> dict[str, str]:
        variables = {name: value for name, value in os.environ.items() if name != "EOQ_GROUP"}
        variables.update(
            EOQ_ID=message.id,
            EOQ_QUEUE=message.queue,
            EOQ_ATTEMPT=str(attempt),
            EOQ_RECEIPT=message.receipt,
            EOQ_SOCKET=str(root / "no-daemon-in-a-proof"),
            TMPDIR=str(root / "tmp"),
        )
        variables[VARIABLE] = str(database)
        if message.group is not None:
            variables["EOQ_GROUP"] = message.group
        return variables

    def _settle(self, journal: Journal, status: int, output: Path, errors: Path) -> None:
        if status == 0:
            journal.note("settled", "done", repr(output.read_bytes()[:_MOST_OUTPUT]), None)
            return
        said = errors.read_bytes()[-_TAIL:].decode(errors="replace").strip()
        name = shlex.join(self._command[:1])
        reason = f"{name} ended with {f'signal {-status}' if status < 0 else f'exit status {status}'}"
        outcome = "rejected" if status == REJECTED else "retried"
        journal.note("settled", outcome, None, f"{reason}: {said}" if said else reason)


def _redirect(body: Path, output: Path, errors: Path) -> None:
    for descriptor, path, flags in (
        (0, body, os.O_RDONLY),
        (1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        opened = os.open(path, flags | os.O_CLOEXEC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)


def _signatures(database: Path) -> list[tuple[int, int] | None]:
    """Return what a write to the files of a database would change."""
    found: list[tuple[int, int] | None] = []
    for suffix in SUFFIXES:
        try:
            file = database.with_name(database.name + suffix).stat()
            found.append((file.st_size, file.st_mtime_ns))
        except OSError:
            found.append(None)
    return found
