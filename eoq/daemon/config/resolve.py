"""With what a daemon starts: of flag, environment, file and default the first that says something, setting by setting.

Each value knows where it came from, so that `eoq config show` tells exactly what `eoq daemon` would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ...system.paths import config_path, database_path, socket_path
from .loader import load, name_in
from .model import Config
from .settings import QueueSettings

DEFAULT: Final = "default"
OF_QUEUES: Final = ("max_attempts",)
"""What a flag or a variable can say for all queues."""


class Resolved(NamedTuple):
    """A value, and where it came from: ``flag --db``, ``env EOQ_DB``, ``eoq.toml [daemon]`` or ``default``."""

    value: Any
    source: str


class Setting(NamedTuple):
    """A setting's name, the value that counts, and where it came from."""

    name: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """What counts for a daemon, and the configuration it was read from."""

    config_path: Resolved
    """A `Path`, or None without a file."""
    db: Resolved
    socket: Resolved
    spool: Resolved
    """A `Path`, or None without a spool."""
    overrides: dict[str, Resolved]
    """Of settings of queues: those that a flag or a variable says, for all queues, over the file."""
    config: Config

    @property
    def queue_overrides(self) -> dict[str, Any]:
        """For `LiveConfig`."""
        return {name: chosen.value for name, chosen in self.overrides.items()}

    def of_daemon(self) -> Iterator[Setting]:
        """The settings of the daemon itself."""
        for name in ("config", "db", "socket", "spool"):
            yield Setting(name, *(self.config_path if name == "config" else getattr(self, name)))
        for field in msgspec.structs.fields(self.config.storage):
            value = getattr(self.config.storage, field.name)
            source = DEFAULT if value == field.default else self._in_file("[storage]")
            yield Setting(f"storage.{field.name}", value, source)

    def of_queue(self, name: str) -> Iterator[Setting]:
        """What holds for the queue ``name``."""
        origins = self.config.origins(name)
        settings = self.config.queue(name, self.queue_overrides)
        for setting in QueueSettings.__struct_fields__:
            if setting in self.overrides:
                source = self.overrides[setting].source
            elif setting in origins:
                source = self._in_file(f"[{name_in('queues', origins[setting])}]")
            else:
                source = DEFAULT
            yield Setting(setting, getattr(settings, setting), source)

    def of_queues(self) -> Iterator[Setting]:
        """What each section of the file says, then what holds where none does."""
        for pattern, section in self.config.queues.items():
            place = name_in("queues", pattern)
            for setting, value in section.items():
                chosen = self.overrides.get(setting, Resolved(value, self._in_file(f"[{place}]")))
                yield Setting(f"{place}.{setting}", *chosen)
        for field in msgspec.structs.fields(QueueSettings):
            yield Setting(field.name, *self.overrides.get(field.name, Resolved(field.default, DEFAULT)))

    def of_lists(self) -> Iterator[Setting]:
        """What the file has any number of."""
        for field in msgspec.structs.fields(self.config):
            value = getattr(self.config, field.name)
            if isinstance(value, list):
                for number, entry in enumerate(value, 1):
                    source = self._in_file(f"[[{field.name}]]")
                    yield Setting(f"{field.name}.{number}", msgspec.to_builtins(entry), source)

    def _in_file(self, place: str) -> str:
        path = self.config_path.value
        return f"{path.name if path else ''} {place}"


def choose_config(given: Mapping[str, Resolved]) -> Resolved:
    """The path of the configuration: what was given, else the user's if it is there, else None."""
    if "config" in given:
        path, source = given["config"]
        return Resolved(Path(path).absolute(), source)
    default = config_path()
    try:
        there = default.exists()
    except OSError:  # a folder that this user may not look into is no folder of his
        there = False
    return Resolved(default if there else None, DEFAULT)


def choose(given: Mapping[str, Resolved]) -> ResolvedConfig:
    """What counts, where flags and variables said ``given`` (paths in it are relative to the working folder).

    Raises what `load` raises of the configuration.
    """
    config_chosen = choose_config(given)
    path = config_chosen.value
    config = Config() if path is None else load(path)

    def place(name: str, default: Callable[[], Path | None]) -> Resolved:
        if name in given:
            value, source = given[name]
            return Resolved(Path(value).absolute(), source)
        if (said := getattr(config.daemon, name)) is not None:
            return Resolved(path.parent / said, f"{path.name} [daemon]")
        return Resolved(default(), DEFAULT)

    return ResolvedConfig(
        config_chosen,
        place("db", database_path),
        place("socket", socket_path),
        place("spool", lambda: None),
        {name: given[name] for name in OF_QUEUES if name in given},
        config,
    )
