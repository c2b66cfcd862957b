"""Reading the configuration again, on SIGHUP and when its file has changed: all of it counts, or nothing.

    wait → read and check, in a thread → replace → tell those who act on it

A file that is wrong, or gone, is reported and changes nothing. A wake-up is a hint: what counts is whether the file
says something else than before.
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
from .loader import load, name_in, shown
from .model import Config, LiveConfig

log = logging.getLogger("eoq.daemon")

Listener: TypeAlias = Callable[[Config, Config], None]
"""Told of the old and the new configuration once the new one counts."""

QUIET_SECONDS: Final = 0.1
"""How long the file must not have changed before it is read: a writer may be in the middle."""
LONGEST_QUIET: Final = 2.0
"""How long a file that changes all the time is waited for."""
SWEEP_SECONDS: Final = 60.0
"""How often to look without having been woken."""
MAX_TOLD: Final = 100
"""Changes that are logged of one reload."""
NOT_SET: Final = "not set"


class Reloader:
    """Keeps ``current`` as the file at ``path`` says; None is no file."""

    def __init__(self, path: Path | None, current: LiveConfig) -> None:
        self.listeners: list[Listener] = []
        self._path = path
        self._current = current
        self._read_at = time.time()
        self._error: str | None = None
        self._woken = asyncio.Event()
        self._asked = False

    def ask(self) -> None:
        """A person wants the file to be read now (SIGHUP), and to be told what came of it."""
        if self._path is None:
            log.info("SIGHUP: no configuration was named or found at the start, so there is nothing to read again")
        self._asked = True
        self._woken.set()

    def describe(self) -> dict[str, Any]:
        """For ``status``: the file, when it was last read and right, and what is wrong with it now."""
        return {
            "config": None if self._path is None else str(self._path),
            "config_read_at": None if self._path is None else self._read_at,
            "config_error": self._error,
        }

    async def run(self) -> None:
        """Follows the file until it is cancelled. Whatever goes wrong is logged, and outlived."""
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
                    log.exception("the configuration %s could not be read again; the settings before stay", self._path)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _quiet(self) -> None:
        """Waits until nothing has woken for a while, or somebody asks."""
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
                log.error("%s\n  nothing of it counts; the settings before it stay", error)
            self._error = str(error)
            return
        mended, self._error = self._error is not None, None
        self._read_at = time.time()
        old = self._current.config
        if new == old and list(new.queues) == list(old.queues):
            if asked or mended:
                log.info("%s: read again; nothing has changed", path)
            return
        told = list(changes(old, new)) or ["the order of sections or entries"]
        self._current.replace(new)
        log.info("%s: read again; changes: %d", path, len(told))
        for line in told[:MAX_TOLD]:
            log.info("  %s", line)
        if len(told) > MAX_TOLD:
            log.info("  and %d more", len(told) - MAX_TOLD)
        if old.daemon != new.daemon:
            log.warning("what has changed in [daemon] takes effect after a restart")
        for listener in self.listeners:
            try:
                listener(old, new)
            except Exception:
                log.exception("a part of the daemon could not follow the new configuration; restart it")


def changes(old: Config, new: Config) -> Iterator[str]:
    """What ``new`` says that ``old`` did not, one thing a line: ``queues.mail.retention: 604800 → 86400``."""
    before, after = dict(_said(old)), dict(_said(new))
    for place in before | after:
        was, now = before.get(place, NOT_SET), after.get(place, NOT_SET)
        if was == NOT_SET and not now:
            yield f"{place}: added"
        elif now == NOT_SET and not was:
            yield f"{place}: removed"
        elif was != now:
            yield f"{place}: {was} → {now}"


def _said(config: Config) -> Iterator[tuple[str, str]]:
    """All that a configuration says, as places and values; an entry of a list is a place without a value."""
    for field in msgspec.structs.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            for entry in value:
                yield f"[[{field.name}]] {shown(entry)}", ""
        elif isinstance(value, dict):
            for pattern, section in value.items():
                for name, setting in section.items():
                    yield name_in(name_in(field.name, pattern), name), shown(setting)
        else:
            for name, setting in msgspec.structs.asdict(value).items():
                if setting is not None:
                    yield f"{field.name}.{name}", shown(setting)
