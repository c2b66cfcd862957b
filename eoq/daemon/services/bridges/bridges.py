"""The bridges inside the daemon: each forward and each ingest of the configuration runs in a process of its own.

So a bridge that is busy does not stall the daemon, and one that fails does not end it. The driver of the database is
loaded there, and not here.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from ...config.model import Config
from .process import BridgeProcess, Entry

log = logging.getLogger("eoq.bridge")


class Bridges:
    """The bridges of the daemon on ``socket``."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._running: dict[Entry, tuple[BridgeProcess, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """The tasks of all bridges, also of those that are about to end."""

    def follow(self, _old: Config, new: Config) -> None:
        """Start the bridges that are new in the configuration, and end those that it no longer has."""
        wanted: dict[Entry, None] = dict.fromkeys([*new.forward, *new.ingest])
        for entry in [entry for entry in self._running if entry not in wanted]:
            self._running.pop(entry)[1].cancel()
        for entry in wanted:
            if entry not in self._running:
                bridge = BridgeProcess(entry, self._socket)
                task = asyncio.get_running_loop().create_task(bridge.run())
                self._running[entry] = bridge, task
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def describe(self) -> dict[str, Any]:
        """Return what ``status`` says of the bridges, if there are any."""
        bridges = [self._running[entry][0].state for entry in self._running]
        return {"bridges": bridges} if bridges else {}

    async def stop(self) -> None:
        """End all bridges. What they had in hand stays in its queue, or claimed for the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a bridge failed because of a fault in eoq; restart the daemon", exc_info=error)
