"""Reading the configuration again, on SIGHUP and when its file changes: all of it is used, or nothing.

    wait → read and check, in a thread → replace → call the listeners

A file that is wrong or missing is logged and changes nothing. A wake-up is a hint: only a file with other settings than
before is a change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from ...errors import EoqError
from ...system.watch import watch_file
from .loader import load
from .model import Config, LiveConfig
from .toml_text import to_key, to_text

log = logging.getLogger("eoq.daemon")

Listener: TypeAlias = Callable[[Config, Config], None]
"""Called with the old and the new configuration after the new one has replaced the old."""

QUIET_SECONDS: Final = 0.1
"""How long the file must stay unchanged before it is read, since a program may still be writing it."""
LONGEST_QUIET: Final = 2.0
"""After how long a file is read though it keeps changing."""
SWEEP_SECONDS: Final = 60.0
"""How often the file is read without a wake-up."""
MAX_LOGGED: Final = 100
"""How many changes of one reload are logged."""
NOT_SET: Final = "not set"


class Reloader:
    """The reader of the file at ``path``, if there is one, which keeps a live configuration equal to it."""

    def __init__(self, path: Path | None, live: LiveConfig) -> None:
        self.listeners: list[Listener] = []
        self._path = path
        self._live = live
        self._read_at = time.time()
        self._error: str | None = None
        self._woken = asyncio.Event()
        self._asked = False

    def ask(self) -> None:
        """Read the file now, because of SIGHUP, and log the outcome in any case."""
        if self._path is None:
            log.info("SIGHUP: the daemon was started without a configuration, so there is nothing to read again")
        self._asked = True
        self._woken.set()

    def describe(self) -> dict[str, Any]:
        """Return what ``status`` says: the file, when it was last read without an error, and its error now."""
        return {
            "config": None if self._path is None else str(self._path),
            "config_read_at": None if self._path is None else self._read_at,
            "config_error": self._error,
        }

    async def run(self) -> None:
        """Follow the file until this task is cancelled. An error does not end it: the error is logged."""
        if self._path is None:
            return
        watching = asyncio.create_task(watch_file(self._path, self._woken.set, SWEEP_SECONDS))
        try:
            while True:
                await self._woken.wait()
                if not self._asked:
                    await self._quiet()
                asked, self._asked = self._asked, False
                self._woken.clear()
                try:
                    await self._reload(self._path, asked)
                except Exception:
                    log.exception("the configuration %s could not be read again; the former settings stay", self._path)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _quiet(self) -> None:
        """Wait until there was no wake-up for `QUIET_SECONDS`, or the operator has sent SIGHUP."""
        deadline = time.monotonic() + LONGEST_QUIET
        while self._woken.is_set() and not self._asked and time.monotonic() < deadline:
            self._woken.clear()
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _reload(self, path: Path, asked: bool) -> None:
        try:
            new = await asyncio.to_thread(load, path)
        except EoqError as error:
            if asked or str(error) != self._error:
                log.error("%s\n  nothing of it is used; the former settings stay", error)
            self._error = str(error)
            return
        was_wrong, self._error = self._error is not None, None
        self._read_at = time.time()
        old = self._live.config
        if new == old and _order(new) == _order(old):
            if asked or was_wrong:
                log.info("%s: read again; nothing has changed", path)
            return
        lines = list(changes(old, new)) or ["the order of sections or entries"]
        self._live.replace(new)
        shown = lines if len(lines) <= MAX_LOGGED else [*lines[:MAX_LOGGED], f"and {len(lines) - MAX_LOGGED} more"]
        log.info("%s: read again; changes: %d%s", path, len(lines), "".join(f"\n  {line}" for line in shown))
        if old.daemon != new.daemon:
            log.warning("what has changed in [daemon] takes effect after a restart")
        for listener in self.listeners:
            try:
                listener(old, new)
            except Exception:
                log.exception("a part of the daemon could not apply the new configuration; restart the daemon")


def _order(config: Config) -> list[str]:
    """Return the patterns in the order in which they count, which a comparison of tables leaves out."""
    return [*config.queues, *config.permissions.order]


def changes(old: Config, new: Config) -> Iterator[str]:
    """Yield the differences, one a line: ``queues.mail.retention: 604800 → 86400``."""
    before, after = dict(_entries(old)), dict(_entries(new))
    for place in before | after:
        was, now = before.get(place, NOT_SET), after.get(place, NOT_SET)
        if was == NOT_SET and not now:
            yield f"{place}: added"
        elif now == NOT_SET and not was:
            yield f"{place}: removed"
        elif was != now:
            yield f"{place}: {was} → {now}"


def _entries(config: Config) -> Iterator[tuple[str, str]]:
    """Yield all places of a configuration with their values. An entry of a list is a place without a value."""
    for field in msgspec.structs.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            for entry in value:
                yield f"[[{field.name}]] {to_text(entry)}", ""
        elif isinstance(value, dict):
            for pattern, section in value.items():
                for name, setting in section.items():
                    yield to_key(field.name, pattern, name), to_text(setting)
        else:
            for name, setting in msgspec.structs.asdict(value).items():
                if setting is not None:
                    yield f"{field.name}.{name}", to_text(setting)
