"""The relays inside the daemon: they send the outboxes that the configuration names."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.model import Config
from ..config.settings import resend_within

if TYPE_CHECKING:
    from ...client.aio import AsyncClient
    from ...outbox.relay import Relay

log = logging.getLogger("eoq.daemon")


class Relays:
    """The relays over the daemon's own ``socket``. Paths in the configuration are relative to ``folder``."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self._socket = socket
        self._folder = folder
        self._resend_within = math.inf
        self._running: dict[Path, tuple[Relay, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """The tasks of all relays, also of those that are about to end."""

    def follow(self, _old: Config, new: Config) -> None:
        """Start the relays that are new in the configuration, and end those that it no longer has. The others go on."""
        wanted = dict.fromkeys(self._folder / relay.path for relay in new.relay)
        for path in [path for path in self._running if path not in wanted]:
            self._running.pop(path)[1].cancel()
        # A longer retention does not make it longer, because it does not bring back the ids that were forgotten under
        # the shorter one.
        self._resend_within = min(self._resend_within, resend_within(new.shortest_retention))
        for relay, _ in self._running.values():
            relay.resend_within = self._resend_within
        for path in wanted:
            if path not in self._running:
                self._start(path)

    async def stop(self) -> None:
        """End all relays. The next daemon sends the messages that they had not finished, under the same ids."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, path: Path) -> None:
        from ...client.aio import connect_async
        from ...outbox.relay import Relay

        client = connect_async(self._socket)
        relay = Relay(path, client, resend_within=self._resend_within)
        task = asyncio.get_running_loop().create_task(_run(relay, client))
        self._running[path] = relay, task
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, path))

    def _ended(self, path: Path, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault in eoq: an error of the file or of the daemon does not end a relay.
            log.error("the relay of %s failed because of a fault in eoq; restart the daemon", path, exc_info=error)


async def _run(relay: Relay, client: AsyncClient) -> None:
    """Send an application's outbox, until this task is cancelled."""
    async with client:
        await relay.run()
