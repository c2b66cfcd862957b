"""Forks: a forked child has a copy of each of its parent's connections, and has to leave them alone.

Two processes on one connection would get each other's replies; and what is bound to it would outlive the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """What is not the same in a child."""

    def forked(self) -> None:
        """Called in the child, in the only thread there is. Locks may be held by threads that are not."""


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch_forks(one: Forked) -> None:
    """``one`` is told of every fork, as long as it lives."""
    _watched.add(one)


def _tell() -> None:
    for one in list(_watched):
        one.forked()


os.register_at_fork(after_in_child=_tell)
