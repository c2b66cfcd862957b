"""Forks: a forked child has a copy of each connection of its parent and must not use it.

Two processes on one connection to the daemon would read each other's replies, and its bound leases would outlive the
parent.

A connection to a SQLite file is worse. The child inherits SQLite's record of the locks of its process, but not the
locks. So even a connection that the child opens anew takes no lock on a file that was open at the fork, and what it
commits can be lost. Therefore what eoq has opened is closed before the fork.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final, Protocol

WAIT_SECONDS: Final = 2.0
"""How long a fork waits for another thread that uses a file of an inbox."""


class Forked(Protocol):
    """An object that must start anew in a forked child."""

    def forked(self) -> None:
        """Start anew. Called in the child, in its only thread; locks may be held by threads that no longer exist."""


class Closing(Forked, Protocol):
    """An object that must also close a file before the fork."""

    def close_before_fork(self) -> bool:
        """Close the file if it is not in use. Return whether `after_fork` is to be called in the parent."""

    def after_fork(self) -> None:
        """Go on in the parent. Called in the thread that has forked."""


class _Parts(threading.local):
    """What is to go on in the parent after the fork that this thread makes."""

    def __init__(self) -> None:
        self.waiting: list[Closing] = []


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()
_closing: weakref.WeakSet[Closing] = weakref.WeakSet()
_parts = _Parts()


def watch_forks(watched: Forked) -> None:
    """Call ``watched.forked()`` in the child of every fork, as long as ``watched`` lives."""
    _watched.add(watched)


def close_before_forks(one: Closing) -> None:
    """Call the methods of ``one`` around every fork, as long as it lives."""
    _closing.add(one)
    _watched.add(one)


def leak(connection: object) -> None:
    """Keep ``connection`` for ever in a child: to close it would undo the open transaction of the parent."""
    import ctypes  # rarely needed

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _before_fork() -> None:
    _parts.waiting = []
    for one in list(_closing):
        if one.close_before_fork():
            _parts.waiting.append(one)


def _after_fork_in_parent() -> None:
    waiting, _parts.waiting = _parts.waiting, []
    for one in waiting:
        one.after_fork()


def _after_fork() -> None:
    _parts.waiting = []
    for watched in list(_watched):
        watched.forked()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)
