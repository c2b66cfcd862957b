"""A daemon that dies at one point of a step of its spool: ``planted_spool.py DB SOCKET SPOOL QUEUE POINT HOW``.

HOW is ``exit``, ``kill`` or ``power``.

Each point is a place between two effects of the taker on the world: on the folder, or on the daemon's file. They are
planted around the functions of `os` that change the folder, the steps of `QueueFolder`, and the one request.

``power`` also undoes what a loss of power may undo: a rename, until one of its folders was synced, and every removal.
A file system's journal makes the two sides of a rename durable together.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from eoq.client.aio import connect_async
from eoq.daemon import main
from eoq.daemon.services import spool_folder
from eoq.daemon.services.spool_folder import TOKEN_LENGTH, QueueFolder
from eoq.transport.aio_channel import AsyncChannel
from eoq.transport.aio_connection import AsyncConnection

POINTS: Final = (
    "before looking",
    "a file is moved",
    "all are moved",
    "one folder is synced",
    "both are synced",
    "files are read",
    "the reason is written",
    "one is rejected",
    "the request has left",
    "the daemon has committed",
    "after the reply",
    "a file is removed",
    "all are removed",
    "after the second step",
)
"""In their order. Up to ``one is rejected`` the daemon has nothing."""

database, socket, spool, queue, point, how = sys.argv[1:] if __name__ == "__main__" else [""] * 6
folder = Path(spool) / queue
taking = folder / ".taking"
renamed: dict[str, str] = {}
"""What stands in ``.taking`` now, and its old names, as long as that is not synced."""
removed: dict[str, bytes] = {}
steps = 0


def reached(name: str) -> None:
    """Dies if this is the point."""
    if name != point:
        return
    if how == "power":
        _lose_power()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)


def _lose_power() -> None:
    for file, content in removed.items():
        (taking / file).write_bytes(content)
    for file, name in renamed.items():
        move(taking / file, folder / name)


move: Final = os.rename
_fsync: Final = os.fsync
_unlink: Final = os.unlink


def _renaming(source: Any, target: Any, **folders: Any) -> None:
    move(source, target, **folders)
    if folders and os.path.samestat(os.fstat(folders["dst_dir_fd"]), taking.stat()):
        renamed[target] = renamed.pop(source, source)
        reached("a file is moved")
    elif folders:
        reached("one is rejected")


def _syncing(descriptor: int) -> None:
    found = os.fstat(descriptor)
    if taking.exists() and os.path.samestat(found, taking.stat()):
        reached("all are moved")
        _fsync(descriptor)
        renamed.clear()
        reached("one folder is synced")
    else:
        _fsync(descriptor)
        if os.path.samestat(found, folder.stat()):
            reached("both are synced")


def _unlinking(name: Any, **folders: Any) -> None:
    if folders and os.path.samestat(os.fstat(folders["dir_fd"]), taking.stat()):
        removed[name] = (taking / name).read_bytes()
        _unlink(name, **folders)
        reached("a file is removed")
    else:
        _unlink(name, **folders)


def _look(look: Callable[..., bool]) -> Callable[..., bool]:
    def looking(*arguments: Any) -> bool:
        reached("before looking")
        return look(*arguments)

    return looking


def _take(take: Callable[..., Any]) -> Callable[..., Any]:
    def taking_files(*arguments: Any) -> Any:
        batch = take(*arguments)
        if batch:
            reached("files are read")
        return batch

    return taking_files


def _remove(remove: Callable[..., None]) -> Callable[..., None]:
    def removing(*arguments: Any) -> None:
        global steps
        remove(*arguments)
        steps += 1
        reached("all are removed" if steps == 1 else "after the second step")

    return removing


def _write_reason(write: Callable[..., None]) -> Callable[..., None]:
    def writing(*arguments: Any) -> None:
        write(*arguments)
        reached("the reason is written")

    return writing


def _start(start: Callable[..., Any]) -> Callable[..., Any]:
    async def starting(connection: AsyncConnection, requests: Any, seconds: float) -> Any:
        replies = await start(connection, requests, seconds)
        if requests[0]["op"] == "settle":
            reached("the request has left")
        return replies

    return starting


def _run(run: Callable[..., Any]) -> Callable[..., Any]:
    async def running(channel: AsyncChannel, call: Any) -> Any:
        if call.fields["op"] != "settle":
            return await run(channel, call)
        request = asyncio.create_task(run(channel, call))
        if point == "the daemon has committed":
            # Another connection tells; the reply to the first is never looked at.
            async with connect_async(channel.path) as other:
                while not (await other.ask("peek", queue=queue))["messages"]:  # noqa: ASYNC110 # no event tells of the daemon's file
                    await asyncio.sleep(0)
            reached("the daemon has committed")
        reply = await request
        reached("after the reply")
        return reply

    return running


def plant() -> None:
    """Puts the points around what is real."""
    if taking.exists():  # another daemon was killed before it had synced
        renamed.update({path.name: path.name[TOKEN_LENGTH + 1 :] for path in taking.iterdir()})
    for owner, name, planted in (
        (os, "rename", lambda _: _renaming),
        (os, "fsync", lambda _: _syncing),
        (os, "unlink", lambda _: _unlinking),
        (QueueFolder, "look", _look),
        (QueueFolder, "take", _take),
        (QueueFolder, "remove", _remove),
        (spool_folder, "_write_reason", _write_reason),
        (AsyncConnection, "start", _start),
        (AsyncChannel, "run", _run),
    ):
        setattr(owner, name, planted(getattr(owner, name)))


if __name__ == "__main__":
    plant()
    main.run(main.Settings(Path(database), Path(socket), spool=Path(spool)), lambda _: None)
