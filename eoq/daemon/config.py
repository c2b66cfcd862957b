"""The daemon's configuration file: TOML, checked as a whole before anything of it counts.

[queues."mail.*"]        # a name, or a pattern with * ? [...]; the first that fits a queue counts
retention = 86400        # seconds that the record of a settled message is kept

[[relay]]
path = "shop.db"         # an application's file whose outbox is sent; relative to this file's folder
"""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ..errors import InvalidRequest
from ..protocol import MAX_TTL
from .forgetting import RETENTION


class QueueConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """What is set for the queues of a pattern."""

    retention: Annotated[float, Meta(ge=0, le=MAX_TTL)] = RETENTION


class RelayConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """An application's file whose outbox the daemon sends."""

    path: Annotated[str, Meta(min_length=1)]


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file. Without one, all is as by default."""

    queues: dict[str, QueueConfig] = {}
    relay: list[RelayConfig] = []

    @property
    def shortest_retention(self) -> float:
        """Seconds; the least of all queues."""
        return min([RETENTION, *(settings.retention for settings in self.queues.values())])

    def queue(self, name: str) -> QueueConfig:
        """What is set for the queue ``name``."""
        for pattern, settings in self.queues.items():
            if fnmatchcase(name, pattern):
                return settings
        return QueueConfig()


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
