"""The engines of the run: how each is started and killed, its wires, and how its bridges are called."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bridge_kills.parts import Program, wire
from tests.nats_server import NatsServer, running_nats
from tests.postgres import Server, running_server

UNIX_NAME = ".s.PGSQL.5432"


class _Killable(Protocol):
    def kill(self) -> None: ...
    def start(self) -> None: ...


@dataclass
class Engine:
    """A running engine, for one sender and some destinations."""

    server: _Killable
    url: str
    wire: Callable[[Path], tuple[Program, str]]
    """It makes a wire to the engine, and the URL that leads through it."""
    options: list[dict[str, str]]
    """What the bridge of each machine is told beside. The first machine forwards."""

    def restart(self) -> None:
        """Kill it, and start it again."""
        self.server.kill()
        self.server.start()

    def flags(self, machine: int) -> list[str]:
        """Return the options of a machine's bridge, for the command line."""
        return [part for name, value in self.options[machine].items() for part in (f"--{name}", value)]

    def lines(self, machine: int) -> str:
        """Return them for the configuration file."""
        options = self.options[machine].items()
        return "".join(f"{name} = {value if name == 'partitions' else repr(value)}\n" for name, value in options)


@contextmanager
def running_engine(kind: str, machines: int) -> Iterator[Engine]:
    """Run ``postgres`` or ``jetstream``. Of a stream, each machine has two partitions."""
    if kind == "postgres":
        with running_server() as server:
            yield _postgres(server, machines)
    else:
        with running_nats() as nats:
            yield _jetstream(nats, machines)


def _postgres(server: Server, machines: int) -> Engine:
    def through(folder: Path) -> tuple[Program, str]:
        return wire(folder, str(folder / UNIX_NAME), str(server.folder / UNIX_NAME)), server.conninfo(host=folder)

    return Engine(server, server.conninfo(), through, [{} for _ in range(machines + 1)])


def _jetstream(server: NatsServer, machines: int) -> Engine:
    def through(folder: Path) -> tuple[Program, str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
        return wire(folder, place, server.place), f"nats://{place}/PAY"

    count = {"partitions": f"{2 * machines}"}
    own = [{**count, "partition": f"{2 * machine}-{2 * machine + 1}"} for machine in range(machines)]
    return Engine(server, server.url(), through, [count, *own])
