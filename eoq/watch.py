"""Being woken by writes to a SQLite file, whoever writes.

What is watched is the file's folder, never the file: closing a descriptor of a database drops all locks that SQLite
has on it in this process. A wake-up is a hint: it may come for nothing, and it may be lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from watchfiles import Change, awatch

log = logging.getLogger("eoq.watch")

STEP_MS: Final = 1
DEBOUNCE_MS: Final = 5
"""A commit is a few writes; they are waited for so long at most."""
REWATCH_SECONDS: Final = 5.0
"""How long until a folder that cannot be watched is tried again."""


async def watch_database(path: Path, wake: Callable[[], object], sweep: float) -> None:
    """Calls ``wake`` after writes to the database at ``path``, and every ``sweep`` seconds; without end.

    Also when it begins to watch, and so after any time that it could not. Follows symbolic links, and a folder that
    is replaced or comes back.
    """
    said = ""
    while True:
        try:
            real = path.resolve()
            folder = real.parent.stat()
            names = {real.name + suffix for suffix in ("", "-wal", "-journal")}

            def is_ours(_change: Change, changed: str, names: set[str] = names) -> bool:
                return Path(changed).name in names

            changes = awatch(
                real.parent,
                watch_filter=is_ours,
                recursive=False,
                step=STEP_MS,
                debounce=DEBOUNCE_MS,
                rust_timeout=int(sweep * 1000),
                yield_on_timeout=True,
            )
            # Runs when this task first waits, which is when the folder is watched: nothing before it is missed.
            asyncio.get_running_loop().call_soon(wake)
            async with aclosing(changes):
                async for _ in changes:
                    wake()
                    now = path.resolve()
                    if now != real or not _same(now.parent.stat(), folder):
                        break
        except (OSError, RuntimeError) as error:
            # RuntimeError: watchfiles has no name for some failures, such as a limit on watches.
            if str(error) != said:
                said = str(error)
                log.warning("%s cannot be watched: %s; looking every %g s", path.parent, error, REWATCH_SECONDS)
            await asyncio.sleep(REWATCH_SECONDS)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
