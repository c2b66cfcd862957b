"""What the tests with a stream of NATS have in common."""

from __future__ import annotations

import base64
import json
from typing import Any

import eoq
from tests.nats_server import NatsServer
from tests.support import Daemon


def send(daemon: Daemon, *messages: eoq.Outgoing, queue: str = "q") -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many(queue, messages)


def take(daemon: Daemon, queue: str = "q") -> list[eoq.Message]:
    taken = []
    with eoq.connect(daemon.socket) as client:
        while messages := client.receive(queue, 1000):
            taken += messages
            client.ack_many([(message, None) for message in messages])
    return taken


def forward(daemon: Daemon, url: str, partitions: int | None = None) -> None:
    eoq.Bridge.forward("q", url, partitions=partitions, socket=daemon.socket).flush()


def ingest(daemon: Daemon, url: str, limit: int = 1000, partitions: int | None = None) -> int:
    """Return how many messages were taken."""
    bridge = eoq.Bridge.ingest("q", url, limit=limit, partitions=partitions, socket=daemon.socket)
    bridge.flush()
    return bridge.moved


def stored(server: NatsServer, seq: int, stream: str = "PAY") -> tuple[dict[str, Any], dict[str, str]]:
    """Return a message of a stream, and its headers."""
    found: dict[str, Any] = server.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})["message"]
    lines = base64.b64decode(found["hdrs"]).decode().split("\r\n")[1:]
    return found, dict(line.split(": ", 1) for line in lines if line)


def record(server: NatsServer, partition: int = 0) -> dict[str, Any]:
    key = {"last_by_subj": f"$KV.eoq_PAY.q.{partition}"}
    answer = server.api("STREAM.MSG.GET.KV_eoq_PAY", key)
    return dict(json.loads(base64.b64decode(answer["message"]["data"])))


def change_record(server: NatsServer, partition: int = 0, **changes: object) -> None:
    """Change the record of a partition of the queue `q`, as no program of eoq would."""
    changed = json.dumps({**record(server, partition), **changes})
    assert "seq" in server.ask(f"$KV.eoq_PAY.q.{partition}", changed.encode())
