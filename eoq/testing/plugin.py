"""The plugin of pytest: its fixtures. pytest imports this file in every run, so it imports nothing of eoq by itself."""

from __future__ import annotations

import pytest

TYPE_CHECKING = False  # without an import of `typing`
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .daemon import PrivateDaemon


@pytest.fixture
def eoq_config() -> str:
    """The configuration of `eoq_daemon`, as the text of a configuration file. Replace it by a fixture of this name."""
    return ""


@pytest.fixture
def eoq_daemon(eoq_config: str) -> Iterator[PrivateDaemon]:
    """A private daemon for one test: a real socket, a real file, and a clock that the test moves."""
    from .daemon import private_daemon

    with private_daemon(config=eoq_config) as daemon:
        yield daemon
