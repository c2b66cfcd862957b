"""The contents of the configuration file, and what they mean for a queue. ``loader.py`` reads and checks the file.

[daemon]                 # a flag or a variable of the environment takes precedence
socket = "eoq.sock"      # paths are relative to this file's folder

[queues."mail.*"]        # a name, or a pattern with * ? [...]
retention = 86400        # any setting of `QueueSettings`; the first pattern that matches and has it counts

[metrics]
listen = "127.0.0.1:9464"  # or a path of a Unix socket: where GET /metrics is answered; nowhere by default

[permissions.queues."pay.*"]  # who may do what: see ``access.py``
send = ["www-data", "@web"]

[[relay]]
path = "shop.db"         # an application's file whose outbox is sent

[[forward]]
queue = "payments"       # or a pattern: the messages of these queues go to other machines
to = "postgresql://eoq@db/shop"  # or to_env: the variable that has the URL

[[ingest]]
queue = "payments"       # its messages come from other machines
from = "postgresql://eoq@db/shop"
as = "till-3"            # the name of this machine

[[bind]]
topic = "orders"         # messages of this topic go to this queue, if they have these headers
queue = "mail.orders"
headers = { country = "de" }

[[schedule]]             # the fields of `requests.Schedule`: what `eoq schedule add` takes
name = "report"
queue = "reports"
cron = "30 6 * * MON-FRI"
timezone = "Europe/Berlin"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from ...protocol.durations import read_duration
from ...protocol.limits import QUEUE_PATTERN
from ..requests import Schedule
from .access import AccessConfig
from .patterns import MAX_SECTIONS, QueuePattern, matches
from .settings import RETENTION, QueueSettings, StorageSettings

MAX_RELAYS: Final = 100
MAX_BRIDGES: Final = 20
"""How many queues are forwarded, and how many ingested. Each has a process of its own."""
MAX_REMEMBERED: Final = 20_000
"""For how many queues the settings are kept in memory."""
_PORT: Final = r"(?:[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
_LISTEN: Final = (
    rf"^(?:(?:127\.\d{{1,3}}\.\d{{1,3}}\.\d{{1,3}}|\[::1\]):{_PORT}|[^~:\x00-\x1f\x7f][^:\x00-\x1f\x7f]*)\Z"
)

KEEP: Final = "how long ids are remembered, such as 30d"
PATH: Final = "a path without `~` and control characters"
FilePath = Annotated[
    str,
    Meta(min_length=1, max_length=1000, pattern=r"^[^~\x00-\x1f\x7f][^\x00-\x1f\x7f]*\Z", description=PATH),
]
OptionalPath = Annotated[FilePath | None, Meta(description=PATH)]
Name = Annotated[
    str, Meta(pattern=QUEUE_PATTERN, description="a name of letters, digits and . _ -, with at most 128 characters")
]
Url = Annotated[str, Meta(min_length=1, max_length=1000)]
"""Without a pattern: its error would show the value, which may have a password. `contradictions` checks it."""
PartitionCount = Annotated[int, Meta(ge=1, le=256, description="into how many partitions a stream divides the queue")]
HeaderText = Annotated[str, Meta(max_length=1000)]


class DaemonConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """Where the daemon's files are. A change takes effect at the next start."""

    db: OptionalPath = None
    socket: OptionalPath = None
    spool: OptionalPath = None
    socket_mode: Annotated[
        Annotated[str, Meta(pattern=r"^0?[67][0-7]{2}\Z")] | None,
        Meta(description='who may connect, as chmod has it: "0600", "0660" or "0666"'),
    ] = None
    socket_group: Annotated[
        Annotated[str, Meta(pattern=r"^[^\s@*:/]{1,100}\Z")] | None, Meta(description="the group of the socket")
    ] = None


class MetricsConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """Where the daemon answers ``GET /metrics``."""

    listen: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1000, pattern=_LISTEN)] | None,
        Meta(description="a loopback address such as 127.0.0.1:9464, or the path of a Unix socket without `:`"),
    ] = None


def loopback_of(listen: str) -> tuple[str, int] | None:
    """Return the host and the port of an address, or None for the path of a Unix socket."""
    host, colon, port = listen.rpartition(":")
    return (host.strip("[]"), int(port)) if colon else None


class RelayConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """An application's file whose outbox the daemon sends."""

    path: FilePath


class ForwardConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """A queue, or all that match a pattern, whose messages go to other machines.

    Either ``to`` or ``to_env`` names the engine between them.
    """

    queue: QueuePattern
    to: Url | None = None
    to_env: Url | None = None
    results: bool = False
    partitions: PartitionCount | None = None

    @property
    def place(self) -> tuple[str | None, str | None]:
        """The URL of the engine, or the variable that has it."""
        return self.to, self.to_env


