"""The page on testing is true: its tests pass, as pytest runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from eoq.testing.proof.ptrace import can_trace
from tests.examples.pages import Page, follow
from tests.support import Shell, clean_environment

PAGE: Final = Page("eoq/docs/testing.md")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="there is no `sqlite3` command")
def test_the_command_of_the_page_is_proved(alone: Shell) -> None:
    (block,) = PAGE.blocks("Prove a command", "sh")
    first, second, method = follow(alone, block)[-3:]
    assert second.startswith("second kills, of the redelivery: ")
    assert first.endswith(" crash points, 0 differences")
    assert method.startswith("crash points: each write and sync" if can_trace() else "crash points: a sweep")


@pytest.mark.slow
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    count = 0
    for number, (title, kind) in enumerate(PAGE.inventory()):
        if kind == "python":
            for index, block in enumerate(PAGE.blocks(title, kind)):
                (tmp_path / f"test_{number}_{index}.py").write_text(block)
                count += block.count("def test_")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stdout
    assert f"{count} passed" in done.stdout
