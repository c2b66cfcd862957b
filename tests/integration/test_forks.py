"""A process that forks while it has a client: the child does not touch its parent's connection and leases."""

from __future__ import annotations

import os
import threading

import pytest

import eoq
from tests.support import PATIENCE, Daemon


def _in_child(function: object) -> int:
    """Run a function in a forked child. Return the child's exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert callable(function)
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_has_a_connection_of_its_own(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket, timeout=PATIENCE) as client:
        client.send("q", "x", id="m")
        (message,) = client.receive("q", bound=True)

        def child() -> None:
            for number in range(50):
                assert client.send("child", f"{number}", id=f"{number}").duplicate is False
            client.close()

        conflicts: list[bool] = []

        def parent() -> None:
            while not ended.is_set():
                with pytest.raises(eoq.IdConflict):
                    client.send("q", "other content", id="m")
                conflicts.append(True)

        ended = threading.Event()
        sending = threading.Thread(target=parent)
        sending.start()
        try:
            assert _in_child(child) == 0
        finally:
            ended.set()
            sending.join(PATIENCE)
        assert not sending.is_alive()
        assert conflicts
        message.ack()  # its lease stayed the parent's
        assert {queue["name"]: queue["ready"] for queue in client.queues()} == {"q": 0, "child": 50}


def test_a_lease_ends_with_the_parent_although_a_child_lives_on(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as other:
        other.send("q", "x")
        read_end, write_end = os.pipe()
        client = eoq.connect(daemon.socket)
        assert client.receive("q", bound=True)
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
        try:
            client.close()
            (message,) = other.receive("q", wait=PATIENCE)
            assert message.attempt == 2
        finally:
            os.close(write_end)
            os.close(read_end)
            os.waitpid(pid, 0)


async def test_a_child_leaves_the_connection_of_an_asyncio_client_alone(daemon: Daemon) -> None:
    async with eoq.connect_async(daemon.socket) as client:
        await client.send("q", "x")
        (message,) = await client.receive("q", bound=True)

        def child() -> None:
            with eoq.connect(daemon.socket) as own:
                own.send("child", "x")

        assert _in_child(child) == 0
        await message.ack()
        assert (await client.send("q", "next")).duplicate is False
