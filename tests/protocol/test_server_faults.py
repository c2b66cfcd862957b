"""The server alone, with handlers that fail or do not answer: they hold up nobody else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from eoq.daemon import requests as ask
from eoq.daemon.server.server import Server
from eoq.daemon.server.sockets import SocketAccess
from eoq.daemon.session import Reply, Session
from tests.support import PATIENCE


def test_the_lines_behind_a_fault_are_not_handled_and_others_are_served(folder: Path) -> None:
    path = folder / "s"
    faults: list[dict[str, Any]] = []

    def fail(_session: Session, request: ask.Status, reply: Reply) -> None:
        if request.rid == "bad":
            raise RuntimeError("planted")
        reply({})

    async def ask_server(*rids: str) -> list[dict[str, Any]]:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"".join(json.dumps({"op": "status", "rid": rid}).encode() + b"\n" for rid in rids))
        writer.write_eof()
        replies = (await asyncio.wait_for(reader.read(), PATIENCE)).splitlines()
        writer.close()
        return [json.loads(reply) for reply in replies]

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        server = Server(lambda: 0, SocketAccess())
        server.add({ask.Status: fail})
        await server.start(path)
        *_, last = await ask_server("good", "bad", "behind", "behind")
        assert "planted" in last["error"]["message"]
        assert [reply["rid"] for reply in await ask_server("good", "good")] == ["good", "good"]
        server.refuse_new()
        await server.close()

    asyncio.run(run())
    assert faults == []


def test_metrics_that_are_being_made_hold_up_no_receive(folder: Path) -> None:
    """Four of them take all the bytes that such replies may have together. A receive counts elsewhere."""
    path = folder / "s"

    async def run() -> None:
        server = Server(lambda: 0, SocketAccess())
        begun: list[ask.Metrics] = []
        server.add({ask.Metrics: lambda _session, request, _reply: begun.append(request)})
        server.add({ask.Receive: lambda _session, _request, reply: reply({"messages": []})})
        await server.start(path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"op":"metrics"}\n' * 8)
        other_reader, other_writer = await asyncio.open_unix_connection(path)
        other_writer.write(b'{"op":"receive","queue":"q"}\n')
        reply = await asyncio.wait_for(other_reader.readline(), PATIENCE)
        assert json.loads(reply) == {"ok": True, "messages": []}
        assert len(begun) == 4
        for one in (writer, other_writer):
            one.close()
        assert await reader.read() == b""
        server.refuse_new()
        await server.close()

    asyncio.run(run())
