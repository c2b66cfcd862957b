"""A wire between a bridge and the engine. To kill it closes its connections; to stop it freezes them.

python -m tests.bridge_kills.proxy FOLDER ENGINE
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

NAME = ".s.PGSQL.5432"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve(folder: Path, engine: Path) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_unix_connection(engine / NAME)
        except OSError:  # the engine is away
            writer.close()
            return
        await asyncio.gather(_copy(reader, back), _copy(there, writer))

    (folder / NAME).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(connected, folder / NAME)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2])))
