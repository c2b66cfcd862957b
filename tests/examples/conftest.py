"""Shared by the tests of the examples: the folder of the examples, and a shell that runs them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support import PATIENCE, Daemon, Ran, Shell

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
STAND_IN: Final = Path(__file__).with_name("jq.py")


class ExampleShell(Shell):
    """A shell that finds ``jq``: the real one, or a stand-in for machines without it."""

    def __init__(self, shell: Shell, stand_in: bool) -> None:
        super().__init__(shell.socket, shell.folder)
        self._tools = self.folder / "tools"
        if stand_in:
            self._tools.mkdir(exist_ok=True)
            jq = self._tools / "jq"
            jq.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
            jq.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        environment = super().environment
        return {**environment, "PATH": os.pathsep.join([str(self._tools), environment["PATH"]])}

    def example(self, script: str, stdin: bytes = b"", **environment: str) -> Ran:
        """Run a script in which ``$examples`` is the folder of the examples."""
        return self.run(f'examples="{EXAMPLES}"; {script}', stdin, timeout=PATIENCE * 2, **environment)


HAS_JQ: Final = shutil.which("jq") is not None


@pytest.fixture(params=["jq", pytest.param("stand-in", marks=pytest.mark.slow if HAS_JQ else ())])
def example_shell(request: pytest.FixtureRequest, shared_daemon: Daemon) -> ExampleShell:
    """A shell for the examples. Each test runs with the real jq, and with the stand-in.

    The default tests use the stand-in only on a machine without jq.
    """
    if request.param == "jq" and not HAS_JQ:
        pytest.skip("there is no jq on this machine")
    return ExampleShell(shared_daemon.shell(), stand_in=request.param == "stand-in")
