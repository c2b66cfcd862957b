"""Topics in the daemon's file: which queues are bound to which name, and for which messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from .....errors import InvalidRequest, NotFound, QueueFull
from ....records import Binding
from .queues import QueueTable

MAX_BINDINGS: Final = 10_000
MAX_QUEUES_OF_TOPIC: Final = 100


class TopicTable(QueueTable):
    """The verbs of the table ``binding``; see ``file.py`` for what a verb is."""

    def bindings(self) -> list[Binding]:
        """All that are stored."""
        rows = self._database.execute(
            """
            select topic, queue, headers
            from binding
            order by topic, queue
            """
        ).fetchall()
        return [Binding(topic, queue, json.loads(headers or "{}")) for topic, queue, headers in rows]

    def bind(self, binding: Binding, configured: Sequence[Binding]) -> list[Binding]:
        """Stores a binding, in place of another of the same topic and queue. Returns all that are stored.

        Raises `InvalidRequest` where the topic is a queue that holds messages, or one of the names is used for both
        here or in what is ``configured``, and `QueueFull` where there are too many.
        """
        self._require_no_queue(binding.topic)
        headers = json.dumps(binding.headers, ensure_ascii=False, sort_keys=True) if binding.headers else None
        with self._all_or_nothing():
            self._database.execute(
                """
                insert into binding (topic, queue, headers)
                values (?, ?, ?)
                on conflict (topic, queue) do update set headers = excluded.headers
                """,
                (binding.topic, binding.queue, headers),
            )
            bindings = self.bindings()
            check([*bindings, *configured])
        return bindings

    def unbind(self, topic: str, queue: str) -> list[Binding]:
        """Removes a binding; returns all there are. Raises `NotFound`."""
        gone = self._database.execute("delete from binding where topic = ? and queue = ?", (topic, queue)).rowcount
        if gone == 0:
            raise NotFound(f"{queue!r} is not bound to {topic!r}; `eoq topics` lists what is")
        return self.bindings()

    def _require_no_queue(self, topic: str) -> None:
        number = self._queues.get(topic) or self._find_queue(topic)
        if number is not None and self._has_messages(number):
            raise InvalidRequest(
                f"{topic!r} is a queue with messages, which nobody would get any more; let them be settled, purge it, "
                "or choose another name"
            )

    def _has_messages(self, number: int) -> bool:
        row = self._database.execute(
            """
            select 1
            from (
              select 1 from message where queue = ?1 and state = 'ready'
              union all
              select 1 from message where queue = ?1 and state in ('delayed', 'blocked')
              union all
              select 1 from message where queue = ?1 and state = 'leased'
            )
            limit 1
            """,
            (number,),
        ).fetchone()
        return row is not None


def check(bindings: Sequence[Binding]) -> None:
    """Raises `InvalidRequest` or `QueueFull` where bindings do not go together."""
    topics = {binding.topic for binding in bindings}
    count: dict[str, int] = {}
    for binding in bindings:
        if binding.queue in topics:
            raise InvalidRequest(
                f"{binding.queue!r} is a topic itself, and what is sent to a topic goes to queues; bind a queue"
            )
        count[binding.topic] = count.get(binding.topic, 0) + 1
        if count[binding.topic] > MAX_QUEUES_OF_TOPIC:
            raise QueueFull(f"{MAX_QUEUES_OF_TOPIC} queues are bound to {binding.topic!r}, and no more can be")
    if len(bindings) > MAX_BINDINGS:
        raise QueueFull(f"there are {MAX_BINDINGS:,} bindings, and no more can be made")
