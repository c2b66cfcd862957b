"""A proxy between psycopg and PostgreSQL that breaks a connection at its commit."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from tests.support import PATIENCE


class CommitCutter:
    """It passes everything on. When it was told to, it passes the next commit on, and keeps the answer to itself."""

    def __init__(self, server: Path) -> None:
        self._server = server
        self._folder = server / f"proxy-{os.urandom(4).hex()}"
        self._folder.mkdir()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self._folder / ".s.PGSQL.5432"))
        self._listening.listen()
        self._cutting = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> CommitCutter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def through(self, conninfo: str) -> str:
        """Return a connection string that leads through the proxy."""
        before, after = quote(str(self._server), safe=""), quote(str(self._folder), safe="")
        assert before in conninfo
        return conninfo.replace(before, after)

    def cut_at_commit(self) -> None:
        """Break the connection at the next commit, when the server has answered it."""
        self._cutting.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._server / ".s.PGSQL.5432"))
            for target in (self._upwards, self._downwards):
                thread = threading.Thread(target=target, args=(client, server), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self._cutting.is_set() and b"commit\0" in data:
                    self._cutting.clear()
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(data)
                    return
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _downwards(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
