"""The default paths of the socket, the database and the configuration."""

from __future__ import annotations

import os
import warnings
from pathlib import Path


def socket_path(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the socket: ``path``, else ``EOQ_SOCKET``, else ``eoq/eoq.sock`` in the user's runtime directory."""
    if path is not None:
        return Path(path)
    if named := os.environ.get("EOQ_SOCKET"):
        return Path(named)
    from platformdirs import user_runtime_path

    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR, as under cron, platformdirs takes another directory and warns at each command.
        warnings.simplefilter("ignore")
        return user_runtime_path("eoq") / "eoq.sock"


def database_path(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the daemon's database: ``path``, else ``EOQ_DB``, else ``eoq/eoq.db`` in the user's data directory."""
    if path is not None:
        return Path(path)
    if named := os.environ.get("EOQ_DB"):
        return Path(named)
    from platformdirs import user_data_path

    return user_data_path("eoq") / "eoq.db"


def config_path() -> Path:
    """Return the default configuration of the daemon: ``eoq/eoq.toml`` in the user's configuration directory."""
    from platformdirs import user_config_path

    return user_config_path("eoq") / "eoq.toml"
