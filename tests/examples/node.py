"""Node.js for the tests of the examples: whether there is one with SQLite."""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest


@functools.cache
def node_is_able() -> bool:
    """Return whether there is a `node` on the path that has `node:sqlite` without a flag (22.13 or later)."""
    if shutil.which("node") is None:
        return False
    tried = subprocess.run(["node", "-e", "require('node:sqlite')"], capture_output=True, check=False)
    return tried.returncode == 0


needs_node = pytest.mark.skipif(not node_is_able(), reason="there is no `node` with node:sqlite (22.13 or later)")
