"""Forks: a forked child has a copy of each connection of its parent and must not use it.

Two processes on one connection would read each other's replies, and its bound leases would outlive the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """An object that must start anew in a forked child."""

    def forked(self) -> None:
        """Start anew. Called in the child, in its only thread; locks may be held by threads that no longer exist."""


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch_forks(watched: Forked) -> None:
    """Call ``watched.forked()`` in the child of every fork, as long as ``watched`` lives."""
    _watched.add(watched)


def _after_fork() -> None:
    for watched in list(_watched):
        watched.forked()


os.register_at_fork(after_in_child=_after_fork)
