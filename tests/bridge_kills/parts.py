"""The parts of the system: programs that are killed and started again, and the wires between bridges and the engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support import clean_environment

FAKETIME = "libfaketime.so.1"
"""The library that shifts the clock of a program. Debian's package `faketime` has it."""


class Program:
    """A part that is one process: killed with SIGKILL, and started again."""

    def __init__(self, folder: Path, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._command = command
        self._environment = clean_environment(**(environment or {}))
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    def start(self) -> None:
        self._number += 1
        with (self._folder / "programs.err").open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *self._command], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                env={**self._environment, "START": str(self._number)}, cwd=Path(__file__).parents[2],
            )  # fmt: skip

    def ensure(self) -> bool:
        """Start it again if it has ended with an error. Return whether it had killed itself."""
        status = None if self._process is None else self._process.poll()
        if self._process is None or status not in (None, 0):
            self.start()
        return status == -signal.SIGKILL

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self, seconds: float) -> None:
        """Stop it for a while: its connections stay open, and nothing passes."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)  # the length of the fault
            self._process.send_signal(signal.SIGCONT)


def wire(folder: Path, here: str, engine: str) -> Program:
    """Return a wire from a socket to that of the engine: a proxy, which writes its errors in ``folder``."""
    return Program(folder, "-m", "tests.bridge_kills.proxy", here, engine)


def skewed(seconds: float) -> dict[str, str]:
    """Return the environment of a machine whose clock is wrong by ``seconds``. Empty for 0."""
    if not seconds:
        return {}
    found = next((str(path) for path in Path("/usr/lib").rglob(FAKETIME)), None)
    if found is None or shutil.which("faketime") is None:
        raise SystemExit("a skewed clock needs Debian's package `faketime`")
    return {"LD_PRELOAD": found, "FAKETIME": f"{seconds:+.0f}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def die() -> None:
    """End this process as a kill does."""
    os.kill(os.getpid(), signal.SIGKILL)
