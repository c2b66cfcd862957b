"""``client.once`` of both clients and the daemon: one run per key and its result for all, whichever process dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import eoq
from tests.support import Daemon, error_of, eventually


def test_a_key_runs_once_and_gives_its_result_ever_after(daemon: Daemon) -> None:
    runs: list[int] = []

    def charge() -> dict[str, int]:
        runs.append(1)
        return {"charged": 5}

    with eoq.connect(daemon.socket) as client:
        assert client.once("k", charge) == b'{"charged":5}'
        assert client.once("k", charge) == b'{"charged":5}'
        daemon.kill()
        daemon.restart()
        assert client.once("k", charge) == b'{"charged":5}'
        assert client.once("none", lambda: None) == b""
    assert len(runs) == 1


def test_of_many_callers_at_once_one_runs_and_all_get_its_result(daemon: Daemon) -> None:
    runs: list[int] = []
    with eoq.connect(daemon.socket) as client:

        def run() -> str:
            runs.append(1)
            eventually(lambda: daemon.ask(op="status")["connections"] >= 1)
            return "result"

        with ThreadPoolExecutor(20) as pool:
            results = [future.result() for future in [pool.submit(client.once, "k", run) for _ in range(20)]]
    assert results == [b"result"] * 20
    assert len(runs) == 1


def test_a_function_that_raises_opens_its_key_to_a_waiting_caller(daemon: Daemon) -> None:
    begun, fail = threading.Event(), threading.Event()

    def failing() -> None:
        begun.set()
        fail.wait()
        raise ZeroDivisionError

    with eoq.connect(daemon.socket) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.once, "k", failing)
        begun.wait()
        second = pool.submit(client.once, "k", lambda: "second")
        fail.set()
        with pytest.raises(ZeroDivisionError):
            first.result()
        assert second.result() == b"second"


def test_a_caller_whose_connection_ends_opens_its_key(daemon: Daemon) -> None:
    with daemon.wire() as holder, daemon.wire() as waiter:
        assert holder.ask({"op": "once", "key": "k", "token": "t1"})["state"] == "run"
        waiter.send({"op": "once", "key": "k", "token": "t2", "wait": 60})
        holder.close()
        assert waiter.read()["state"] == "run"


def test_a_restart_of_the_daemon_does_not_start_a_second_run_beside_the_first(daemon: Daemon) -> None:
    with daemon.wire() as holder:
        assert holder.ask({"op": "once", "key": "k", "token": "t1"})["state"] == "run"
        daemon.kill()
    daemon.restart()
    with daemon.wire() as holder, daemon.wire() as other:
        assert other.ask({"op": "once", "key": "k", "token": "t2"})["state"] == "running"
        assert holder.ask({"op": "once", "key": "k", "token": "t1"})["state"] == "run"
        other.send({"op": "once", "key": "k", "token": "t2", "wait": 60})
        assert holder.ask({"op": "once_done", "key": "k", "token": "t1", "output": "x"})["ok"]
        assert other.read() == {"ok": True, "state": "done", "status": 0, "output_bytes": 1, "output": "x"}


def test_a_caller_that_was_cut_off_cannot_overwrite_the_result_of_another(daemon: Daemon) -> None:
    with daemon.wire() as second:
        with daemon.wire() as first:
            assert first.ask({"op": "once", "key": "k", "token": "t1"})["state"] == "run"
        eventually(lambda: second.ask({"op": "once", "key": "k", "token": "t2"})["state"] == "run")
        late = {"op": "once_done", "key": "k", "token": "t1", "output": "first"}
        assert error_of(second.ask(late)) == "lease_lost"
        done = {"op": "once_done", "key": "k", "token": "t2", "output": "second"}
        assert second.ask(done)["ok"]
        assert second.ask(done)["ok"]  # repeated, because its reply was lost
        assert error_of(second.ask(late)) == "lease_lost"
        assert second.ask({"op": "once", "key": "k", "token": "t3"})["output"] == "second"


def test_another_fingerprint_is_refused(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        assert client.once("k", lambda: "a", fingerprint="5 EUR") == b"a"
        assert client.once("k", lambda: "b") == b"a"
        with pytest.raises(eoq.IdConflict, match="7 EUR"):
            client.once("k", lambda: "b", fingerprint="7 EUR")


def test_a_result_is_kept_for_its_ttl(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        assert client.once("k", lambda: "first", ttl=0.2) == b"first"
        eventually(lambda: client.once("k", lambda: "second") == b"second")


def test_a_wait_for_a_key_ends_in_time(daemon: Daemon) -> None:
    with daemon.wire() as holder, eoq.connect(daemon.socket) as client:
        assert holder.ask({"op": "once", "key": "k", "token": "t1"})["state"] == "run"
        with pytest.raises(eoq.EoqError, match="still runs"):
            client.once("k", lambda: "x", wait=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("make", [bytes, lambda size: b"\xff" * size, lambda size: b"\n" * size])
def test_large_results_of_any_bytes_are_kept(daemon: Daemon, make: Callable[[int], bytes]) -> None:
    with eoq.connect(daemon.socket) as client:
        output = make(8 * 1024 * 1024)
        assert client.once("k", lambda: output) == output
        assert client.once("k", lambda: b"no") == output
        with pytest.raises(eoq.MessageTooLarge, match="will not run again"):
            client.once("more", lambda: output + b"x")
        with pytest.raises(eoq.MessageTooLarge, match="will not run again"):
            client.once("more", lambda: b"no")


def test_once_of_the_asyncio_client(daemon: Daemon) -> None:
    runs: list[int] = []

    async def charge() -> str:
        runs.append(1)
        await asyncio.sleep(0)
        return "paid"

    async def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with eoq.connect_async(daemon.socket) as client:
            assert await asyncio.gather(*(client.once("k", charge) for _ in range(10))) == [b"paid"] * 10
            with pytest.raises(ZeroDivisionError):
                await client.once("fails", fail)
            assert await client.once("fails", charge) == b"paid"
            begun = asyncio.Event()

            async def endless() -> None:
                begun.set()
                await asyncio.Event().wait()

            cancelled = asyncio.create_task(client.once("slow", endless))
            await begun.wait()
            waiting = asyncio.create_task(client.once("slow", charge))
            cancelled.cancel()
            assert await waiting == b"paid"
            await asyncio.gather(cancelled, return_exceptions=True)
            assert len(runs) == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    "fields",
    [
        *({"key": ""}, {"key": "x" * 201}, {"key": "a\0"}, {"key": "a\nb"}, {"token": ""}, {"wait": -1}, {"more": 1}),
        *({"fingerprint": ""}, {"fingerprint": "\u2028"}, {"op": "once_done", "key": "\n", "output": ""}),
    ],
)
def test_malformed_requests_are_refused(daemon: Daemon, fields: dict[str, Any]) -> None:
    with daemon.wire() as wire:
        assert error_of(wire.ask({"op": "once", "key": "k", "token": "t", **fields})) == "invalid_request"
