"""The table ``binding``: which queues are bound to which topic, and for which messages."""

from __future__ import annotations

import json

from .....errors import IdConflict, InvalidRequest, NotFound
from ....records import Binding
from ....rules.topic_rules import check_bindings
from ....store.commands import Bind, ListBindings, Unbind
from ..database import Database
from .queues import Queues


class Bindings:
    """All stored bindings."""

    def __init__(self, database: Database, queues: Queues) -> None:
        self._database = database
        self._queues = queues

    def list_all(self, _command: ListBindings) -> list[Binding]:
        """See `ListBindings`."""
        return self._all()

    def _all(self) -> list[Binding]:
        rows = self._database.execute(
            """
            select topic, queue, headers
            from binding
            order by topic, queue
            """
        ).fetchall()
        return [Binding(topic, queue, json.loads(headers or "{}")) for topic, queue, headers in rows]

    def restore(self, binding: Binding) -> bool:
        """Store a binding of an export. Return False if it is known. `check` follows, for all of them together.

        Raises `IdConflict` where it is known with other headers.
        """
        known = self._database.execute(
            "select headers from binding where topic = ? and queue = ?", (binding.topic, binding.queue)
        ).fetchone()
        if known is not None:
            if json.loads(known[0] or "{}") != binding.headers:
                raise IdConflict(
                    f"{binding.queue!r} is bound to {binding.topic!r} with other headers; remove the line, or unbind it"
                )
            return False
        self._require_no_messages(binding.topic)
        self._database.execute(
            "insert into binding (topic, queue, headers) values (?, ?, ?)",
            (binding.topic, binding.queue, _headers(binding)),
        )
        return True

    def check(self) -> None:
        """Raise `InvalidRequest` or `QueueFull` where the bindings contradict each other or are too many."""
        check_bindings(self._all())

    def bind(self, command: Bind) -> list[Binding]:
        """See `Bind`."""
        binding = command.binding
        self._require_no_messages(binding.topic)
        headers = _headers(binding)
        with self._database.savepoint():
            self._database.execute(
                """
                insert into binding (topic, queue, headers)
                values (?, ?, ?)
                on conflict (topic, queue) do update set headers = excluded.headers
                """,
                (binding.topic, binding.queue, headers),
            )
            bindings = self._all()
            check_bindings([*bindings, *command.configured])
        return bindings

    def unbind(self, command: Unbind) -> list[Binding]:
        """See `Unbind`."""
        topic, queue = command.topic, command.queue
        gone = self._database.execute("delete from binding where topic = ? and queue = ?", (topic, queue)).rowcount
        if gone == 0:
            raise NotFound(f"{queue!r} is not bound to {topic!r}; `eoq topics` lists what is")
        return self._all()

    def _require_no_messages(self, topic: str) -> None:
        queue_id = self._queues.find(topic)
        if queue_id is not None and self._has_messages(queue_id):
            raise InvalidRequest(
                f"{topic!r} is a queue with messages, which no consumer would receive any more; let them be settled, "
                "purge it, or choose another name"
            )

    def _has_messages(self, queue_id: int) -> bool:
        row = self._database.execute(
            """
            select 1
            from (
              select 1 from message where queue = ?1 and state = 'ready'
              union all
              select 1 from message where queue = ?1 and state in ('delayed', 'blocked')
            )
            limit 1
            """,
            (queue_id,),
        ).fetchone()
        return row is not None


def _headers(binding: Binding) -> str | None:
    return json.dumps(binding.headers, ensure_ascii=False, sort_keys=True) if binding.headers else None
