"""A relay that dies at one point of a step: ``planted_relay.py FILE SOCKET POINT exit|kill``.

Each point is a place between two effects of the relay on the world: on the daemon, or on the application's file.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from eoq import outbox
from eoq.aio import AsyncClient, connect_async
from eoq.relay import Relay

POINTS: Final = (
    "before reading",
    "after reading",
    "after sending, before the reply",
    "after the reply",
    "before removing",
    "inside the removal, before its commit",
    "after the removal",
)


def main() -> None:
    file, socket, point, how = sys.argv[1:]

    def die() -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(9)

    def planted(name: str) -> Callable[[], None]:
        return die if name == point else lambda: None

    read, remove, run, leave = outbox.read, outbox.remove, AsyncClient._run, outbox._Transaction.__exit__

    def dying_read(*arguments: Any) -> Any:
        planted("before reading")()
        rows = read(*arguments)
        if rows:
            planted("after reading")()
        return rows

    def dying_remove(*arguments: Any) -> None:
        planted("before removing")()
        remove(*arguments)
        planted("after the removal")()

    def dying_leave(*arguments: Any) -> None:
        planted("inside the removal, before its commit")()
        leave(*arguments)

    async def dying_run(client: AsyncClient, call: Any) -> Any:
        if call.fields["op"] == "settle" and point == "after sending, before the reply":
            # Another connection tells when the daemon has done it: the reply to the first is never read.
            asyncio.get_running_loop().create_task(run(client, call))
            async with connect_async(socket) as other:
                while not (await other.ask("queues"))["queues"]:  # noqa: ASYNC110 # no event tells of the daemon's file
                    await asyncio.sleep(0)
            die()
        reply = await run(client, call)
        planted("after the reply")()
        return reply

    outbox.read = dying_read  # type: ignore[assignment] # planted
    outbox.remove = dying_remove  # type: ignore[assignment] # planted
    AsyncClient._run = dying_run  # type: ignore[method-assign,assignment] # planted
    outbox._Transaction.__exit__ = dying_leave  # type: ignore[method-assign] # planted

    async def relay() -> None:
        async with connect_async(socket) as client:
            await Relay(Path(file), client).flush()

    asyncio.run(relay())


if __name__ == "__main__":
    main()
