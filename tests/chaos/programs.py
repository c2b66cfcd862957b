"""The processes of the chaos test, which are killed, stopped and started again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.forker import Forked, Forker
from tests.support import clean_environment

END: Final = 600.0
"""How many seconds the rest may take after the last kill."""


class Program:
    """A Python process that is killed and started again. Its standard error goes to a file."""

    def __init__(self, forker: Forker, folder: Path, name: str, *command: object) -> None:
        self.name = name
        self._forker = forker
        self._folder = folder
        self._errors = folder / f"{name}.err"
        self._command = [sys.executable, *map(str, command)]
        self._process: Forked | None = None

    @property
    def said(self) -> str:
        """Everything that all runs have written to standard error."""
        return self._errors.read_text(errors="replace")

    def start(self) -> None:
        """Start the process."""
        with self._errors.open("ab") as errors, Path("/dev/null").open("r+b") as nothing:
            streams = (nothing.fileno(), nothing.fileno(), errors.fileno())
            self._process = self._forker.start(self._command, clean_environment(), self._folder, streams)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process with ``kill -9``. Fail if it has ended by itself."""
        if self._process is not None:
            ended = self._process.poll()
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(END)
            self._process = None
            assert ended is None, f"{self.name} has ended with {ended}: {self.said}"

    def restart(self) -> None:
        """Kill the process and start a new one."""
        self.kill()
        self.start()

    def wait(self) -> None:
        """Wait until the process ends by itself, with status 0."""
        assert self._process is not None
        try:
            status = self._process.wait(END)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._process = None
        assert status == 0, f"{self.name} has ended with {status}: {self.said}"
