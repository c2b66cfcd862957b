"""Queues that are servers: eoq itself, beanstalkd, Redis, PostgreSQL and NATS JetStream, as their manuals advise."""

from __future__ import annotations

import asyncio
import importlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import eoq
from tests.bench import measures

from .base import Absent, Running, Taken, accepts, free_port, server

T = TypeVar("T")
ADDRESS = "127.0.0.1"


def _program(name: str, *folders: str) -> str:
    path = shutil.which(name, path=os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent), *folders)))
    if path is None:
        raise Absent(f"no program {name}")
    return path


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"no package {name}") from error


# ── eoq ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Eoq:
    """The eoq of the interpreter that runs this."""

    name = "eoq"
    durability = "synced before each confirmation (WAL, synchronous=FULL)"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        with measures.daemon_process(folder) as (process, path):
            shell = (sys.executable, "-P", "-m", "eoq.cli", "send", "--socket", path, "shell", "hello")
            yield Running(partial(_Eoq, path), (process.pid,), shell)


class _Eoq:
    def __init__(self, path: str, queue: str) -> None:
        self.client = eoq.connect(path)
        self._queue = queue
        self.close = self.client.close

    def send(self, body: bytes) -> None:
        self.client.send(self._queue, body)

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        self.client.send_many(self._queue, list(bodies))

    def take(self, limit: int) -> list[Taken]:
        while not (messages := self.client.receive(self._queue, limit, wait=60)):
            pass
        return [Taken(message, message.id, message.body) for message in messages]

    def ack(self, messages: Sequence[Taken]) -> None:
        self.client.ack_many([(message.key, None) for message in messages])


# ── beanstalkd ──────────────────────────────────────────────────────────────────────────────────────────────


class Beanstalkd:
    """beanstalkd with a log that is synced at each write, over its own protocol."""

    name = "beanstalkd"
    durability = "synced at each write (-b, -f0)"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        port = free_port()
        command = [_program("beanstalkd", "/usr/sbin"), "-l", ADDRESS, "-p", str(port), "-b", str(folder), "-f0"]
        with server(command, partial(accepts, port)) as process:
            script = f"printf 'use shell\\r\\nput 0 0 60 5\\r\\nhello\\r\\nquit\\r\\n' | nc -N {ADDRESS} {port}"
            yield Running(partial(_Beanstalk, port), (process.pid,), ("sh", "-c", script))


