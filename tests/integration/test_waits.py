"""A wait goes on when the daemon stops and starts again meanwhile: the daemon ends all waits when it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import eoq
from tests.support import PATIENCE, Daemon, eventually


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Run waits beside the test."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def _receive(daemon: Daemon) -> str:
    with eoq.connect(daemon.socket) as client:
        (message,) = client.receive("q", wait=PATIENCE)
        return message.id


def _result(daemon: Daemon) -> str:
    with eoq.connect(daemon.socket) as client:
        result = client.result("q", "m", wait=PATIENCE)
        return "" if result is None else result.outcome


def _receive_command(daemon: Daemon) -> str:
    (row,) = daemon.shell().run(f"eoq receive q --wait {PATIENCE:g} --json").rows
    return str(row["id"])


def _result_command(daemon: Daemon) -> str:
    (row,) = daemon.shell().run(f"eoq result q m --wait {PATIENCE:g} --json").rows
    return str(row["outcome"])


@pytest.mark.parametrize(
    ("wait", "found"),
    [(_receive, "m"), (_result, "done"), (_receive_command, "m"), (_result_command, "done")],
    ids=["receive", "result", "receive-command", "result-command"],
)
@pytest.mark.first_by_default
def test_a_wait_goes_on_over_a_restart(
    daemon: Daemon, pool: ThreadPoolExecutor, wait: Callable[[Daemon], str], found: str
) -> None:
    waiting = pool.submit(wait, daemon)
    eventually(lambda: daemon.ask(op="status")["connections"] == 2)
    assert daemon.terminate() == 0
    daemon.start()
    daemon.ask(op="send", queue="q", id="m", body="")
    if found == "done":
        (message,) = daemon.ask(op="receive", queue="q")["messages"]
        daemon.ask(op="ack", receipt=message["receipt"])
    assert waiting.result(PATIENCE) == found
