"""Many requests at once over one client: threads of the blocking client, tasks of the asyncio client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

import eoq
from tests.support import PATIENCE, Daemon, eventually

THREADS = 8
EACH = 200


@pytest.fixture
def shared(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """One blocking client, for all threads of a test."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


@pytest.mark.slow
def test_threads_send_over_one_client(shared: eoq.Client, queue: str) -> None:
    def send(thread: int) -> None:
        for number in range(EACH):
            assert shared.send(queue, f"{thread} {number}", id=f"{thread}-{number}").id == f"{thread}-{number}"

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(send, range(THREADS)))
    received = [message for _ in range(2) for message in shared.receive(queue, 1000)]
    assert len({message.id for message in received}) == len(received) == THREADS * EACH
    for thread in range(THREADS):
        own = [message.text for message in received if message.text.startswith(f"{thread} ")]
        assert own == [f"{thread} {number}" for number in range(EACH)]


@pytest.mark.slow
def test_threads_receive_and_ack_over_one_client(shared: eoq.Client, queue: str) -> None:
    shared.send_many(queue, [eoq.Outgoing(f"{number}", id=f"{number}") for number in range(THREADS * EACH)])
    taken: list[str] = []

    def work(_: int) -> None:
        while messages := shared.receive(queue):
            messages[0].ack(result=messages[0].body)
            taken.append(messages[0].id)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert sorted(taken, key=int) == [f"{number}" for number in range(THREADS * EACH)]
    assert shared.result(queue, "77") == eoq.Result("done", b"77")


@pytest.mark.slow
def test_producers_and_consumers_share_one_client(shared: eoq.Client, queue: str) -> None:
    taken: list[str] = []

    def produce(thread: int) -> None:
        for number in range(EACH):
            shared.send(queue, f"{thread}-{number}")

    def consume(_: int) -> None:
        for message in shared.consume(queue, prefetch=5, idle=0.5):
            message.ack()
            taken.append(message.text)

    with ThreadPoolExecutor(THREADS) as pool:
        consumers = [pool.submit(consume, number) for number in range(THREADS // 2)]
        list(pool.map(produce, range(THREADS // 2)))
        for consumer in consumers:
            consumer.result(60)
    assert len(set(taken)) == len(taken) == THREADS // 2 * EACH


def test_a_thread_that_waits_does_not_block_others(shared: eoq.Client, shared_daemon: Daemon, queue: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(shared.receive, queue + name, 1, 60.0) for name in (".a", ".b", ".c")]
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 3)
        start = time.monotonic()
        for number in range(100):
            shared.send(queue, f"{number}")
        assert time.monotonic() - start < 50  # the others wait longer
        for name in (".c", ".a", ".b"):
            shared.send(queue + name, name)
        assert [wait.result(20)[0].text for wait in waits] == [".a", ".b", ".c"]


def test_another_thread_reads_when_the_reading_thread_gives_up(shared_daemon: Daemon, queue: str) -> None:
    """The thread that reads for all may be the first to give up."""
    with eoq.connect(shared_daemon.socket) as client, ThreadPoolExecutor(2) as pool:
        short = pool.submit(client.receive, queue, 1, 1.5)
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1 or short.done())
        long = pool.submit(client.receive, queue + ".long", 1, 60.0)
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 2 or short.done())
        assert short.result(20) == []
        shared_daemon.ask(op="send", queue=queue + ".long", body="x")
        assert [message.text for message in long.result(20)] == ["x"]


def test_closing_wakes_the_threads_that_wait(shared_daemon: Daemon, queue: str) -> None:
    client = eoq.connect(shared_daemon.socket)
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(client.receive, queue, 1, 60.0) for _ in range(4)]
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 4)
        start = time.monotonic()
        client.close()
        for wait in waits:
            with pytest.raises(eoq.Unavailable, match="closed"):
                wait.result(20)
        assert time.monotonic() - start < 50  # they would wait longer


def test_threads_stay_on_one_connection(shared: eoq.Client, shared_daemon: Daemon, queue: str) -> None:
    barrier = threading.Barrier(THREADS)

    def send(_: int) -> None:
        barrier.wait(20)
        shared.send(queue, "x")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(send, range(THREADS)))
    # This request uses a connection of its own.
    # Those of the tests before it may still be ending.
    eventually(lambda: shared_daemon.ask(op="status")["connections"] == 2)


@pytest.mark.slow
def test_tasks_send_and_receive_over_one_client(shared_daemon: Daemon, queue: str) -> None:
    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            sent = await asyncio.gather(*(client.send(queue, f"{number}", id=f"{number}") for number in range(1000)))
            assert [one.id for one in sent] == [f"{number}" for number in range(1000)]
            received = await asyncio.gather(*(client.receive(queue, 50) for _ in range(20)))
            messages = [message for batch in received for message in batch]
            assert len({message.id for message in messages}) == 1000
            await asyncio.gather(*(message.ack(result=message.id) for message in messages))
            results = await asyncio.gather(*(client.result(queue, f"{number}") for number in range(1000)))
            assert results == [eoq.Result("done", f"{number}".encode()) for number in range(1000)]

    asyncio.run(main())


