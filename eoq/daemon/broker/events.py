"""Events: how one part of the daemon tells others what has happened, without knowing them.

`assembly.py` subscribes the services to `stored`, `ended` and `room`. `broker.py` subscribes its receivers to `ready`.
Listeners are called at once, in the order of their subscription.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..records import End


class Events:
    """The events of one daemon, each with its listeners."""

    def __init__(self) -> None:
        self.on_ready: list[Callable[[str, int | None], None]] = []
        self.on_stored: list[Callable[[str, int], None]] = []
        self.on_ended: list[Callable[[Sequence[End]], None]] = []
        self.on_room: list[Callable[[], None]] = []

    def ready(self, queue: str, count: int | None) -> None:
        """Tell that up to ``count`` messages of a queue may have become ready, by a command that was just submitted.

        None is any number.
        """
        for listener in self.on_ready:
            listener(queue, count)

    def stored(self, queue: str, count: int) -> None:
        """Tell that ``count`` new messages are on disk in a queue."""
        for listener in self.on_stored:
            listener(queue, count)

    def ended(self, ends: Sequence[End]) -> None:
        """Tell that messages have ended, by their consumers or without them."""
        for listener in self.on_ended:
            listener(ends)

    def room(self) -> None:
        """Tell that messages have ended, so that full queues may have room again."""
        for listener in self.on_room:
            listener()
