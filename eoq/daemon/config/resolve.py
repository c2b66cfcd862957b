"""The settings that a daemon starts with. Each is the first of flag, variable, file and default that has a value.

Each value has its source with it. So `eoq config show` prints exactly what `eoq daemon` would use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ...errors import InvalidRequest
from ...protocol.paths import config_path, database_path, socket_path, spool_path
from .access import QueueAccess
from .loader import load
from .model import Config
from .settings import QueueSettings
from .toml_text import to_key

DEFAULT: Final = "default"
FOR_ALL_QUEUES: Final = ("max_attempts",)
"""The settings of queues that a flag or a variable can set, for all queues."""


class Resolved(NamedTuple):
    """A value and its source: ``flag --db``, ``env EOQ_DB``, ``eoq.toml [daemon]`` or ``default``."""

    value: Any
    source: str


class NamedSetting(NamedTuple):
    """A setting with its value and its source."""

    name: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """The values that a daemon uses.

    ``config_path`` is a `Path` or None; ``db``, ``socket`` and ``spool`` are paths. ``overrides`` are settings of
    all queues that a flag or a variable sets; they take precedence over ``config``, the contents of the file.
    """

    config_path: Resolved
    db: Resolved
    socket: Resolved
    spool: Resolved
    overrides: dict[str, Resolved]
    config: Config

    @property
    def queue_overrides(self) -> dict[str, Any]:
        """The values of ``overrides``, for `LiveConfig`."""
        return {name: resolved.value for name, resolved in self.overrides.items()}

    def of_daemon(self) -> Iterator[NamedSetting]:
        """Yield the settings of the daemon itself."""
        paths = {"config": self.config_path, "db": self.db, "socket": self.socket, "spool": self.spool}
        for name, resolved in paths.items():
            yield NamedSetting(name, *resolved)
        for name in ("socket_mode", "socket_group"):
            value = getattr(self.config.daemon, name)
            yield NamedSetting(name, value, DEFAULT if value is None else self._in_file("[daemon]"))
        for field in msgspec.structs.fields(self.config.storage):
            value = getattr(self.config.storage, field.name)
            source = DEFAULT if value == field.default else self._in_file("[storage]")
            yield NamedSetting(f"storage.{field.name}", value, source)
        listen = self.config.metrics.listen
        yield NamedSetting("metrics.listen", listen, DEFAULT if listen is None else self._in_file("[metrics]"))
        for place, names in self.config.permissions.entries():
            yield NamedSetting(place, names, self._in_file("[permissions]"))

    def of_queue(self, name: str) -> Iterator[NamedSetting]:
        """Yield the settings of the queue ``name``."""
        origins = self.config.origins(name)
        settings = self.config.queue(name, self.queue_overrides)
        for setting in QueueSettings.__struct_fields__:
            if setting in self.overrides:
                source = self.overrides[setting].source
            elif setting in origins:
                source = self._in_file(f"[{to_key('queues', origins[setting])}]")
            else:
                source = DEFAULT
            yield NamedSetting(setting, getattr(settings, setting), source)
        for right in QueueAccess.__struct_fields__:
            if (names := self.config.permissions.of_queue(name, right)) is not None:
                yield NamedSetting(f"permissions.{right}", names, self._in_file("[permissions]"))

    def of_queues(self) -> Iterator[NamedSetting]:
        """Yield the settings of each section of the file, then those of a queue that no section matches."""
        for pattern, section in self.config.queues.items():
            place = to_key("queues", pattern)
            for setting, value in section.items():
                in_file = Resolved(value, self._in_file(f"[{place}]"))
                yield NamedSetting(f"{place}.{setting}", *self.overrides.get(setting, in_file))
        for field in msgspec.structs.fields(QueueSettings):
            yield NamedSetting(field.name, *self.overrides.get(field.name, Resolved(field.default, DEFAULT)))

    def of_lists(self) -> Iterator[NamedSetting]:
        """Yield the entries of the file's lists: relays, bridges, bindings and schedules."""
        for field in msgspec.structs.fields(self.config):
            value = getattr(self.config, field.name)
            if isinstance(value, list):
                for number, entry in enumerate(value, 1):
                    source = self._in_file(f"[[{field.name}]]")
                    yield NamedSetting(f"{field.name}.{number}", msgspec.to_builtins(entry), source)

    def _in_file(self, place: str) -> str:
        path = self.config_path.value
        return f"{path.name if path else ''} {place}"


def resolve_config_path(from_cli: Mapping[str, Resolved]) -> Resolved:
    """Return the path of the configuration: from flag or variable, else the user's own file if it exists, or None."""
    if "config" in from_cli:
        path, source = from_cli["config"]
        return Resolved(Path(path).absolute(), source)
    default = config_path()
    try:
        exists = default is not None and default.exists()
    except OSError:  # this user may not enter the folder, so it is not the user's own
        exists = False
    return Resolved(default if exists else None, DEFAULT)


def resolve(from_cli: Mapping[str, Resolved]) -> ResolvedConfig:
    """Return the values that a daemon uses. ``from_cli`` has those of flags and variables, by the name of the option.

    Paths in ``from_cli`` are relative to the working folder. Raises what `load` raises.
    """
    config_file = resolve_config_path(from_cli)
    path = config_file.value
    config = Config() if path is None else load(path)

    def path_of(name: str, default: Callable[[], Path]) -> Resolved:
        if name in from_cli:
            value, source = from_cli[name]
            return Resolved(Path(value).absolute(), source)
        if (in_file := getattr(config.daemon, name)) is not None:
            return Resolved(path.parent / in_file, f"{path.name} [daemon]")
        return Resolved(default(), DEFAULT)

    database, socket = path_of("db", database_path), path_of("socket", socket_path)
    if os.path.realpath(database.value) == os.path.realpath(socket.value):
        raise InvalidRequest(f"{socket.value} cannot be the socket and the database; give another --socket or --db")
    return ResolvedConfig(
        config_file,
        database,
        socket,
        path_of("spool", lambda: spool_path(database.value)),
        {name: from_cli[name] for name in FOR_ALL_QUEUES if name in from_cli},
        config,
    )
