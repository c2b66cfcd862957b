"""The engines of the run: how each is started and killed, and how its forwarder and its ingesters are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tests.nats_server import NatsServer, running_nats
from tests.postgres import Server, running_server


class _Killable(Protocol):
    def kill(self) -> None: ...
    def start(self) -> None: ...


@dataclass
class Engine:
    """A running engine, for one sender and ``machines`` destinations."""

    url: str
    server: _Killable
    forward: dict[str, str]
    """Further options of the forwarder."""
    ingest: list[dict[str, str]]
    """Those of each ingester."""

    def restart(self) -> None:
        """Kill it, and start it again."""
        self.server.kill()
        self.server.start()

    def forward_command(self) -> list[str]:
        """Return the arguments of `eoq` that forward."""
        return ["forward", "q", "--to", self.url, *_flags(self.forward)]

    def ingest_command(self, machine: int) -> list[str]:
        """Return those that ingest on one machine."""
        return [
            "ingest",
            "q",
            "--from",
            self.url,
            "--as",
            f"m{machine}",
            "--limit",
            "100",
            *_flags(self.ingest[machine]),
        ]

    def forward_config(self) -> str:
        """Return the configuration of a daemon that forwards."""
        return f'[[forward]]\nqueue = "q"\nto = "{self.url}"\n{_lines(self.forward)}'

    def ingest_config(self, machine: int) -> str:
        """Return that of one that ingests."""
        named = f'as = "m{machine}"\nlimit = 100\n'
        return f'[[ingest]]\nqueue = "q"\nfrom = "{self.url}"\n{named}{_lines(self.ingest[machine])}'


def _flags(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _lines(options: dict[str, str]) -> str:
    return "".join(
        f"{name} = {value}\n" if name == "partitions" else f'{name} = "{value}"\n' for name, value in options.items()
    )


@contextmanager
def running_engine(kind: str, machines: int) -> Iterator[Engine]:
    """Run ``postgres`` or ``jetstream``. Each machine has two partitions of a stream."""
    if kind == "postgres":
        with running_server() as server:
            yield _postgres(server, machines)
    else:
        with running_nats() as nats:
            yield _jetstream(nats, machines)


def _postgres(server: Server, machines: int) -> Engine:
    return Engine(server.conninfo(), server, {}, [{} for _ in range(machines)])


def _jetstream(server: NatsServer, machines: int) -> Engine:
    count = {"partitions": f"{2 * machines}"}
    own = [{**count, "partition": f"{2 * machine}-{2 * machine + 1}"} for machine in range(machines)]
    return Engine(server.url(), server, count, own)
