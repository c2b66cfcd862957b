"""What the daemon's configuration file can say, and what it means for a queue. ``config_file.py`` reads and checks it.

[daemon]                 # what a flag or a variable does not say
socket = "eoq.sock"      # paths are relative to this file's folder

[queues."mail.*"]        # a name, or a pattern with * ? [...]
retention = 86400        # any setting of `QueueSettings`; of the patterns that fit, the first that has it counts

[[relay]]
path = "shop.db"         # an application's file whose outbox is sent

[[bind]]
topic = "orders"         # what is sent to this topic goes to this queue, if it has these headers
queue = "mail.orders"
headers = { country = "de" }

[[schedule]]             # the fields of `requests.Schedule`: what `eoq schedule add` takes
name = "report"
queue = "reports"
cron = "30 6 * * MON-FRI"
timezone = "Europe/Berlin"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from ...protocol.limits import QUEUE_PATTERN
from ..requests import Schedule
from .settings import RETENTION, QueueSettings, StorageSettings

MAX_SECTIONS: Final = 1000
"""Patterns of queues, bindings, and schedules."""
MAX_RELAYS: Final = 100
MAX_REMEMBERED: Final = 20_000
"""Queues whose settings are kept as they were put together."""
MAX_PATTERN: Final = 200
"""Characters of a pattern of queues."""
PATTERN: Final = re.compile(
    r"(?:[A-Za-z0-9*?]|\[[A-Za-z0-9._!-][A-Za-z0-9._-]*\])(?:[A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._-]+\])*"
)
"""The patterns that a queue's name can fit."""

FilePath = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1000,
        pattern=r"^[^~\x00-\x1f\x7f][^\x00-\x1f\x7f]*\Z",
        description="a path, written out (`~` is not expanded) and of at most 1000 characters",
    ),
]
Name = Annotated[
    str, Meta(pattern=QUEUE_PATTERN, description="a name of letters, digits and . _ -, with at most 128 characters")
]
HeaderText = Annotated[str, Meta(max_length=1000, description="a text of at most 1000 characters")]


class DaemonConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """Where the daemon's files are. Counts at its start only."""

    db: FilePath | None = None
    socket: FilePath | None = None
    spool: FilePath | None = None


class RelayConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """An application's file whose outbox the daemon sends."""

    path: FilePath


class BindConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """A queue that gets what is sent to a topic, where a message has all of ``headers``."""

    topic: Name
    queue: Name
    headers: Annotated[
        dict[Annotated[HeaderText, Meta(min_length=1)], HeaderText],
        Meta(max_length=64, description="a table of at most 64 texts"),
    ] = {}


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file. Without one, all is as by default."""

    daemon: DaemonConfig = DaemonConfig()
    storage: StorageSettings = StorageSettings()
    queues: Annotated[
        dict[str, dict[str, Any]],
        Meta(max_length=MAX_SECTIONS, description="at most 1000 sections, like [queues.mail]"),
    ] = {}
    """By pattern: those settings of `QueueSettings` that the section has."""
    relay: Annotated[
        list[RelayConfig], Meta(max_length=MAX_RELAYS, description="at most 100 tables, each under [[relay]]")
    ] = []
    bind: Annotated[
        list[BindConfig], Meta(max_length=MAX_SECTIONS, description="at most 1000 tables, each under [[bind]]")
    ] = []

    schedule: Annotated[
        list[Schedule], Meta(max_length=MAX_SECTIONS, description="at most 1000 tables, each under [[schedule]]")
    ] = []

    @property
    def shortest_retention(self) -> float:
        """Seconds; the least of all queues."""
        return min([RETENTION, *(float(section.get("retention", RETENTION)) for section in self.queues.values())])

    def origins(self, name: str) -> dict[str, str]:
        """What the file says of the queue ``name``: by setting, the pattern of the section that counts."""
        origins: dict[str, str] = {}
        for pattern, section in self.queues.items():
            if fits(name, pattern):
                for setting in section:
                    origins.setdefault(setting, pattern)
        return origins

    def queue(self, name: str, overrides: Mapping[str, Any] | None = None) -> QueueSettings:
        """What holds for the queue ``name``; ``overrides`` count before the file."""
        said = {setting: self.queues[pattern][setting] for setting, pattern in self.origins(name).items()}
        return QueueSettings(**{**said, **(overrides or {})})


def fits(name: str, pattern: str) -> bool:
    """Whether the queue ``name`` is one of those that ``pattern`` means."""
    return _compiled(pattern).match(name) is not None


@lru_cache(MAX_SECTIONS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


class LiveConfig:
    """The configuration that counts now, and what it says of each queue. ``overrides`` are of flags and variables."""

    def __init__(self, config: Config, overrides: Mapping[str, Any] | None = None) -> None:
        self._overrides = overrides or {}
        self.replace(config)

    @property
    def config(self) -> Config:
        """What counts now."""
        return self._now[0]

    def replace(self, config: Config) -> None:
        """From now on ``config`` counts."""
        queues: dict[str, QueueSettings] = {}
        # Together, since threads look things up meanwhile: what the old one said is kept with the old one.
        self._now = config, queues

    def queue(self, name: str) -> QueueSettings:
        """What holds for the queue ``name`` now."""
        config, queues = self._now
        settings = queues.get(name)
        if settings is None:
            if len(queues) >= MAX_REMEMBERED:
                queues.clear()  # somebody asks for queues that are not there
            settings = queues[name] = config.queue(name, self._overrides)
        return settings
