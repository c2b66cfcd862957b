"""What the daemon that runs now uses, for commands that work on its files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from eoq.client.blocking import Client
from eoq.errors import EoqError

if TYPE_CHECKING:
    from eoq.daemon.config.resolve import ResolvedConfig
    from eoq.protocol.codec import Fields

ANSWER_SECONDS = 5.0
"""How long to wait for its answer."""


def status_of_running(socket: str | None) -> Fields:
    """Return the status of the daemon that runs; nothing where none answers."""
    with suppress(EoqError), Client(socket, timeout=ANSWER_SECONDS) as client:
        return client.ask("status")
    return {}


def database_in_use(resolved: ResolvedConfig, socket: str | None) -> Path:
    """Return the file that is named, else that of the daemon that runs, else the user's."""
    from eoq.daemon.config.resolve import DEFAULT

    if resolved.db.source == DEFAULT and (running := status_of_running(socket)):
        return Path(running["database"])
    path: Path = resolved.db.value
    return path


def spool_in_use(resolved: ResolvedConfig, socket: str | None) -> Path:
    """Return the spool that is named, else that of the daemon that runs on this file, else the default one."""
    from eoq.daemon.config.resolve import DEFAULT

    path: Path = resolved.spool.value
    if resolved.spool.source != DEFAULT:
        return path
    running = status_of_running(socket)
    is_this = resolved.db.source == DEFAULT or Path(running.get("database", "")) == resolved.db.value
    return Path(running["spool"]) if is_this and "spool" in running else path
