"""The daemon's configuration file: TOML, checked as a whole before anything of it counts.

[queues."mail.*"]        # a name, or a pattern with * ? [...]
retention = 86400        # any setting of `QueueSettings`; of the patterns that fit, the first that has it counts

[[relay]]
path = "shop.db"         # an application's file whose outbox is sent; relative to this file's folder

[[schedule]]             # the fields of `requests.Schedule`: what `eoq schedule add` takes
name = "report"
queue = "reports"
cron = "30 6 * * MON-FRI"
timezone = "Europe/Berlin"
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..errors import EoqError, InvalidRequest
from .requests import Schedule, new_schedule
from .schedule_table import MAX_SCHEDULES
from .settings import RETENTION, QueueSettings


class RelayConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """An application's file whose outbox the daemon sends."""

    path: Annotated[str, Meta(min_length=1)]


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file. Without one, all is as by default."""

    queues: dict[str, dict[str, Any]] = {}
    relay: list[RelayConfig] = []
    schedule: Annotated[list[Schedule], Meta(max_length=MAX_SCHEDULES)] = []

    def __post_init__(self) -> None:
        for pattern, section in self.queues.items():
            try:
                msgspec.convert(section, QueueSettings)
            except msgspec.ValidationError as error:
                raise msgspec.ValidationError(f'[queues."{pattern}"]: {error}') from error
        names = set()
        for schedule in self.schedule:
            try:
                new_schedule(schedule, time.time())
            except EoqError as error:
                raise msgspec.ValidationError(f"[[schedule]] {schedule.name}: {error}") from error
            if schedule.name in names:
                raise msgspec.ValidationError(f"[[schedule]] {schedule.name}: the name stands there twice")
            names.add(schedule.name)

    @property
    def shortest_retention(self) -> float:
        """Seconds; the least of all queues."""
        return min([RETENTION, *(float(section.get("retention", RETENTION)) for section in self.queues.values())])

    def queue(self, name: str, defaults: Mapping[str, Any] | None = None) -> QueueSettings:
        """What holds for the queue ``name``; ``defaults`` stand for what the file does not say."""
        merged = dict(defaults or {})
        for pattern, section in reversed(self.queues.items()):
            if fnmatchcase(name, pattern):
                merged.update(section)
        return msgspec.convert(merged, QueueSettings)


class Current:
    """The configuration that counts now, and what it says of each queue."""

    def __init__(self, config: Config, defaults: Mapping[str, Any] | None = None) -> None:
        self._defaults = defaults or {}
        self.replace(config)

    def replace(self, config: Config) -> None:
        """From now on ``config`` counts."""
        self.config = config
        self._queues: dict[str, QueueSettings] = {}

    def queue(self, name: str) -> QueueSettings:
        """What holds for the queue ``name`` now."""
        settings = self._queues.get(name)
        if settings is None:
            # As many as there can be queues: the daemon makes no more.
            settings = self._queues[name] = self.config.queue(name, self._defaults)
        return settings


def load(path: Path) -> Config:
    """The configuration in ``path``; raises `InvalidRequest`, which says what is wrong with it and where."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Config)
    except OSError as error:
        raise InvalidRequest(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the configuration {path} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the configuration {path} is wrong: {error}") from error
