"""Events: one part of the daemon announces what has happened, and does not know which parts listen.

`assembly.py` subscribes the services to `stored`, `ended`, `resulted` and `room`. `broker.py` subscribes its receivers
to `ready`. Listeners are called at once, in the order of their subscription.
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
        self.on_resulted: list[Callable[[Sequence[End]], None]] = []
        self.on_room: list[Callable[[], None]] = []

    def ready(self, queue: str, count: int | None) -> None:
        """Announce that up to ``count`` messages of a queue may be ready, by a command that was just submitted.

        ``count`` is None where the number is not known.
        """
        for listener in self.on_ready:
            listener(queue, count)

    def stored(self, queue: str, count: int) -> None:
        """Announce that ``count`` new messages are on disk in a queue."""
        for listener in self.on_stored:
            listener(queue, count)

    def ended(self, ends: Sequence[End]) -> None:
        """Announce that messages have ended, whether a consumer settled them or not."""
        for listener in self.on_ended:
            listener(ends)

    def resulted(self, ends: Sequence[End]) -> None:
        """Announce that the results of messages have come back, which were forwarded before."""
        for listener in self.on_resulted:
            listener(ends)

    def room(self) -> None:
        """Announce that messages have ended, so that full queues may have room again."""
        for listener in self.on_room:
            listener()
