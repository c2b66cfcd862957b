"""A dashboard in a process of its own, and a plain client of it, which says exactly what it is told to."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.support import PATIENCE, clean_environment


class Site:
    """A running dashboard. Make it with `running_dashboard`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.url = process.stdout.readline().strip()
        self.host = urlsplit(self.url).netloc
        status, headers, _ = self.request("GET", self.url.split(self.host, 1)[1])
        assert status == 303
        self.path = headers["location"]
        self.set_cookie = headers["set-cookie"]
        self.cookie = self.set_cookie.partition(";")[0]

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: str | bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send exactly this request, but for the Host where none is given. Return status, headers and content."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path: str, **fields: object) -> tuple[int, Any]:
        """Ask as the page does."""
        status, _, content = self.request("GET", f"{self.path}{path}?{urlencode(fields)}", {"Cookie": self.cookie})
        return status, json.loads(content)

    def act(self, do: str, name: str, **fields: object) -> tuple[int, Any]:
        """Act as the page does."""
        status, _, content = self.request("POST", f"{self.path}act", self.own_headers(), json.dumps(
            {"do": do, "name": name, **fields}
        ))  # fmt: skip
        return status, json.loads(content)

    def own_headers(self, **more: str) -> dict[str, str]:
        """Return the headers of an action of the page, with ``more``."""
        own = {"Cookie": self.cookie, "Origin": f"http://{self.host}", "Content-Type": "application/json"}
        return {**own, **more}

    @contextmanager
    def events(self, **fields: object) -> Iterator[Iterator[Any]]:
        """Open the live view."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            connection.request("GET", f"{self.path}events?{urlencode(fields)}", headers={"Cookie": self.cookie})
            answer = connection.getresponse()
            lines = iter(answer.readline, b"")
            yield (json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: "))
        finally:
            connection.close()


@contextmanager
def running_dashboard(socket: Path) -> Iterator[Site]:
    """Run a dashboard, and end it as Ctrl-C does."""
    command = [sys.executable, "-m", "eoq.cli", "dashboard", "--socket", str(socket)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=clean_environment()
    ) as process:
        try:
            yield Site(process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
