"""The proof: each message is handled once without a kill, then once for each crash point, killed there and redelivered.

What the database holds after a message that was killed and redelivered must be what it holds without a kill. Each run
works on a fresh copy of the state before its message, so the number of runs grows with the crash points alone.

A redelivery may be killed as well. What it does depends on what the first kill has left, and many crash points leave
the same. So for each state that a first kill leaves, the redelivery is killed at its own crash points, up to a number.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import InvalidRequest
from ...inbox.blocking import Inbox
from ...message import Message, Outgoing
from ..messages import make_message
from . import contents
from .contents import Column, Contents
from .journal import Ran, signature_of
from .python_handler import PythonHandler
from .report import Difference, Point, ProofFailed, Report
from .subject import Subject

Progress = Callable[[str, int, int], None]
WITHOUT_A_KILL: Final = "without a kill"
TIMEOUT: Final = 60.0
"""Seconds for one run of a handler."""
SECOND_KILLS: Final = 100
"""Second kills of one message, at most."""
MOST_STATES: Final = 10
"""After how many of the states that first kills have left redeliveries are killed, at most."""
TICK: Final = 1.1
"""Seconds after which a second run without a kill begins: a time of whole seconds is then another."""


def prove(
    handler: Callable[..., object],
    messages: Iterable[object],
    db: str | os.PathLike[str],
    *,
    inbox: Callable[[Path], Any] | None = Inbox,
    ignore: Sequence[str] = (),
    timeout: float = TIMEOUT,
    traced: bool | None = None,
    progress: Progress | None = None,
    second_kills: int = SECOND_KILLS,
) -> Report:
    """Prove that the effects of ``handler`` on the SQLite file ``db`` are exactly once. Return the report.

    ``handler(tx, message)`` is called through an inbox of a copy of ``db``; the file itself is only read. It is killed
    at each statement, commit, write and sync, and before the ack. Each time its message is delivered again, and the
    contents are compared with those of a run without a kill. What the handler does outside the file is compared too:
    other files that it writes, connections that it makes, and programs that it starts.

    ``messages`` are `Message` values (see `make_message`), `Outgoing` values, or bodies. ``inbox`` makes the inbox of a
    path: `Inbox` by default, or ``lambda path: GuestInbox(…)``. With None, there is none, and the handler is called as
    ``handler(path, message)``. ``ignore`` has patterns (``*``) of second files and of calls to the outside that may
    happen twice, such as a log or a request with an idempotency key. ``timeout`` is in seconds for one run. ``traced``
    says whether to kill at writes and syncs by ptrace as well; by default where the system allows it (Linux).
    ``progress(what, done, total)`` is called on the way. ``second_kills`` is how many redeliveries of each message are
    killed as well, at most: before their ack, at each commit, and at places between.

    Raises `ProofFailed`, an `AssertionError` whose text has the first difference with its place, and `CannotProve` for
    a handler that opens ``db`` itself to write: its process is ended before that.
    """
    subject = PythonHandler(handler, inbox, Path(db), timeout, traced)
    deliveries = [_delivery(message) for message in messages]
    report = prove_subject(subject, deliveries, Path(db), ignore, progress, second_kills)
    if not report.ok:
        raise ProofFailed(report)
    return report


def _delivery(message: object) -> Message:
    if isinstance(message, Message):
        return message
    if isinstance(message, Outgoing):
        return make_message(
            message.body,
            queue=message.queue or "proof",
            id=message.id,
            headers=message.headers,
            priority=message.priority,
            group=message.group,
        )
    return make_message(message, queue="proof")


def prove_subject(
    subject: Subject,
    messages: Sequence[Message],
    db: Path,
    ignore: Sequence[str],
    progress: Progress | None = None,
    second_kills: int = SECOND_KILLS,
) -> Report:
    """Prove the effects of any subject. Return the report, also where there is a difference."""
    if not messages:
        raise InvalidRequest("a proof needs a message: give one that the handler would get")
    with _scratch() as folder:
        proof = _Proof(subject, folder, db.name, ignore, progress or _no_progress, second_kills)
        copy_database(db, proof.begin())
        for number, message in enumerate(messages, start=1):
            if not proof.prove(message, number, len(messages)):
                break
        return proof.report


@contextmanager
def _scratch() -> Iterator[Path]:
    """Make a folder in memory where that is possible, and remove it at the end."""
    memory = Path("/dev/shm")  # noqa: S108 # `mkdtemp` makes a new folder in it
    parent = memory if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=f"eoq-proof-{os.getpid()}-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copy_database(source: Path, target: Path) -> None:
    """Copy one state of a database that others may use meanwhile. Raises `InvalidRequest` where it cannot be read."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as here,
            closing(sqlite3.connect(target)) as there,
        ):
            here.backup(there)
    except sqlite3.Error as error:
        raise InvalidRequest(f"{source} cannot be read: {error}; give the path of the handler's SQLite file") from error


