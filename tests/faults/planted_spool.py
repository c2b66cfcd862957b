"""A daemon that dies at one point of a step of its spool: ``planted_spool.py DB SOCKET SPOOL QUEUE POINT HOW``.

HOW is ``exit``, ``kill`` or ``power``.

Each point lies between two effects of the spool reader on the folder or on the daemon's file. The points are planted
around the functions of `os` that change the folder, the methods of `QueueFolder`, and the one request.

``power`` also undoes what a loss of power may undo: a rename until one of its folders is synced, and every removal. The
journal of a file system makes the two sides of a rename durable together.
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
from eoq.daemon.services.spool import spool_files as files
from eoq.daemon.services.spool.spool_files import name_of
from eoq.daemon.services.spool.spool_queue import QueueFolder
from eoq.transport.aio_connection import AsyncConnection

POINTS: Final = (
    "before the scan",
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
"""In their order. Up to ``one is rejected`` the daemon has no message."""

database, socket, spool, queue, point, how = sys.argv[1:] if __name__ == "__main__" else [""] * 6
folder = Path(spool) / queue
claimed = folder / ".taking"
renamed: dict[str, str] = {}
"""The files in ``.taking`` whose move is not synced yet, with their former names."""
removed: dict[str, bytes] = {}
steps = 0


def reached(name: str) -> None:
    """End this process if this is the point."""
    if name != point:
        return
    if how == "power":
        _lose_power()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)


def _lose_power() -> None:
    for file, content in removed.items():
        (claimed / file).write_bytes(content)
    for file, name in renamed.items():
        move(claimed / file, folder / name)


move: Final = os.rename
_fsync: Final = os.fsync
_unlink: Final = os.unlink


def _renaming(source: Any, target: Any, **folders: Any) -> None:
    move(source, target, **folders)
    if folders and os.path.samestat(os.fstat(folders["dst_dir_fd"]), claimed.stat()):
        renamed[target] = renamed.pop(source, source)
        reached("a file is moved")
    elif folders:
        reached("one is rejected")


def _syncing(descriptor: int) -> None:
    found = os.fstat(descriptor)
    if claimed.exists() and os.path.samestat(found, claimed.stat()):
        reached("all are moved")
        _fsync(descriptor)
        renamed.clear()
        reached("one folder is synced")
    else:
        _fsync(descriptor)
        if os.path.samestat(found, folder.stat()):
            reached("both are synced")


def _unlinking(name: Any, **folders: Any) -> None:
    if folders and os.path.samestat(os.fstat(folders["dir_fd"]), claimed.stat()):
        removed[name] = (claimed / name).read_bytes()
        _unlink(name, **folders)
        reached("a file is removed")
    else:
        _unlink(name, **folders)


def _scan(scan: Callable[..., bool]) -> Callable[..., bool]:
    def scanning(*arguments: Any) -> bool:
        reached("before the scan")
        return scan(*arguments)

    return scanning


def _claim(claim: Callable[..., Any]) -> Callable[..., Any]:
    def claiming(*arguments: Any) -> Any:
        batch = claim(*arguments)
        if batch:
            reached("files are read")
        return batch

    return claiming


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


storing: Any = None
"""The replies that the one request waits for."""


def _start(start: Callable[..., Any]) -> Callable[..., Any]:
    async def starting(connection: AsyncConnection, requests: Any, seconds: float) -> Any:
        global storing
        replies = await start(connection, requests, seconds)
        if requests[0]["op"] == "settle":
            storing = replies
            reached("the request has left")
            if point == "the daemon has committed":
                # Another connection tells. The reply to this one is never read.
                async with connect_async(socket) as other:
                    while not (await other.ask("peek", queue=queue))["messages"]:  # noqa: ASYNC110 # no event tells of the daemon's file
                        await asyncio.sleep(0)
                reached("the daemon has committed")
        return replies

    return starting


def _finish(finish: Callable[..., Any]) -> Callable[..., Any]:
    async def finishing(connection: AsyncConnection, replies: Any, seconds: float) -> Any:
        outcome = await finish(connection, replies, seconds)
        if replies is storing:
            reached("after the reply")
        return outcome

    return finishing


def plant() -> None:
    """Replace the functions by ones with points around them."""
    if claimed.exists():  # an earlier daemon was killed before its sync
        renamed.update({path.name: name_of(path.name) for path in claimed.iterdir()})
    for owner, name, planted in (
        (os, "rename", lambda _: _renaming),
        (os, "fsync", lambda _: _syncing),
        (os, "unlink", lambda _: _unlinking),
        (QueueFolder, "scan", _scan),
        (QueueFolder, "claim", _claim),
        (QueueFolder, "remove", _remove),
        (files, "write_reason", _write_reason),
        (AsyncConnection, "start", _start),
        (AsyncConnection, "finish", _finish),
    ):
        setattr(owner, name, planted(getattr(owner, name)))


if __name__ == "__main__":
    plant()
    main.run(main.Settings(Path(database), Path(socket), spool=Path(spool)), lambda _: None)
