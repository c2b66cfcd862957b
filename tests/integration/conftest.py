"""Both clients behind one face, so that what holds for each is written once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import eoq
from tests.integration.clients import AnyClient, AsyncFace, Kind
from tests.support import Daemon


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which of the two clients."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def connect(kind: Kind) -> Iterator[Callable[..., AnyClient]]:
    """Makes clients of one kind: ``connect(socket, timeout=…)``. They are closed at the end."""
    with ExitStack() as stack:

        def make(socket: Path | None, timeout: float = 30.0) -> AnyClient:
            if kind == "blocking":
                return stack.enter_context(eoq.connect(socket, timeout=timeout))
            runner = stack.enter_context(asyncio.Runner())
            return stack.enter_context(AsyncFace(runner, eoq.connect_async(socket, timeout=timeout)))

        yield make


@pytest.fixture
def client(shared_daemon: Daemon, connect: Callable[..., AnyClient]) -> AnyClient:
    """A client, of each kind in turn, of the file's daemon."""
    return connect(shared_daemon.socket)


@pytest.fixture
def blocking(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """A blocking client of the file's daemon."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client
