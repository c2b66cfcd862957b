"""The bell: a named pipe that wakes a task when another process opens and closes it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from eoq.system.bell import BELL, Bell, ring

Woken = asyncio.Event


@asynccontextmanager
async def _listening(folder: Path) -> AsyncIterator[tuple[Bell, Woken, int]]:
    """Listen to the bell of a folder. Yield it, an event that is set when it rings, and the folder's descriptor."""
    descriptor = os.open(folder, os.O_RDONLY)
    woken = asyncio.Event()
    bell = Bell(lambda: descriptor, woken.set)
    bell.listen()
    try:
        yield bell, woken, descriptor
    finally:
        bell.close()
        os.close(descriptor)


def _run(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_within(test()))


async def _within(test: Awaitable[None]) -> None:
    async with asyncio.timeout(30):
        await test


def _ring_by_shell(folder: Path) -> None:
    subprocess.run(["sh", "-c", "{ :; } 1<>.bell"], cwd=folder, check=True, timeout=30)


def test_each_ring_wakes_and_silence_does_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with _listening(tmp_path) as (_, woken, descriptor):
            for _ in range(20):
                ring(descriptor)
                await woken.wait()
                woken.clear()
            await asyncio.to_thread(_ring_by_shell, tmp_path)
            await woken.wait()
            woken.clear()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):  # only time can show that it is silent
                    await woken.wait()

    _run(test)


def test_who_rings_is_not_blocked_where_nobody_listens(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / BELL)
    _ring_by_shell(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    ring(descriptor)
    (tmp_path / BELL).unlink()
    ring(descriptor)
    os.close(descriptor)
    assert not (tmp_path / BELL).exists()


def test_what_is_written_to_it_is_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        async with _listening(tmp_path) as (_, woken, _descriptor):
            await asyncio.to_thread((tmp_path / BELL).write_bytes, b"x" * 1000)
            await woken.wait()
            woken.clear()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):  # only time can show that it is silent
                    await woken.wait()

    _run(test)


def test_a_pipe_that_was_removed_is_made_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with _listening(tmp_path) as (bell, woken, descriptor):
            (tmp_path / BELL).unlink()
            bell.listen()
            ring(descriptor)
            await woken.wait()

    _run(test)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_something_else_in_its_place_is_reported_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / BELL
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")

    async def test() -> None:
        async with _listening(tmp_path) as (bell, _woken, _descriptor):
            bell.listen()

    _run(test)
    (record,) = caplog.records
    assert "cannot be used" in record.message
    assert path.is_symlink() or path.exists()
