"""Both clients behind one interface, so that a test of both is written once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

import eoq
from tests.integration.clients import AnyClient, AsyncFace, Kind
from tests.integration.stores import Store, StoreKind
from tests.support import Daemon, running_daemon


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which of the two clients to test."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def connect(kind: Kind) -> Iterator[Callable[..., AnyClient]]:
    """Make clients of one kind: ``connect(socket, timeout=…)``. They are closed at the end."""
    with ExitStack() as stack:

        def make(socket: Path | None, timeout: float = 30.0) -> AnyClient:
            if kind == "blocking":
                return stack.enter_context(eoq.connect(socket, timeout=timeout))
            runner = stack.enter_context(asyncio.Runner())
            return stack.enter_context(AsyncFace(runner, eoq.connect_async(socket, timeout=timeout)))

        yield make


@pytest.fixture
def client(shared_daemon: Daemon, connect: Callable[..., AnyClient]) -> AnyClient:
    """A client of the shared daemon, of each kind in turn."""
    return connect(shared_daemon.socket)


@pytest.fixture
def blocking(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """A blocking client of the shared daemon."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, folder: Path) -> Store:
    """The database of an application, of each kind in turn."""
    kind: StoreKind = request.param
    return Store(kind, folder / "app.db" if kind == "sqlite" else request.getfixturevalue("database"))


# ── tests that are coroutines ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def at_end() -> AsyncExitStack:
    """Closes at the end, in the event loop of the test, what a coroutine test has opened."""
    return AsyncExitStack()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}

    async def run() -> None:
        stack = pyfuncitem.funcargs.get("at_end")
        async with stack if isinstance(stack, AsyncExitStack) else AsyncExitStack():
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True


@pytest.fixture
def machines() -> Iterator[list[Daemon]]:
    """Run three daemons: the first sends."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_daemon()) for _ in range(3)]
