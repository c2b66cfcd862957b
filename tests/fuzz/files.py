"""Hostile files of a spool, rows of an outbox, and configurations: each is taken, or rejected with its reason."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import eoq
from tests.forker import forker
from tests.fuzz.mutations import STRANGE, mutated
from tests.support import PATIENCE, Daemon, clean_environment, eventually, running_daemon

QUEUES: Final = 3
"""Queues of the spool."""
LONGEST: Final = 600.0
"""Seconds that the daemon may take for all files or rows."""


@dataclass(slots=True)
class Report:
    """What became of the inputs of one kind."""

    kind: str
    taken: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """How many were rejected, by the beginning of the reason."""
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.problems

    def reject(self, what: object, reason: str) -> None:
        """Note a rejection. The reason must say something, and must not be a fault of eoq."""
        self.reasons[reason[:40]] += 1
        if len(reason) < 20 or "eoq failed" in reason or "Traceback" in reason:
            self.problems.append(f"{what!r}: {reason!r}")

    def check(self, daemon: Daemon) -> None:
        """Note a traceback, or the end of the daemon, as a problem."""
        if not daemon.running or "Traceback" in daemon.said or "a fault in eoq" in daemon.said:
            self.problems.append(daemon.said[-2000:])

    def __str__(self) -> str:
        rejected = self.reasons.total()
        first = f"{self.kind}: {self.taken:,} taken, {rejected:,} rejected for {len(self.reasons)} kinds of reasons"
        return "\n".join([first, *self.problems[:20]])


# ── the spool ───────────────────────────────────────────────────────────────────────────────────────────────


def _options(rng: random.Random, number: int) -> dict[str, Any]:
    choices: dict[str, Any] = {
        "id": f"{number}",
        "headers": {"k": "v"},
        "priority": 1,
        "group": "g",
        "delay": 1,
        "at": 1700000000,
        "ttl": 5,
        "left_at": 1700000000.5,
        "tried_at": 1.5,
    }
    return {name: choices[name] for name in rng.sample(sorted(choices), rng.randint(0, 4))}


def _spool_file(rng: random.Random, number: int) -> bytes:
    options = _options(rng, number)
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(200))
    if kind < 0.5:
        options[rng.choice([*options, "id", "ttl", "left_at", "extra"])] = rng.choice(STRANGE)
        return json.dumps(options).encode() + b"\nbody"
    return mutated(rng, json.dumps(options).encode() + b"\nbody", json.dumps(_options(rng, number)).encode())


def run_spool(count: int, seed: int) -> Report:
    """Leave ``count`` files in the spool of a daemon."""
    rng = random.Random(seed)
    report = Report("spool files")
    with _folder() as folder, running_daemon("--spool", str(folder / "spool")) as daemon:
        for number in range(count):
            here = folder / "spool" / f"q{number % QUEUES}"
            here.mkdir(parents=True, exist_ok=True)
            unfinished = here / f".{number}"
            unfinished.write_bytes(_spool_file(rng, number))
            unfinished.rename(here / f"{number}.eoq")

        def handled() -> bool:
            status = daemon.ask(op="status")
            report.taken = status["spool_taken"]
            return bool(status["spool_taken"] + status["spool_rejected"] >= count)

        _wait(handled, report)
        for file in (folder / "spool").glob("*/.rejected/*.reason"):
            report.reject(file.name, file.read_text(errors="replace"))
        _count(report, count)
        report.check(daemon)
    return report


# ── an outbox ───────────────────────────────────────────────────────────────────────────────────────────────

_COLUMNS: Final = ("id", "queue", "body", "headers", "priority", "group", "at", "ttl", "created_at")


def _row(rng: random.Random, number: int) -> list[object]:
    """Return the values of a row. The group is this row's alone: the others of a group wait for one set aside."""
    row: list[object] = [f"{number}", "q", "body", '{"k": "v"}', 0, f"g{number}", None, None, 1.0]
    for _ in range(rng.randint(1, 3)):
        column = rng.randrange(len(row))
        value = rng.choice([*STRANGE, rng.randbytes(rng.randrange(30)), float("inf"), float("-inf"), 2**63 - 1])
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = f"{value}"
        if isinstance(value, str):
            value = value.encode(errors="surrogatepass") if rng.random() < 0.5 else value.replace("\ud800", "\x00")
        if isinstance(value, list | dict):
            value = json.dumps(value)
        if _COLUMNS[column] == "group" and value is not None:
            value = f"{number} {value!r}".encode() if rng.random() < 0.5 else f"{number} {value}"
        row[column] = value
    return row


