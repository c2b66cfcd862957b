"""A wire between a bridge and the engine. To kill it closes its connections; to stop it freezes them.

python -m tests.bridge_kills.proxy SOCKET ENGINE

Both are the path of a Unix socket, or a host and a port.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _connect(place: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if "/" in place:
        return await asyncio.open_unix_connection(place)
    host, _, port = place.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _serve(here: str, engine: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await _connect(engine)
        except OSError:  # the engine is away
            writer.close()
            return
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    if "/" in here:
        Path(here).unlink(missing_ok=True)
        server = await asyncio.start_unix_server(connected, here)
    else:
        host, _, port = here.rpartition(":")
        server = await asyncio.start_server(connected, host, int(port))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
