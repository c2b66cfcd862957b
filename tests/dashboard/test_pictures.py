"""The pictures of README can be made anew, and load nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dashboard.browser import CHROMIUM
from tests.pictures import PICTURES
from tests.support import clean_environment

MAKE = """
import sys
from pathlib import Path
from tests import pictures
pictures.SECONDS, pictures.PICTURES = 3.0, Path(sys.argv[1])
pictures.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_the_pictures_can_be_made(tmp_path: Path) -> None:
    pytest.importorskip("textual")
    root = PICTURES.parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MAKE, str(tmp_path)],
        cwd=root,
        env=clean_environment(PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in PICTURES.iterdir()}
    assert "payments" in (tmp_path / "top.svg").read_text()


@pytest.mark.parametrize("path", sorted(PICTURES.iterdir()), ids=lambda path: path.name)
def test_a_picture_is_small_and_loads_nothing(path: Path) -> None:
    content = path.read_bytes()
    assert len(content) < 120_000
    if path.suffix == ".svg":
        assert not re.search(rb"@font-face|@import|<script|href=|url\((?!#)", content)
    else:
        assert content.startswith(b"\x89PNG\r\n")