def run_rows(count: int, seed: int) -> Report:
    """Write ``count`` rows to an outbox that a daemon relays."""
    rng = random.Random(seed)
    report = Report("outbox rows")
    with _folder() as folder:
        file = folder / "app.db"
        config = folder / "eoq.toml"
        config.write_text(f'[[relay]]\npath = "{file}"\n')
        with closing(sqlite3.connect(file, timeout=PATIENCE)) as database:
            eoq.Outbox(database)
            names = ", ".join(f'"{name}"' for name in _COLUMNS)
            database.executescript(
                f"drop table eoq_outbox; create table eoq_outbox (seq integer primary key, {names}, error, failed_at)"
            )
            marks = ", ".join("?" * len(_COLUMNS))
            with database:
                database.executemany(
                    f"insert into eoq_outbox ({names}) values ({marks})",
                    [_row(rng, number) for number in range(count)],
                )
            with running_daemon("--config", str(config)) as daemon:
                _wait(lambda: not database.execute("select 1 from eoq_outbox where error is null").fetchall(), report)
                report.check(daemon)
            database.text_factory = lambda text: text.decode(errors="replace")
            for seq, error in database.execute("select seq, error from eoq_outbox"):
                report.reject(seq, f"{error}")
            report.taken = count - report.reasons.total()
    return report


# ── configurations ──────────────────────────────────────────────────────────────────────────────────────────

CONFIG: Final = """\
[daemon]
db = "eoq.db"
spool = "spool"

[storage]
min_free_bytes = 1048576

[queues."mail.*"]
retention = 86400
max_attempts = 5
when_full = "drop_oldest"
max_depth = 1000

[[relay]]
path = "shop.db"

[[bind]]
topic = "orders"
queue = "mail.orders"
headers = { country = "de" }

[[schedule]]
name = "report"
queue = "reports"
cron = "30 6 * * MON-FRI"
timezone = "Europe/Berlin"
"""
_VALUES: Final = (
    "[]", "{}", "true", '""', "-1", "0", "1e400", "nan", "-inf", "9" * 5000, "1979-05-27T07:32:00Z", "07:32:00",
    '"\\u0000"', '"' + "x" * 1500 + '"', "[[[[1]]]]", "{ a = { b = { c = 1 } } }", '"none"', "0x7fffffffffffffff",
    '"[!"', '"***"', "'''\n'''", '"~/x"', '"../../../../etc/passwd"', "[{}]",
)  # fmt: skip


def _config(rng: random.Random) -> bytes:
    lines = CONFIG.splitlines()
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(500))
    if kind < 0.5:
        at = rng.choice([number for number, line in enumerate(lines) if " = " in line])
        lines[at] = f"{lines[at].partition(' = ')[0]} = {rng.choice(_VALUES)}"
        return "\n".join(lines).encode()
    if kind < 0.6:
        rng.shuffle(lines)
        return "\n".join(lines).encode()
    return mutated(rng, CONFIG.encode(), CONFIG.encode())


def run_configs(count: int, seed: int) -> Report:
    """Let ``eoq config check`` check ``count`` configurations, and a running daemon read some of them again."""
    rng = random.Random(seed)
    report = Report("configurations")
    with _folder() as folder:
        for number in range(count):
            file = folder / "eoq.toml"
            file.write_bytes(_config(rng))
            status, said = _check_config(file)
            if status == 0:
                report.taken += 1
            elif status == 65:
                report.reject(number, said.removeprefix(f"eoq: the configuration {file} is wrong: "))
            else:
                report.problems.append(f"exit status {status} for {file.read_bytes()!r}: {said}")
        _reload(folder, rng, report, min(count // 10, 100))
    return report


def _check_config(file: Path) -> tuple[int, str]:
    with tempfile.TemporaryFile() as said, Path(os.devnull).open("rb") as nothing:
        process = forker().start(
            [sys.executable, "-m", "eoq.cli", "config", "check", str(file)],
            clean_environment(),
            file.parent,
            (nothing.fileno(), said.fileno(), said.fileno()),
        )
        status = process.wait(PATIENCE)
        said.seek(0)
        return status, said.read().decode(errors="replace")


def _reload(folder: Path, rng: random.Random, report: Report, count: int) -> None:
    """Put configurations in the place of a running daemon's. It keeps its settings, or takes the new ones."""
    file = folder / "running.toml"
    file.write_text("")
    with running_daemon("--config", str(file)) as daemon:
        for _ in range(count):
            text = _config(rng)
            before = daemon.ask(op="status")
            other = folder / "other.toml"
            other.write_bytes(text)
            is_right = _check_config(other)[0] == 0
            other.rename(file)
            wanted = "config_read_at" if is_right else "config_error"
            eventually(lambda: daemon.ask(op="status")[wanted] != before[wanted], what=daemon.said)  # noqa: B023
            file.write_text(f"# {rng.random()}\n")
            eventually(lambda: daemon.ask(op="status")["config_error"] is None, what=daemon.said)
        report.check(daemon)


# ── what they share ─────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="eoq-fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _wait(condition: Callable[[], object], report: Report) -> None:
    try:
        eventually(condition, LONGEST)
    except AssertionError as error:
        report.problems.append(f"{error}")


def _count(report: Report, count: int) -> None:
    found = report.taken + report.reasons.total()
    if found != count:
        report.problems.append(f"{count} were given, and {found} are accounted for")


ALL: Final[dict[str, Callable[[int, int], Report]]] = {
    "spool": run_spool,
    "rows": run_rows,
    "configs": run_configs,
}
"""What can be run, by the name of its option."""
