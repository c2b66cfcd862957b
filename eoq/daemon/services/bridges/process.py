"""One bridge of the daemon, and the process that runs it: `eoq.bridge.child`.

Its standard input stays open as long as it is wanted. It is started again if it ends by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from ....backoff import pauses
from ...config.model import ForwardConfig, IngestConfig

log = logging.getLogger("eoq.bridge")

Entry: TypeAlias = ForwardConfig | IngestConfig

MAX_LINE: Final = 256 * 1024
"""Bytes of a line that a bridge writes, at most."""
LONGEST_PAUSE: Final = 60.0
"""Seconds between two starts of a process that ends by itself, at most."""
END_SECONDS: Final = 2.0
"""How long a process may take to end."""


class BridgeProcess:
    """One bridge, and the process that runs it."""

    def __init__(self, entry: Entry, socket: Path) -> None:
        url, variable = entry.place
        self._task: dict[str, Any] = {
            "direction": "forward" if isinstance(entry, ForwardConfig) else "ingest",
            "queue": entry.queue,
            "socket": str(socket),
            "url": url,
            "variable": variable,
            "results": entry.results,
            "partitions": entry.partitions,
        }
        if isinstance(entry, IngestConfig):
            self._task |= {"partition": entry.partition, "name": entry.name}
            self._task |= {"limit": entry.limit, "keep": entry.keep_seconds}
        self.state: dict[str, Any] = {
            "direction": self._task["direction"],
            "queue": entry.queue,
            "place": None,
            "moved": 0,
            "refused": 0,
            "rate": 0.0,
            "there": None,
            "claimed": None,
            "error": None,
        }
        """What the process has reported last."""

    async def run(self) -> None:
        """Keep the process running, until this task is cancelled."""
        waits = pauses(1.0, LONGEST_PAUSE)
        while True:
            begun = time.monotonic()
            try:
                why = f"ended with status {await self._run_once()}"
            except (OSError, RuntimeError, ValueError, TypeError, LookupError) as error:
                # It cannot be started, was killed before it was told what to do (uvloop), or writes nonsense.
                why = str(error) or repr(error)
            if time.monotonic() > begun + LONGEST_PAUSE:
                waits = pauses(1.0, LONGEST_PAUSE)
            self.state |= {"error": f"its process: {why}", "rate": 0.0}
            pause = next(waits)
            named = self._task["direction"], self._task["queue"]
            log.warning("%s %s: its process: %s; it is started again in %g s", *named, why, pause)
            await asyncio.sleep(pause)

    async def _run_once(self) -> int:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "eoq.bridge.child"),
            stdin=pipe,
            stdout=pipe,
            limit=MAX_LINE,
            start_new_session=True,  # Ctrl-C at the terminal is for the daemon
        )
        if process.stdin is None or process.stdout is None:
            raise OSError("the process has no pipes")
        try:
            process.stdin.write(json.dumps(self._task).encode() + b"\n")
            async for line in process.stdout:
                self._take(line)
            return await process.wait()
        finally:
            process.stdin.close()  # it ends
            await _ended(process)

    def _take(self, line: bytes) -> None:
        said = json.loads(line)
        if "log" in said:
            log.log(int(said["level"]), "%s", said["log"])
        else:
            self.state |= {"there": None, "claimed": None, **said["state"]}


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process, and kill it if it takes long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
            return
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
