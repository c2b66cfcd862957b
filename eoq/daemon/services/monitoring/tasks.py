"""Tasks that are cancelled when the connection that has asked for them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from ...session import Session


class SessionTasks:
    """The running tasks of a service, by their connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._by_session: dict[Session, set[asyncio.Task[None]]] = {}

    def spawn(self, session: Session, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a task until it ends or its connection does."""
        tasks = self._by_session.get(session)
        if tasks is None:
            tasks = self._by_session[session] = set()
            session.on_close(partial(self._cancel, session))
        task = self._loop.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def all(self) -> list[asyncio.Task[None]]:
        """Return the tasks that run."""
        return [task for tasks in self._by_session.values() for task in tasks]

    def _cancel(self, session: Session) -> None:
        for task in self._by_session.pop(session):
            task.cancel()
