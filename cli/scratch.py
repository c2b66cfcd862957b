"""A daemon in a scratch folder, for `eoq demo` and `eoq bench`: it reads, sends and changes nothing of the user's."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def daemon_command(folder: Path, socket: Path) -> list[str]:
    """Return the command line of a daemon whose files are in ``folder``. Its configuration there is empty.

    Without one of its own it would read the user's, and send what the user's outboxes and schedules hold.
    """
    config = folder / "eoq.toml"
    config.write_text("")
    paths = {"db": folder / "eoq.db", "socket": socket, "config": config, "spool": folder / "spool"}
    options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    # -P: use the installed eoq, also if the current folder contains another one.
    return [sys.executable, "-P", "-m", "eoq.cli", "daemon", *options]


def environment() -> dict[str, str]:
    """Return the environment without the variables that tell a daemon what to use."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EOQ_")}