class _Beanstalk:
    def __init__(self, port: int, queue: str) -> None:
        self._socket = socket.create_connection((ADDRESS, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        self._ask(f"use {queue}\r\nwatch {queue}\r\n".encode(), 2)

    def _ask(self, data: bytes, replies: int) -> list[bytes]:
        self._socket.sendall(data)
        return [self._lines.readline() for _ in range(replies)]

    def send(self, body: bytes) -> None:
        self.send_batch([body])

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        puts = b"".join(b"put 0 0 60 %d\r\n%s\r\n" % (len(body), body) for body in bodies)
        for reply in self._ask(puts, len(bodies)):
            assert reply.startswith(b"INSERTED"), reply

    def take(self, limit: int) -> list[Taken]:
        self._socket.sendall(b"reserve\r\n" * limit)
        return [self._read_job() for _ in range(limit)]

    def _read_job(self) -> Taken:
        _, job, size = self._lines.readline().split()
        body = self._lines.read(int(size) + 2)[:-2]
        return Taken(job, job.decode(), body)

    def ack(self, messages: Sequence[Taken]) -> None:
        deletes = b"".join(b"delete %s\r\n" % message.key for message in messages)
        for reply in self._ask(deletes, len(messages)):
            assert reply == b"DELETED\r\n", reply

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────


class Redis:
    """A Redis stream with a consumer group."""

    name = "Redis"
    durability = "synced before each reply (appendfsync always)"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        _module("redis")
        path = folder / "redis.sock"
        command = [_program("redis-server"), "--port", "0", "--unixsocket", str(path), "--dir", str(folder)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with server(command, path.exists) as process:
            shell = (_program("redis-cli"), "-s", str(path), "xadd", "shell", "*", "b", "hello")
            yield Running(partial(_Redis, str(path)), (process.pid,), shell)


class _Redis:
    def __init__(self, path: str, queue: str) -> None:
        redis = _module("redis")
        self._redis = redis.Redis(unix_socket_path=path)
        self._queue = queue
        self._consumer = uuid.uuid4().hex
        try:
            self._redis.xgroup_create(queue, "g", id="0", mkstream=True)
        except redis.ResponseError as error:
            assert "BUSYGROUP" in str(error), error
        self.close = self._redis.close

    def send(self, body: bytes) -> None:
        self._redis.xadd(self._queue, {"b": body})

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            for body in bodies:
                pipe.xadd(self._queue, {"b": body})
            pipe.execute()

    def take(self, limit: int) -> list[Taken]:
        while not (found := self._redis.xreadgroup("g", self._consumer, {self._queue: ">"}, count=limit, block=60_000)):
            pass
        entries = found[self._queue.encode()][0] if isinstance(found, dict) else found[0][1]
        return [Taken(key, key.decode(), fields[b"b"]) for key, fields in entries]

    def ack(self, messages: Sequence[Taken]) -> None:
        keys = [message.key for message in messages]
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.xack(self._queue, "g", *keys)
            pipe.xdel(self._queue, *keys)
            pipe.execute()


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────────


class PostgreSql:
    """A table, `for update skip locked`, and `listen` for a consumer that waits."""

    name = "PostgreSQL"
    durability = "synced at each commit (fsync and synchronous_commit on)"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        _module("psycopg")
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
        data = folder / "pg"
        user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        owner: dict[str, Any] = {"user": user} if os.getuid() == 0 else {}
        if owner:
            shutil.chown(folder, user)
        initdb = [_program("initdb", *map(str, programs)), "-D", str(data), "-U", "bench", "-A", "trust"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **owner)
        port = free_port()
        command = [_program("postgres", *map(str, programs)), "-D", str(data), "-p", str(port)]
        command += ["-k", str(folder), "-c", f"listen_addresses={ADDRESS}", "-c", "shared_buffers=256MB"]
        address = f"host={folder} port={port} user=bench dbname=postgres"
        with server(command, partial(_answers, address), **owner) as process:
            _prepare_table(address)
            sql = "insert into message (queue, body) values ('shell', 'hello')"
            shell = (_program("psql"), "-q", "-h", str(folder), "-p", str(port), "-U", "bench", "postgres", "-c", sql)
            yield Running(partial(_Postgres, address), (process.pid,), shell)


def _answers(address: str) -> bool:
    psycopg = _module("psycopg")
    try:
        psycopg.connect(address, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _prepare_table(address: str) -> None:
    with _module("psycopg").connect(address, autocommit=True) as database:
        database.execute("create table message (id bigserial primary key, queue text not null, body bytea not null)")
        database.execute("create index on message (queue, id)")
        database.execute("alter table message set (autovacuum_vacuum_scale_factor = 0.01)")


class _Postgres:
    _insert = "insert into message (queue, body)"

    def __init__(self, address: str, queue: str) -> None:
        self._database = _module("psycopg").connect(address, autocommit=True)
        self._queue = queue
        self._listens = False
        self.close = self._database.close

    def send(self, body: bytes) -> None:
        self._database.execute(
            f"with stored as ({self._insert} values (%s, %s)) select pg_notify(%s, '')",
            (self._queue, body, self._queue),
            prepare=True,
        )

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        self._database.execute(
            f"with stored as ({self._insert} select %s, unnest(%s::bytea[])) select pg_notify(%s, '')",
            (self._queue, list(bodies), self._queue),
            prepare=True,
        )

    def take(self, limit: int) -> list[Taken]:
        """Take messages in a transaction that `ack` commits."""
        while True:
            self._database.execute("begin")
            rows = self._database.execute(
                "select id, body from message where queue = %s order by id limit %s for update skip locked",
                (self._queue, limit),
                prepare=True,
            ).fetchall()
            if rows:
                return [Taken(id, str(id), bytes(body)) for id, body in rows]
            self._database.execute("rollback")
            if self._listens:
                for _ in self._database.notifies(timeout=60, stop_after=1):
                    pass
            else:
                self._database.execute(f'listen "{self._queue}"')
                self._listens = True

    def ack(self, messages: Sequence[Taken]) -> None:
        keys = [message.key for message in messages]
        self._database.execute("delete from message where id = any(%s)", (keys,), prepare=True)
        self._database.execute("commit")


# ── NATS JetStream ──────────────────────────────────────────────────────────────────────────────────────────


class JetStream:
    """A stream on disk with a durable pull consumer. By default the server syncs every two minutes."""

    name = "NATS JetStream"
    durability = "not synced: confirmed before the sync (its default)"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        _module("nats")
        port = free_port()
        command = [_program("nats-server"), "-a", ADDRESS, "-p", str(port), "-js", "-sd", str(folder)]
        with server(command, partial(accepts, port)) as process:
            yield Running(partial(_JetStream, port), (process.pid,))


class _JetStream:
    def __init__(self, port: int, queue: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._queue = queue
        self._wait(self._connect(port))

    async def _connect(self, port: int) -> None:
        self._client = await _module("nats").connect(f"nats://{ADDRESS}:{port}")
        self._stream = self._client.jetstream()
        await self._stream.add_stream(name=self._queue, subjects=[self._queue], retention="workqueue")
        self._consumer = await self._stream.pull_subscribe(self._queue, durable="bench")

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def send(self, body: bytes) -> None:
        self._wait(self._stream.publish(self._queue, body))

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        async def send_all() -> None:
            await asyncio.gather(*(self._stream.publish(self._queue, body) for body in bodies))

        self._wait(send_all())

    def take(self, limit: int) -> list[Taken]:
        messages = self._wait(self._consumer.fetch(limit, timeout=60))
        return [Taken(message, str(message.metadata.sequence.stream), message.data) for message in messages]

    def ack(self, messages: Sequence[Taken]) -> None:
        async def ack_all() -> None:
            await asyncio.gather(*(message.key.ack_sync() for message in messages))

        self._wait(ack_all())

    def close(self) -> None:
        self._wait(self._client.close())
        self._loop.close()


SERVERS: tuple[Callable[[], Any], ...] = (Eoq, Beanstalkd, Redis, PostgreSql, JetStream)