class IngestConfig(
    Struct, forbid_unknown_fields=True, frozen=True, rename={"source": "from", "source_env": "from_env", "name": "as"}
):
    """A queue whose messages come from other machines. Either ``from`` or ``from_env`` names the engine."""

    queue: Name
    source: Url | None = None
    source_env: Url | None = None
    name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | None, Meta(description="the name of this machine")
    ] = None
    limit: Annotated[int, Meta(ge=1, le=1_000_000, description="messages that are claimed or unsettled here")] = 1000
    keep: Annotated[float | str, Meta(description=KEEP)] = "30d"
    results: bool = False
    partitions: PartitionCount | None = None
    partition: Annotated[
        Annotated[str, Meta(pattern=r"^\d{1,3}(?:-\d{1,3})?(?:,\d{1,3}(?:-\d{1,3})?)*\Z")] | None,
        Meta(description='the partitions of this machine in a stream, such as "0-3"'),
    ] = None

    @property
    def keep_seconds(self) -> float:
        """For how many seconds ids are remembered. Raises `InvalidRequest` if that is no duration."""
        return read_duration(self.keep)

    @property
    def place(self) -> tuple[str | None, str | None]:
        """The URL of the engine, or the variable that has it."""
        return self.source, self.source_env


class BindConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """A queue that gets the messages of a topic, if they have all of ``headers``."""

    topic: Name
    queue: Name
    headers: Annotated[
        dict[Annotated[HeaderText, Meta(min_length=1)], HeaderText],
        Meta(max_length=64, description="a table of short texts"),
    ] = {}


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file. ``queues`` has, by pattern, the settings of `QueueSettings` that the section names."""

    daemon: DaemonConfig = DaemonConfig()
    storage: StorageSettings = StorageSettings()
    metrics: MetricsConfig = MetricsConfig()
    permissions: AccessConfig = AccessConfig()
    queues: Annotated[
        dict[str, dict[str, Any]], Meta(max_length=MAX_SECTIONS, description='tables like [queues."mail.*"]')
    ] = {}
    relay: Annotated[list[RelayConfig], Meta(max_length=MAX_RELAYS, description="tables, each under [[relay]]")] = []
    forward: Annotated[
        list[ForwardConfig], Meta(max_length=MAX_BRIDGES, description="tables, each under [[forward]]")
    ] = []
    ingest: Annotated[
        list[IngestConfig], Meta(max_length=MAX_BRIDGES, description="tables, each under [[ingest]]")
    ] = []
    bind: Annotated[list[BindConfig], Meta(max_length=MAX_SECTIONS, description="tables, each under [[bind]]")] = []
    schedule: Annotated[
        list[Schedule], Meta(max_length=MAX_SECTIONS, description="tables, each under [[schedule]]")
    ] = []

    @property
    def retentions(self) -> tuple[tuple[str, float], ...]:
        """Each pattern whose section names a retention, with the seconds, and last the one of all other queues."""
        given = [(pattern, section.get("retention")) for pattern, section in self.queues.items()]
        return (*((pattern, float(seconds)) for pattern, seconds in given if seconds is not None), ("*", RETENTION))

    @property
    def shortest_retention(self) -> float:
        """The shortest retention of all queues, in seconds."""
        return min(seconds for _, seconds in self.retentions)

    @property
    def shortest_kept(self) -> float:
        """The shortest time for which ids, results or dead letters of a queue are kept, in seconds."""
        return self._shortest("retention", "result_retention", "dead_retention")

    def _shortest(self, *names: str) -> float:
        given = [section[name] for section in self.queues.values() for name in names if name in section]
        return min([RETENTION, *(float(seconds) for seconds in given if seconds is not None)])

    def origins(self, name: str) -> dict[str, str]:
        """Return where the file sets something for a queue: by setting, the pattern of the section that counts."""
        origins: dict[str, str] = {}
        for pattern, section in self.queues.items():
            if matches(name, pattern):
                for setting in section:
                    origins.setdefault(setting, pattern)
        return origins

    def queue(self, name: str, overrides: Mapping[str, Any] | None = None) -> QueueSettings:
        """Return the settings of a queue. ``overrides`` take precedence over the file."""
        values = {setting: self.queues[pattern][setting] for setting, pattern in self.origins(name).items()}
        return QueueSettings(**{**values, **(overrides or {})})


class LiveConfig:
    """The configuration that is in force. ``overrides`` are settings of all queues, from flags and variables."""

    def __init__(self, config: Config, overrides: Mapping[str, Any] | None = None) -> None:
        self._overrides = overrides or {}
        self.replace(config)

    @property
    def config(self) -> Config:
        """The configuration that is in force."""
        return self._now[0]

    def replace(self, config: Config) -> None:
        """Put ``config`` in force."""
        queues: dict[str, QueueSettings] = {}
        # One assignment for both, since threads read them meanwhile. Settings of the old configuration stay with it.
        self._now = config, queues

    def queue(self, name: str) -> QueueSettings:
        """Return the settings that the queue ``name`` has now."""
        config, queues = self._now
        settings = queues.get(name)
        if settings is None:
            if len(queues) >= MAX_REMEMBERED:
                queues.clear()  # a client asks for many queues that do not exist
            settings = queues[name] = config.queue(name, self._overrides)
        return settings