class _Proof:
    """The state of a proof: the copy before the next message, and what was found so far."""

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        name: str,
        ignore: Sequence[str],
        progress: Progress,
        second_kills: int,
    ) -> None:
        self.report = Report(subject.method)
        self._subject = subject
        self._folder = folder
        self._name = name
        self._ignore = ignore
        self._progress = progress
        self._second_kills = second_kills
        self._left: list[_Left] = []
        """What the first kills of this message have left, each once."""
        self._state = folder / "state"
        self._volatile: frozenset[Column] = frozenset()
        self._results_vary = False
        self._is_controlled = False

    def begin(self) -> Path:
        """Return where the copy of the database belongs."""
        self._state.mkdir()
        return self._state / self._name

    def prove(self, message: Message, number: int, count: int) -> bool:
        """Try all crash points of one message. Return False after a difference."""
        self._is_controlled = False
        self._left = []
        self.report.messages += 1
        base = self._copy("base")
        first = self._run(base, message, 1, None, watched=True)
        problem = self._problem_without_a_kill(first)
        if problem is not None:
            return self._differs(message, WITHOUT_A_KILL, problem)
        expected = self._effects(base)
        points = self._subject.points(first)
        for done, point in enumerate(points):
            self._progress(f"message {number} of {count}", done, len(points))
            problem = self._try(message, point, first, expected)
            if problem is not None:
                return self._differs(message, f"killed at {point}", problem)
        self._progress(f"message {number} of {count}", len(points), len(points))
        if not self._kill_redeliveries(message, first, expected, f"message {number} of {count}, second kills"):
            return False
        self._replace_state(base)
        return True

    def _try(self, message: Message, point: Point, first: Ran, expected: _Effects) -> str | None:
        """Kill the handler at a point, redeliver, and compare. Return the difference."""
        folder = self._copy("run")
        ran = [self._run(folder, message, 1, point, watched=False)]
        # If it ended before, what it does is not the same each time. The effect has to be the same all the same.
        if ran[0].outcome is None and ran[0].error is None:
            self.report.points += 1
            self._keep_what_is_left(folder, point, ran[0])
            ran.append(self._run(folder, message, 2, None, watched=False))
        return self._problem(message, first, expected, ran, folder)

    def _keep_what_is_left(self, folder: Path, point: Point, killed: Ran) -> None:
        """Keep a copy for second kills where the first one has left what no earlier one has."""
        if len(self._left) >= min(MOST_STATES, self._second_kills):
            return
        found = self._effects(self._copy_of(folder, "look"))  # to look at it may change the files
        if all(self._difference(known.effects, found) is not None for known in self._left):
            kept = self._copy_of(folder, f"left-{len(self._left)}")
            self._left.append(_Left(found, kept, point, killed))

    def _kill_redeliveries(self, message: Message, first: Ran, expected: _Effects, what: str) -> bool:
        """Kill redeliveries as well, after each state that a first kill has left. Return False after a difference."""
        left_over = self._second_kills
        for number, left in enumerate(self._left):
            watched = self._run(self._copy_of(left.folder, "run"), message, 2, None, watched=True)
            points = chosen(self._subject.points(watched), left_over // (len(self._left) - number))
            left_over -= len(points)
            for done, point in enumerate(points):
                self._progress(what, done, len(points))
                self.report.second_kills += 1
                folder = self._copy_of(left.folder, "run")
                ran = [left.killed, self._run(folder, message, 2, point, watched=False)]
                if ran[1].outcome is None and ran[1].error is None:
                    ran.append(self._run(folder, message, 3, None, watched=False))
                problem = self._problem(message, first, expected, ran, folder)
                if problem is not None:
                    return self._differs(message, f"killed at {left.point}, and the redelivery at {point}", problem)
            self._progress(what, len(points), len(points))
            shutil.rmtree(left.folder)
        return True

    def _problem(
        self, message: Message, first: Ran, expected: _Effects, ran: Sequence[Ran], folder: Path
    ) -> str | None:
        """Return how the effect of some runs differs, the last of which was not killed."""
        found = self._effects(folder)
        problem = self._compare(first, expected, ran, found)
        if problem is not None and not self._is_controlled:
            unsteady = self._control(message, first, expected)
            if unsteady is not None:
                return unsteady
            problem = self._compare(first, expected, ran, found)
        if problem is not None and self._depends_on_the_attempt(message, first, expected):
            problem = f"{problem}. The handler depends on the attempt: attempt 2 differs without a kill as well"
        return problem

    def _depends_on_the_attempt(self, message: Message, first: Ran, expected: _Effects) -> bool:
        """Return whether a message has another effect if its first delivery is attempt 2."""
        folder = self._copy("attempt")
        ran = self._run(folder, message, 2, None, watched=False)
        problem = self._compare(first, expected, [ran], self._effects(folder))
        shutil.rmtree(folder)
        return problem is not None

    def _compare(self, first: Ran, expected: _Effects, ran: Sequence[Ran], found: _Effects) -> str | None:
        last = ran[-1]
        if last.outcome != first.outcome:
            return f"the redelivered message was {_ending(last)}, and {_ending(first)} without a kill"
        text = self._difference(expected, found)
        if text is not None:
            return text
        if last.result != first.result and not self._results_vary:
            return f"the result is {last.result}, and {first.result} without a kill"
        calls = sum((one.calls for one in ran), Counter[str]())
        for call in sorted({*calls, *first.calls}):
            if calls[call] != first.calls[call] and not self._is_ignored(call):
                return (
                    f"`{call}` happened {_times(calls[call])}, and {_times(first.calls[call])} without a kill: nothing "
                    "outside the file takes part in its transaction"
                )
        return None

    def _difference(self, expected: _Effects, found: _Effects) -> str | None:
        text = contents.difference(expected.database, found.database, self._volatile)
        return text or contents.other_difference(expected.others, found.others, self._volatile)

    def _problem_without_a_kill(self, ran: Ran) -> str | None:
        if ran.outcome not in ("done", "rejected"):
            return f"the message was {_ending(ran)}, so there is no effect to prove"
        for path, before in ran.files.items():
            if signature_of(path) not in (None, before) and not self._is_ignored(path):
                return (
                    f"the handler writes to a second file, {path}: what it writes there is not undone with the "
                    "transaction, so a kill between the two leaves one without the other, or one twice"
                )
        return None

    def _control(self, message: Message, first: Ran, expected: _Effects) -> str | None:
        """Run once more without a kill, in another second. What differs now as well is not compared.

        Return what is wrong if the handler does not do the same twice: nothing can then be compared.
        """
        self._is_controlled = True
        time.sleep(TICK)  # times of whole seconds have to differ
        folder = self._copy("control")
        ran = self._run(folder, message, 1, None, watched=False)
        found = self._effects(folder)
        shutil.rmtree(folder)
        counts = contents.count_difference(expected.database, found.database)
        if counts is not None or ran.outcome != first.outcome:
            return f"the handler does not do the same twice without a kill: {counts or _ending(ran)}"
        self._volatile |= contents.volatile_columns(expected.database, found.database)
        self._results_vary |= ran.result != first.result
        names = {f"{table}.{column}" for table, column in self._volatile - contents.DATES}
        self.report.not_compared = sorted({*names, *(["the result"] if self._results_vary else [])})
        return None

    def _is_ignored(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._ignore)

    def _differs(self, message: Message, place: str, text: str) -> bool:
        self.report.difference = Difference(message.id, place, text)
        return False

    # ── runs and copies ─────────────────────────────────────────────────────────────────────────────────

    def _run(self, folder: Path, message: Message, attempt: int, stop: Point | None, *, watched: bool) -> Ran:
        return self._subject.run(folder / self._name, message, attempt, stop, watched=watched)

    def _copy(self, name: str) -> Path:
        """Copy the state before the message, without the shared memory of its processes, which have ended."""
        return self._copy_of(self._state, name)

    def _copy_of(self, source: Path, name: str) -> Path:
        folder = self._folder / name
        if folder.exists():
            shutil.rmtree(folder)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*-shm"))
        return folder

    def _replace_state(self, folder: Path) -> None:
        shutil.rmtree(self._state)
        folder.rename(self._state)

    def _effects(self, folder: Path) -> _Effects:
        database = folder / self._name
        return _Effects(contents.read(database), contents.read_others(folder, database))


class _Effects(NamedTuple):
    """What is in the folder of a run after it."""

    database: Contents
    others: dict[str, Contents | bytes]


class _Left(NamedTuple):
    """What a first kill has left, in a folder of its own."""

    effects: _Effects
    folder: Path
    point: Point
    killed: Ran


def _ending(ran: Ran) -> str:
    if ran.outcome is None:
        return f"not settled ({ran.error})" if ran.error else "not settled"
    return f"{ran.outcome} ({ran.error})" if ran.error else ran.outcome


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def chosen(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most ``most`` of the points: the last one, which is before the ack, commits, and others evenly."""
    if len(points) <= most:
        return list(points)
    places = [place for place, point in enumerate(points) if "commit" in point.place.lower()]
    wanted = dict.fromkeys([len(points) - 1, *places])
    wanted |= dict.fromkeys(place * len(points) // most for place in range(most))
    return [points[place] for place in sorted(list(wanted)[:most])]


def _no_progress(_what: str, _done: int, _total: int) -> None:
    """Show nothing."""
