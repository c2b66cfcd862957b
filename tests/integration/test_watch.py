"""A watch wakes its task when a file, a database or a folder's contents change, and only then."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from eoq.spool.format import is_ready, is_visible
from eoq.system import watch
from tests.support import PATIENCE, eventually

SILENCE = 0.1
"""Seconds without a wake-up after which none is expected any more. Only time can show it."""


@asynccontextmanager
async def _watching(
    path: Path, sweep: float = 60, *, what: Callable[..., Coroutine[Any, Any, None]] = watch.watch_database
) -> AsyncIterator[asyncio.Event]:
    woken = asyncio.Event()
    task = asyncio.create_task(what(path, woken.set, sweep))
    try:
        await asyncio.wait_for(woken.wait(), PATIENCE)  # it watches
        yield woken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _wakes(woken: asyncio.Event) -> None:
    await asyncio.wait_for(woken.wait(), PATIENCE)


async def _calm(woken: asyncio.Event, silence: float = SILENCE) -> None:
    """Wait until the changes so far cause no more wake-ups. ``silence`` is longer where one too late would matter."""
    woken.set()
    while woken.is_set():
        woken.clear()
        await asyncio.sleep(silence)


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist"])
def test_each_commit_wakes(tmp_path: Path, mode: str) -> None:
    async def run() -> None:
        with closing(sqlite3.connect(tmp_path / "app.db")) as database:
            database.execute(f"pragma journal_mode = {mode}")
            database.execute("create table t (x)")
            async with _watching(tmp_path / "app.db") as woken:
                for _ in range(3):
                    await _calm(woken)
                    with database:
                        database.execute("insert into t values (1)")
                    await _wakes(woken)

    asyncio.run(run())


def test_a_write_to_another_file_does_not_wake(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "app.db").touch()
        async with _watching(tmp_path / "app.db") as woken:
            await _calm(woken, 10 * SILENCE)
            (tmp_path / "other.db").write_text("x")
            (tmp_path / "app.db2").write_text("x")
            await asyncio.sleep(SILENCE)
            assert not woken.is_set()

    asyncio.run(run())


def test_a_replaced_file_wakes_and_so_does_a_sweep(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "app.db").touch()
        async with _watching(tmp_path / "app.db") as woken:
            await _calm(woken)
            (tmp_path / "new.db").touch()
            (tmp_path / "new.db").rename(tmp_path / "app.db")
            await _wakes(woken)
        async with _watching(tmp_path / "app.db", sweep=0.2) as woken:
            for _ in range(3):
                woken.clear()
                await _wakes(woken)

    asyncio.run(run())


def test_a_replaced_link_on_the_way_wakes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "at" / name).mkdir(parents=True)
        (tmp_path / "at" / name / "file").touch()
    (tmp_path / "now").symlink_to("at/one")
    (tmp_path / "file").symlink_to("now/../../at/one/file")

    async def run() -> None:
        woken = asyncio.Event()
        task = asyncio.create_task(watch.watch_file(tmp_path / "file", woken.set, 60))
        await _wakes(woken)
        await _calm(woken)
        (tmp_path / "at" / "one" / "file").write_text("x")
        await _wakes(woken)
        for name in ("two", "one"):
            await _calm(woken)
            (tmp_path / "next").symlink_to(f"at/{name}")
            (tmp_path / "next").rename(tmp_path / "now")
            await _wakes(woken)
        await _calm(woken)
        (tmp_path / "at" / "one" / "file").write_text("y")
        await _wakes(woken)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_folder_that_cannot_be_watched_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.01)

    async def run() -> None:
        async with _watching(tmp_path / "later" / "app.db") as woken:
            assert "cannot be watched" in caplog.text
            (tmp_path / "later").mkdir()
            await _calm(woken)
            (tmp_path / "later" / "app.db").touch()
            await _wakes(woken)

    asyncio.run(run())
    assert caplog.text.count("cannot be watched") == 1


@pytest.mark.slow
def test_a_hundred_watches_wake_and_share_one_thread(tmp_path: Path) -> None:
    """More than the 40 threads that watchfiles may use at once."""
    files = [tmp_path / str(number) / "app.db" for number in range(100)]
    for file in files:
        file.parent.mkdir()
    before = threading.active_count()

    async def run() -> None:
        events = [asyncio.Event() for _ in files]
        tasks = [
            asyncio.create_task(watch.watch_database(file, woken.set, 60))
            for file, woken in zip(files, events, strict=True)
        ]
        for woken in events:
            await _wakes(woken)
        async with asyncio.timeout(PATIENCE):  # threads of watches that were set up before the last one may still end
            while threading.active_count() > before + 1:  # noqa: ASYNC110 # the end of a thread is no event of the loop
                await asyncio.sleep(0.01)
        for file, woken in zip(files, events, strict=True):
            woken.clear()
            file.touch()
            await _wakes(woken)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_a_cancelled_watch_leaves_no_thread_and_does_not_disturb_the_others(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    before = set(threading.enumerate())

    async def run() -> None:
        async with _watching(tmp_path / "app.db") as woken:
            async with _watching(tmp_path / "other" / "app.db"):
                await _calm(woken)
            await _calm(woken)
            (tmp_path / "app.db").touch()
            await _wakes(woken)

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
    eventually(lambda: before.issuperset(threading.enumerate()), what="its thread ends")


def test_a_folder_that_is_missing_does_not_disturb_the_others(tmp_path: Path) -> None:
    async def run() -> None:
        async with _watching(tmp_path / "app.db") as woken, _watching(tmp_path / "missing" / "app.db"):
            await _calm(woken)
            (tmp_path / "app.db").touch()
            await _wakes(woken)

    asyncio.run(run())


def test_a_replaced_folder_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()

    async def run() -> None:
        async with _watching(folder / "app.db") as woken:
            await _calm(woken)
            folder.rename(tmp_path / "old")
            folder.mkdir()
            await _wakes(woken)
            await _calm(woken)
            (folder / "app.db").touch()
            await _wakes(woken)

    asyncio.run(run())


# ── a spool ─────────────────────────────────────────────────────────────────────────────────────────────────


async def _watch_spool(folder: Path, wake: Callable[[], object], sweep: float) -> None:
    await watch.watch_subfolders(folder, wake, sweep, is_folder=is_visible, is_file=is_ready)


def _put(folder: Path, name: str) -> None:
    (folder / ".new").touch()
    (folder / ".new").rename(folder / name)


def test_a_file_renamed_into_a_queue_wakes_and_one_that_is_not_ready_does_not(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "q").mkdir()
        (tmp_path / "q" / ".taking").mkdir()
        async with _watching(tmp_path, what=_watch_spool) as woken:
            for turn in range(3):
                await _calm(woken)
                _put(tmp_path / "q", f"{turn}")
                await _wakes(woken)
            await _calm(woken, 10 * SILENCE)
            (tmp_path / "q" / ".hidden").touch()
            (tmp_path / "q" / "x.tmp").touch()
            (tmp_path / "q" / ".taking" / "x").touch()
            (tmp_path / ".lock").touch()
            await asyncio.sleep(SILENCE)
            assert not woken.is_set()

    asyncio.run(run())


def test_names_that_are_not_utf_8_do_not_end_the_watch(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "q").mkdir()
        async with _watching(tmp_path, what=_watch_spool) as woken:
            for folder in (tmp_path, tmp_path / "q"):
                await _calm(woken)
                (folder / os.fsdecode(b"\xff")).mkdir()
                await _wakes(woken)
                await _calm(woken)
                _put(tmp_path / "q", "x")
                await _wakes(woken)

    asyncio.run(run())


def test_a_new_queue_wakes_and_so_do_files_in_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with _watching(tmp_path, what=_watch_spool) as woken:
            for name in ("a", "b.tmp"):
                await _calm(woken)
                (tmp_path / name).mkdir()
                await _wakes(woken)
                await _calm(woken)
                _put(tmp_path / name, "x")
                await _wakes(woken)

    asyncio.run(run())


def test_a_queue_that_is_a_link_is_not_watched_and_one_created_again_is(tmp_path: Path) -> None:
    async def run() -> None:
        spool, outside = tmp_path / "spool", tmp_path / "outside"
        (spool / "q").mkdir(parents=True)
        outside.mkdir()
        (spool / "link").symlink_to(outside)
        async with _watching(spool, what=_watch_spool) as woken:
            await _calm(woken, 10 * SILENCE)
            _put(outside, "x")
            await asyncio.sleep(SILENCE)
            assert not woken.is_set()
            (spool / "q").rmdir()
            (spool / "q").mkdir()
            await _calm(woken)
            _put(spool / "q", "x")
            await _wakes(woken)

    asyncio.run(run())
