"""Large files: what many settled ids, many waiting messages and a flood cost.

    python -m tests.bench.large settled [--ids 5000000] [--random] [--old PYTHON] [--rounds 7]
    python -m tests.bench.large waiting [--messages 1000000] [--rounds 5]
    python -m tests.bench.large flood   [--messages 300000]

``settled`` compares a file with so many settled ids to an empty one: sends, and receives with acks, of 100 at a time.
The ids are those that clients make, in the order of time, or random ones. ``--old`` is the interpreter of an earlier
version (2694c25, say), whose file gets as many. Rounds alternate, and the table has the medians, by the clock and by
the processor time of client and daemon: that says the same on a machine that is busy with other things.

``waiting`` shows how long a daemon with so many messages takes to start, and its memory. ``flood`` sends messages of
1 kB and drains them, and shows how soon the file is below 64 MB, and the longest send meanwhile.

The files are in /dev/shm where there is one, so that the disk does not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import eoq
from tests.support import memory_folder, processor_seconds, resident_kilobytes

BATCHES = 100
"""Batches of 100 in one measurement."""
SMALL = 64 * 1024 * 1024
"""Bytes that the file may have after a flood."""
FLOOD_SECONDS = 60.0
CLIENT = """
import itertools, json, sys, time, uuid
import eoq
socket, batches, is_random = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "random"
with eoq.connect(socket) as client:
    def batch():
        return [eoq.Outgoing(b"x" * 100, id=str(uuid.uuid4()) if is_random else None) for _ in range(100)]
    def send(count):
        for _ in range(count):
            client.send_many("bench", batch())
    def take(count):
        messages = client.consume("bench", prefetch=200)
        for _ in range(count):
            client.ack_many([(message, None) for message in itertools.islice(messages, 100)])
        messages.close()
    send(2), take(2)
    for work in (send, take):
        print("begin", flush=True), sys.stdin.readline()
        clock, processor = time.perf_counter(), time.process_time()
        work(batches)
        print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]), flush=True)
        sys.stdin.readline()