def test_many_tasks_may_wait_at_once(shared_daemon: Daemon, queue: str) -> None:
    """More tasks than requests that one connection may have waiting: the client copes with that."""

    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client, asyncio.timeout(PATIENCE):
            waits = [asyncio.create_task(client.receive(queue, wait=PATIENCE)) for _ in range(60)]
            await client.send_many(queue, [f"{number}" for number in range(60)])
            received = await asyncio.gather(*waits)
            assert sorted(batch[0].text for batch in received) == sorted(f"{number}" for number in range(60))

    asyncio.run(main())


def test_a_cancelled_task_does_not_disturb_others(shared_daemon: Daemon, queue: str) -> None:
    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            cancelled = asyncio.create_task(client.receive(queue + ".cancelled", wait=60))
            kept = asyncio.create_task(client.receive(queue, wait=60))
            await asyncio.to_thread(eventually, lambda: shared_daemon.ask(op="status")["waiting"] == 2)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            assert cancelled.cancelled()
            await client.send(queue, "x")
            assert [message.text for message in await kept] == ["x"]

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("bound", [False, True])
def test_a_cancelled_receive_loses_no_message(shared_daemon: Daemon, queue: str, bound: bool) -> None:
    """Whether the message comes long after the receive was cancelled, or at the same moment."""

    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client, eoq.connect_async(shared_daemon.socket) as other:
            for number in range(300):
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.receive(queue, wait=60, bound=bound), 0.002)
                receiving = asyncio.create_task(client.receive(queue, wait=60, bound=bound))
                sending = asyncio.create_task(other.send(queue, "x", id=f"{number}"))
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                if number % 3:
                    await sending
                receiving.cancel()
                await asyncio.gather(sending, receiving, return_exceptions=True)
                if receiving.cancelled():
                    (message,) = await other.receive(queue, wait=PATIENCE)
                else:
                    (message,) = await receiving
                assert (message.id, message.attempt) == (f"{number}", 1)
                await message.ack()
            await asyncio.to_thread(eventually, lambda: shared_daemon.ask(op="status")["waiting"] == 0)

    asyncio.run(main())


def test_cancelled_receives_stop_waiting_in_the_daemon(shared_daemon: Daemon, queue: str) -> None:
    """No message ends them, and one connection may have only 256 that wait."""

    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            for _ in range(300):
                receiving = asyncio.create_task(client.receive(queue, wait=60))
                while not receiving.done() and (await client.ask("status"))["waiting"] == 0:
                    pass
                receiving.cancel()
                await asyncio.wait([receiving])
                assert receiving.cancelled()
            await asyncio.to_thread(eventually, lambda: shared_daemon.ask(op="status")["waiting"] == 0)

    asyncio.run(main())


def test_a_cancelled_consumer_loses_no_message(shared_daemon: Daemon, queue: str) -> None:
    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client, eoq.connect_async(shared_daemon.socket) as other:

            async def consume() -> None:
                async for _ in client.consume(queue, prefetch=5):
                    raise AssertionError("there is nothing")

            task = asyncio.create_task(consume())
            await asyncio.to_thread(eventually, lambda: shared_daemon.ask(op="status")["waiting"] == 1)
            task.cancel()
            await asyncio.wait([task])
            await other.send(queue, "x")
            (message,) = await other.receive(queue, wait=PATIENCE)
            assert message.attempt == 1

    asyncio.run(main())


def test_an_asyncio_message_settles_itself(shared_daemon: Daemon, queue: str) -> None:
    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            await client.send_many(queue, [eoq.Outgoing(id, id=id) for id in ("ack", "nack", "reject", "extend")])
            messages = {message.id: message for message in await client.receive(queue, 4)}
            await messages["ack"].ack(result={"n": 1}, send=[eoq.Outgoing("x", queue=queue + ".next")])
            await messages["nack"].nack(delay=60, error="later")
            await messages["reject"].reject(error="never")
            await messages["extend"].extend(60)
            states = [(await client.ask("show", queue=queue, id=id))["message"]["state"] for id in messages]
            assert states == ["done", "delayed", "dead", "leased"]

    asyncio.run(main())


@pytest.mark.slow
def test_hundreds_of_asyncio_clients_connect_at_once(shared_daemon: Daemon, queue: str) -> None:
    """More clients than the listening socket queues at a time."""

    async def one(number: int) -> eoq.Sent:
        async with eoq.connect_async(shared_daemon.socket) as client:
            return await client.send(queue, "x", id=f"{number}")

    async def main() -> None:
        sent = await asyncio.gather(*(one(number) for number in range(400)))
        assert len({message.id for message in sent}) == 400

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("times", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_a_client_that_leaves_during_a_query_leaves_no_old_snapshot_of_the_database_open(
    daemon: Daemon, times: int
) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many("many", [b"x" * 1000] * 2000)
    with daemon.wire() as wire:
        for number in range(times):
            with daemon.wire() as leaving:
                # Answered one after the other: some are in flight when the client leaves.
                leaving.send(*[{"op": "peek", "queue": "many", "limit": 200 + number}] * 8)
            sent = wire.ask({"op": "send", "queue": "q", "body": "", "id": str(number)})
            assert sent["ok"]
            assert wire.ask({"op": "show", "queue": "q", "id": str(number)})["ok"]
