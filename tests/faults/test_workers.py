"""Workers that are killed, or frozen until their lease has ended: each message has one effect.

``EOQ_SEED`` repeats the order of the kills of an earlier run (not its timing).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.faults import frozen_worker, outbox_producer
from tests.faults.daemons import PlantedDaemon, left, planted_daemon, show
from tests.support import PATIENCE, clean_environment, eventually, read_line_of

COMMANDS: Final = 20
"""Messages for ``eoq work`` between two kills: enough that one is mostly being handled at the kill."""
STATEMENTS: Final = 1000
"""Messages for ``eoq apply`` alone between two kills."""
LONGEST_LIFE: Final = 0.6
"""Seconds between two kills, at most."""
END: Final = 300.0
"""Seconds in which the rest must be handled after the last kill."""

# The trace of the command has a line for each start. A command is only run at least once.
COMMAND: Final = 'read -r n; echo "$EOQ_ID" >> "$0"; sleep 0.03; echo "{\\"n\\": $n}"'
SQL: Final = "insert into effect values (:id, :body ->> '$.n')"


def _ledger(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute(
            "create table effect (id text not null, n integer not null)"
        )  # without a key: an effect that happens twice is two rows
    return folder / "ledger.db"


class Program:
    """An ``eoq`` command that is killed and started again."""

    def __init__(
        self, daemon: PlantedDaemon, name: str, *arguments: object, program: Sequence[str] = ("-m", "eoq.cli")
    ) -> None:
        self._errors = daemon.folder / f"{name}.err"
        self._command = [sys.executable, *program, *map(str, arguments)]
        self._environment = clean_environment(EOQ_SOCKET=str(daemon.socket))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stderr=errors, env=self._environment, cwd="/"
            )

    def kill(self) -> None:
        """Send ``kill -9``. The program may have ended before only because there was no daemon when it started."""
        if self._process is not None:
            ended = self._process.poll()
            self._process.kill()
            self._process.wait()
            self._process = None
            assert ended in (None, 69), f"it has ended with {ended}: {self._errors.read_text()}"

    def restart(self) -> None:
        self.kill()
        self.start()


def _kill_at_random(
    victims: dict[str, Callable[[], None]], send: Callable[[], None], rng: random.Random, seconds: float
) -> Counter[str]:
    """Send messages, kill and restart a victim, and repeat. Return how often each was killed.

    There is at least one kill per second of ``seconds``; with a slow machine this takes longer.
    """
    kills: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end or kills.total() < seconds:
        send()
        time.sleep(rng.uniform(0.0, LONGEST_LIFE))
        name = rng.choice(list(victims))
        victims[name]()
        kills[name] += 1
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_eoq_work_and_eoq_apply_killed_at_random_have_one_effect_each(seconds: float) -> None:
    seed = int(os.environ.get("EOQ_SEED") or random.SystemRandom().randrange(10**6))
    print(f"EOQ_SEED={seed}")
    numbers = iter(range(10**6))
    sent: dict[str, int] = {}
    with planted_daemon() as daemon, ExitStack() as stack:
        ledger, trace = _ledger(daemon.folder), daemon.folder / "trace"
        command = ("--result-queue", "out", "--", "sh", "-c", COMMAND, trace)
        programs = {
            "work 1": Program(daemon, "work1", "work", "in", "--concurrency", 2, *command),
            "work 2": Program(daemon, "work2", "work", "in", *command),
            "apply 1": Program(daemon, "apply1", "apply", "out", "--db", ledger, "--sql", SQL),
            "apply 2": Program(daemon, "apply2", "apply", "out", "--db", ledger, "--sql", SQL),
        }
        for program in programs.values():
            stack.callback(program.kill)
            program.start()
        with eoq.connect(daemon.socket, timeout=60) as client:

            def send() -> None:
                commands = {f"c{n}": n for n in islice(numbers, COMMANDS)}
                statements = {f"s{n}": n for n in islice(numbers, STATEMENTS)}
                client.send_many("in", [eoq.Outgoing(str(n), id=id) for id, n in commands.items()])
                client.send_many("out", [eoq.Outgoing({"n": n}, id=id) for id, n in statements.items()])
                sent.update(commands | statements)

            victims = {"daemon": daemon.restart, **{name: program.restart for name, program in programs.items()}}
            kills = _kill_at_random(victims, send, random.Random(seed), seconds)
            for program in programs.values():
                program.restart()  # one may have ended because it found no daemon
            eventually(lambda: not left(client, "in") and not left(client, "out"), END, what="the queues are drained")
        with closing(sqlite3.connect(ledger)) as database:
            effects = dict(database.execute("select id, n from effect"))
            (rows,) = database.execute("select count(*) from effect").fetchone()
        runs = Counter(trace.read_text().split())
    assert rows == len(effects), "effects that happened twice"
    assert effects == sent
    assert runs.keys() == {id for id in sent if id.startswith("c")}
    print(f"{len(sent)} messages over {dict(kills)}; {runs.total() - len(runs)} commands ran again")
    assert kills.total() >= seconds


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4.0, pytest.param(65.0, marks=pytest.mark.slow)])
def test_a_pipeline_of_three_stages_killed_everywhere_has_one_effect_each(seconds: float) -> None:
    """Outbox → queue → a worker that acks and sends → SQL in another database: the id stays the same all the way."""
    seed = int(os.environ.get("EOQ_SEED") or random.SystemRandom().randrange(10**6))
    print(f"EOQ_SEED={seed}")
    with planted_daemon() as daemon, ExitStack() as stack:
        shop, ledger, trace = daemon.folder / "shop.db", _ledger(daemon.folder), daemon.folder / "trace"
        with closing(sqlite3.connect(shop)) as database:
            database.execute("pragma journal_mode = wal")
            database.execute("create table orders (number integer primary key)")
        command = ("--result-queue", "out", "--", "sh", "-c", COMMAND, trace)
        programs = {
            "producer": Program(daemon, "producer", shop, COMMANDS, program=[outbox_producer.__file__]),
            "relay 1": Program(daemon, "relay1", "relay", shop),
            "relay 2": Program(daemon, "relay2", "relay", shop),
            "work": Program(daemon, "work", "work", "in", "--concurrency", 2, *command),
            "apply": Program(daemon, "apply", "apply", "out", "--db", ledger, "--sql", SQL),
        }
        for program in programs.values():
            stack.callback(program.kill)
            program.start()

        def read_orders() -> dict[str, int]:
            with closing(sqlite3.connect(shop, timeout=60)) as database:
                return {f"o{n}": n for (n,) in database.execute("select number from orders")}

        eventually(read_orders, what="the producer has begun")
        victims = {"daemon": daemon.restart, **{name: program.restart for name, program in programs.items()}}
        kills = _kill_at_random(victims, programs["producer"].restart, random.Random(seed), seconds)
        programs.pop("producer").kill()
        for program in programs.values():
            program.restart()  # one may have ended because it found no daemon
        orders = read_orders()

        def effects() -> list[tuple[str, int]]:
            with closing(sqlite3.connect(ledger, timeout=60)) as database:
                return database.execute("select id, n from effect").fetchall()

        eventually(lambda: len(effects()) >= len(orders), END + seconds, what="all has arrived")
        with eoq.connect(daemon.socket, timeout=60) as client:
            eventually(lambda: not left(client, "in") and not left(client, "out"), END, what="the queues are drained")

        def rows() -> int:
            with closing(sqlite3.connect(shop, timeout=60)) as database:
                return int(database.execute("select count(*) from eoq_outbox").fetchone()[0])

        # A relay that was killed between the send and the removal of its rows sends them again, and removes them then.
        eventually(lambda: rows() == 0, END, what="the outbox is empty")
        for program in programs.values():
            program.kill()
        found = effects()
    assert sorted(found) == sorted(orders.items())
    print(f"{len(orders)} orders over {dict(kills)}")
    assert len(orders) > 0


# ── two workers with the same message ───────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before", "handler"])
def test_two_workers_with_the_same_message_have_one_effect(point: str) -> None:
    with planted_daemon() as daemon, eoq.connect(daemon.socket) as client, ExitStack() as stack:
        ledger = _ledger(daemon.folder)

        def worker(point: str) -> subprocess.Popen[bytes]:
            arguments = [frozen_worker.__file__, str(daemon.socket), "q", str(ledger), point]
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=-1,
                stdout=-1,
                stderr=-1,
                env=clean_environment(),
                cwd="/",
                bufsize=0,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert read_line_of(process) == b"open\n"
            return process

        def begin(process: subprocess.Popen[bytes]) -> None:
            assert process.stdin is not None
            process.stdin.write(b"\n")

        client.send("q", "x", id="m")
        slow, fast = worker(point), worker("never")
        begin(slow)
        os.waitpid(slow.pid, os.WUNTRACED)  # it is frozen
        # Its connection is open, but its lease is not extended.
        eventually(lambda: (show(client, "q", "m") or {})["state"] == "ready")
        begin(fast)
        # A done message has no attempts any more.
        eventually(lambda: (show(client, "q", "m") or {}).get("attempts", 2) == 2)
        if point == "before":
            assert fast.wait(PATIENCE) == 0
        slow.send_signal(signal.SIGCONT)
        outs = [process.communicate(timeout=PATIENCE) for process in (slow, fast)]
        assert [json.loads(out) for out, _ in outs] == [
            {"done": 0, "retried": 0, "rejected": 0, "lost": 1},
            {"done": 1, "retried": 0, "rejected": 0, "lost": 0},
        ]
        winner = fast if point == "before" else slow
        with closing(sqlite3.connect(ledger)) as database:
            assert database.execute("select id, n from effect").fetchall() == [("m", winner.pid)]
        # The other worker had committed, so the message is found processed: its result is stored.
        assert client.result("q", "m") == eoq.Result("done", str(winner.pid).encode())
        assert b"lost" in outs[0][1]
