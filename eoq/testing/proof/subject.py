"""What is proved: a handler that can be run, and killed at a crash point."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ...message import Message
from .journal import Ran
from .report import Point


class Subject(Protocol):
    """A handler, as the proof sees it. `PythonHandler` and `CommandHandler` are such."""

    @property
    def method(self) -> str:
        """How crash points are found, in words."""
        ...

    def run(self, database: Path, message: Message, attempt: int, stop: Point | None, *, watched: bool) -> Ran:
        """Deliver a message once. With ``stop`` kill the handler there, always before the ack.

        ``watched`` runs note all crash points and what is done outside the database.
        """
        ...

    def points(self, ran: Ran) -> list[Point]:
        """Return the crash points of a run that was watched."""
        ...
