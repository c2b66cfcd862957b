"""Child processes of a proof: each run of a handler is one, in a process group of its own that is killed at its end."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from .journal import Journal, Ran, read_journal

_SET_CHILD_SUBREAPER: Final = 36
KILLED: Final = 99
"""Exit status of a child that was killed at its crash point."""


def run_child(journal_path: Path, work: Callable[[Journal], int], timeout: float) -> Ran:
    """Run ``work`` in a forked child, and return what its journal says. The child's exit status is not looked at.

    After ``timeout`` seconds the child and all that it has started are killed, and the journal says so. They are killed
    as well when an exception (Ctrl-C) interrupts the waiting.
    """
    journal = Journal(journal_path)
    began = time.monotonic()
    try:
        ended, alive = os.pipe()
        try:
            pid = fork()
            if pid == 0:
                _be_child(journal, work)
            with suppress(ProcessLookupError, PermissionError):
                os.setpgid(pid, pid)  # the child does the same; whoever is first
        finally:
            os.close(alive)
        try:
            try:
                readable, _, _ = select.select([ended], [], [], timeout)
            finally:
                kill_group(pid)
                with suppress(ChildProcessError):
                    while True:
                        os.waitpid(-pid, 0)  # its whole group
            if not readable:
                journal.note("error", f"it took longer than {timeout:g} s, and was ended")
        finally:
            os.close(ended)
    finally:
        journal.close()
    ran = read_journal(journal_path)
    ran.seconds = time.monotonic() - began
    journal_path.unlink()
    return ran


def fork() -> int:
    """Fork. The child ends by `os._exit`, and uses only what it makes itself."""
    with warnings.catch_warnings():
        # Python warns of forks in a program with threads. The child uses no lock that another thread can have.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _be_child(journal: Journal, work: Callable[[Journal], int]) -> NoReturn:
    status = 1
    try:
        gc.disable()  # it would touch, and so copy, all memory that is shared with the parent
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # what a handler prints hundreds of times is of no use
            os.dup2(nothing, descriptor)
        status = work(journal)
    except BaseException as error:  # noqa: BLE001 # nothing of the child may go on in the code of the parent
        with suppress(BaseException):
            journal.note("error", f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def adopt_orphans() -> None:
    """Become the parent of what the runs leave behind, where the system knows that (Linux).

    So `run_child` waits for it as well, and no zombies are left to an init process that may not care for them. Only for
    a program that has no other children.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_group(group: int) -> None:
    """Kill all processes of a group that still run."""
    for kill in (os.killpg, os.kill):  # the child may not have made its group yet
        with suppress(ProcessLookupError, PermissionError):
            kill(group, signal.SIGKILL)
