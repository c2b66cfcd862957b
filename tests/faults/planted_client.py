"""A client that sleeps before it repeats a request: ``planted_client.py SOCKET QUEUE blocking|asyncio HOW``.

Its connection breaks when the daemon has stored what it sent, and before the reply. It stops (SIGSTOP) just before the
repeat leaves. HOW is ``send``, ``send_many``, ``transaction`` or ``ack``. It prints how the call ended.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import Any

import eoq
from eoq.transport.aio_connection import AsyncConnection
from eoq.transport.connection import Connection

STORING = ("send", "send_many", "settle")

socket = queue = how = ""
sends = 0


def is_repeat(requests: Any) -> bool:
    """Return whether these requests store messages, for the second time."""
    global sends
    sends += any(request["op"] in STORING for request in requests)
    return sends == 2 and any(request["op"] in STORING for request in requests)


def await_stored() -> None:
    """Wait until the daemon has stored the message."""
    with eoq.connect(socket) as other:
        while not other.ask("tail", queue=queue, last=1)["messages"]:
            pass


def plant_blocking() -> None:
    start = Connection.start

    def starting(connection: Connection, requests: Any, deadline: float) -> Any:
        if is_repeat(requests):
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        rids = start(connection, requests, deadline)
        if sends == 1 and requests[0]["op"] in STORING:
            await_stored()
            connection.close("planted")
        return rids

    vars(sys.modules[Connection.__module__])["Connection"].start = starting


def plant_asyncio() -> None:
    start = AsyncConnection.start

    async def starting(connection: AsyncConnection, requests: Any, seconds: float) -> Any:
        if is_repeat(requests):
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        replies = await start(connection, requests, seconds)
        if sends == 1 and requests[0]["op"] in STORING:
            await_stored()  # in the event loop, so that the reply is not read
            connection.close("planted")
        return replies

    vars(sys.modules[AsyncConnection.__module__])["AsyncConnection"].start = starting


def send(client: eoq.Client) -> None:
    """Make one call that stores a message."""
    if how == "send":
        client.send(queue, b"", id="m")
    elif how == "send_many":
        client.send_many(queue, [eoq.Outgoing(b"", id="m")])
    else:
        with client.transaction() as transaction:
            transaction.send(queue, b"", id="m")


async def send_async(client: eoq.AsyncClient) -> None:
    """Make one call that stores a message."""
    if how == "send":
        await client.send(queue, b"", id="m")
    elif how == "send_many":
        await client.send_many(queue, [eoq.Outgoing(b"", id="m")])
    else:
        async with client.transaction() as transaction:
            transaction.send(queue, b"", id="m")


async def run_async() -> None:
    """Do the call with the asyncio client."""
    async with eoq.connect_async(socket) as client:
        await send_async(client)


if __name__ == "__main__":
    socket, queue, kind, how = sys.argv[1:]
    try:
        if kind == "blocking":
            plant_blocking()
            with eoq.connect(socket) as planted:
                send(planted)
        else:
            plant_asyncio()
            asyncio.run(run_async())
    except eoq.EoqError as error:
        print(error.code)
    else:
        print("sent")