"""
"""Runs under each interpreter, and measures a send and a take of so many batches when it is told to."""
ID = {"ordered": "printf('01800000-0000-7000-8000-%012x', value)", "random": "lower(hex(randomblob(18)))"}


@dataclass
class Candidate:
    """A daemon to measure, and its seconds for each round: of the clock and of the processors."""

    name: str
    folder: Path
    python: str
    process: subprocess.Popen[bytes]
    sends: list[tuple[float, float]] = field(default_factory=list)
    takes: list[tuple[float, float]] = field(default_factory=list)

    def measure(self, kind: str) -> None:
        """Measure one round."""
        command = [self.python, "-P", "-c", CLIENT, str(self.folder / "s"), str(BATCHES), kind]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert client.stdin is not None
        assert client.stdout is not None
        with client:
            for figures in (self.sends, self.takes):
                client.stdout.readline()
                before = processor_seconds(self.process.pid)
                client.stdin.write(b"\n")
                client.stdin.flush()
                clock, processor = json.loads(client.stdout.readline())
                figures.append((clock, processor + processor_seconds(self.process.pid) - before))
                client.stdin.write(b"\n")
                client.stdin.flush()


@contextmanager
def daemon(folder: Path, python: str = sys.executable) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon in ``folder``."""
    command = [python, "-P", "-m", "eoq.cli", "daemon", "--db", str(folder / "eoq.db"), "--socket", str(folder / "s")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        if not process.stdout.readline().startswith(b"ready"):
            sys.exit(f"the daemon of {python} does not start")
        yield process
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


# ── settled ids ─────────────────────────────────────────────────────────────────────────────────────────────


_KNOWN = "known_id (queue, id, seq, digest) select 1, id, 1000 + number, randomblob(16) from made order by id"
_OUTCOMES = """
    outcome (seq, queue, outcome, settled_at, life, delivery)
    select 1000 + number, 1, 'done', :now, 1, 1 from made
    """
_SETTLED = """
    settled (queue, id, outcome, digest, settled_at, life, delivery, seq)
    select 1, id, 'done', randomblob(16), :now, 1, 1, 1000 + number from made
    """
_MESSAGES = """
    message (queue, id, state, digest, settled_at, enqueued_at, fence, seq)
    select 1, id, 'done', randomblob(16), :now, :now, 1, 1000 + number from made
    """
SHAPES = {"known_id": (_KNOWN, _OUTCOMES), "settled": (_SETTLED,), "message": (_MESSAGES,)}
"""What a file has of settled messages, by the table that tells its schema. ``made`` has a number and an id of each."""


def fill(database: Path, count: int, kind: str) -> None:
    """Let a file remember so many settled ids, in the schema that it has, stored one after the other."""
    with closing(sqlite3.connect(database, isolation_level=None)) as file:
        file.executescript("pragma cache_size = -2000000; pragma temp_store = memory;")
        tables = {name for (name,) in file.execute("select name from sqlite_schema where type = 'table'")}
        shape = next(inserts for table, inserts in SHAPES.items() if table in tables)
        file.execute("create temp table made (number integer primary key, id text)")
        file.execute(
            f"""
            insert into made
            with recursive numbers (value) as (select 1 union all select value + 1 from numbers where value < ?)
            select value, {ID[kind]} from numbers
            """,
            (count,),
        )
        file.execute("begin")
        for insert in shape:
            file.execute(f"insert into {insert}", {"now": time.time()})
        file.execute("insert or replace into counter (name, value) values ('next_seq', ?)", (count + 2000,))
        file.execute("commit")
        file.execute("pragma wal_checkpoint(truncate)")


def prepared(folder: Path, python: str, count: int, kind: str) -> Path:
    """Make a file of this interpreter's eoq with so many settled ids."""
    folder.mkdir()
    with daemon(folder, python):
        send = "import eoq, sys; eoq.connect(sys.argv[1]).send('bench', b'')"
        subprocess.run([python, "-P", "-c", send, str(folder / "s")], check=True)
    if count:
        fill(folder / "eoq.db", count, kind)
    return folder


def settled(options: argparse.Namespace, place: Path) -> None:
    """Compare files with many settled ids to an empty one."""
    kind = "random" if options.random else "ordered"
    plan = [("empty", sys.executable, 0), ("full", sys.executable, options.ids)]
    if options.old:
        plan += [("old, empty", options.old, 0), ("old, full", options.old, options.ids)]
    with ExitStack() as stack:
        candidates = []
        for name, python, count in plan:
            folder = prepared(place / name.replace(", ", "-"), python, count, kind)
            print(f"{name}: {(folder / 'eoq.db').stat().st_size / 1e6:,.0f} MB", file=sys.stderr)
            candidates.append(Candidate(name, folder, python, stack.enter_context(daemon(folder, python))))
        for number in range(options.rounds):
            for candidate in candidates if number % 2 else reversed(candidates):
                candidate.measure(kind)
    print_settled(candidates, kind, options.ids)


def print_settled(candidates: Sequence[Candidate], kind: str, ids: int) -> None:
    """Print the medians in microseconds a message, and the ratios of the rates to those of the empty file."""
    print(f"{ids:,} settled ids, {kind}; microseconds a message, and the rate as a ratio to the empty file")
    print(f"{'':12} {'':10} {'send':>15} {'receive+ack':>15} {'both':>15}")
    for part, by in ((0, "clock"), (1, "processor")):
        base: list[list[float]] = []
        for candidate in candidates:
            sends, takes = ([figure[part] for figure in figures] for figures in (candidate.sends, candidate.takes))
            columns = [sends, takes, [send + take for send, take in zip(sends, takes, strict=True)]]
            base = base or columns
            line = f"{candidate.name:12} {by:10}"
            for column, empty in zip(columns, base, strict=True):
                ratio = statistics.median(one / other for one, other in zip(empty, column, strict=True))
                line += f" {statistics.median(column) / BATCHES / 100 * 1e6:9.1f} {ratio:5.2f}"
            print(line)


# ── waiting messages ────────────────────────────────────────────────────────────────────────────────────────


def waiting(options: argparse.Namespace, place: Path) -> None:
    """Show what a start with many waiting messages takes."""
    for count in (0, options.messages):
        folder = place / str(count)
        folder.mkdir()
        with daemon(folder), eoq.connect(folder / "s") as client:
            for _ in client.send_stream("bench", itertools.repeat(b"x" * 100, count)):
                pass
        starts, processors, memory = [], [], []
        for _ in range(options.rounds):
            begin = time.perf_counter()
            with daemon(folder) as process:
                starts.append(time.perf_counter() - begin)
                processors.append(processor_seconds(process.pid))
                with eoq.connect(folder / "s") as client:
                    for message in client.receive("bench", limit=100):
                        message.nack()
                memory.append(resident_kilobytes(process.pid) / 1024)
        print(
            f"{count:9,} waiting: ready after {statistics.median(starts):.2f} s (processor "
            f"{statistics.median(processors):.2f} s), {statistics.median(memory):.0f} MB of memory"
        )


# ── a flood ─────────────────────────────────────────────────────────────────────────────────────────────────


def flood(options: argparse.Namespace, place: Path) -> None:
    """Send many messages and drain them. Show how soon the file is small, and the longest send meanwhile."""
    file = place / "eoq.db"
    with daemon(place), eoq.connect(place / "s") as client:
        for _ in client.send_stream("flood", itertools.repeat(b"x" * 1000, options.messages)):
            pass
        print(f"sent: {file.stat().st_size / 1e6:,.0f} MB")
        messages = client.consume("flood", prefetch=500, idle=1)
        while batch := list(itertools.islice(messages, 250)):
            client.ack_many([(message, None) for message in batch])
        begin, longest = time.perf_counter(), 0.0
        print(f"drained: {file.stat().st_size / 1e6:,.0f} MB")
        while file.stat().st_size >= SMALL and time.perf_counter() < begin + FLOOD_SECONDS:
            start = time.perf_counter()
            client.send("other", b"x")
            longest = max(longest, time.perf_counter() - start)
            time.sleep(0.01)  # the file shrinks in the pauses
        print(
            f"{time.perf_counter() - begin:.1f} s later: {file.stat().st_size / 1e6:,.0f} MB; the longest send "
            f"meanwhile {longest * 1e3:.1f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("settled", help="many settled ids")
    command.add_argument("--ids", type=int, default=5_000_000)
    command.add_argument("--random", action="store_true", help="ids without an order")
    command.add_argument("--old", metavar="PYTHON", help="the interpreter of an earlier version, measured beside")
    command.add_argument("--rounds", type=int, default=7)
    command.set_defaults(run=settled)
    command = commands.add_parser("waiting", help="many waiting messages")
    command.add_argument("--messages", type=int, default=1_000_000)
    command.add_argument("--rounds", type=int, default=5)
    command.set_defaults(run=waiting)
    command = commands.add_parser("flood", help="many messages that are drained")
    command.add_argument("--messages", type=int, default=300_000)
    command.set_defaults(run=flood)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        options.run(options, Path(folder))


if __name__ == "__main__":
    main()
