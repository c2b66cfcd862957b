"""The recipes can be followed: each block runs as it stands, in the framework that it is for."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.examples.conftest import EXAMPLES
from tests.examples.node import needs_node
from tests.examples.pages import PATIENT, Page, follow
from tests.support import Shell, eventually, kill_group

PAGE: Final = Page("eoq/docs/recipes.md")
BLOCKS: Final = {
    ("Cron", "sh"): 3,
    ("Cron", "crontab"): 1,
    ("Flask", "python"): 1,
    ("Flask", "sh"): 2,
    ("FastAPI", "python"): 1,
    ("FastAPI", "sh"): 2,
    ("Django", "python"): 4,
    ("Django", "sh"): 1,
    ("SQLAlchemy", "python"): 1,
    ("SQLAlchemy", "sh"): 1,
    ("Shell", "sh"): 2,
    ("Node.js", "js"): 1,
    ("Node.js", "sh"): 1,
}

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="the recipe needs curl")
needs_sqlite3 = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the recipe needs the program sqlite3")


def test_no_block_is_left_out() -> None:
    assert PAGE.inventory() == BLOCKS


def _save(folder: Path, title: str, language: str) -> None:
    """Write each block of a recipe to the file that its first line names."""
    for code in PAGE.blocks(title, language):
        name = re.match(r"(?:#|//) ([^\s,]+)[,\n]", code)
        assert name, code
        (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
        (folder / name[1]).write_text(code)


def _rows(file: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file, timeout=30)) as database:
        return database.execute(sql).fetchall()


# ── cron ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_cron_runs_a_job_once_a_day_and_enqueues_one_once(alone: Shell, folder: Path) -> None:
    once, send, schedule = PAGE.blocks("Cron", "sh")
    report = folder / "make-report"
    report.write_text("#!/bin/sh\necho run >> runs\necho the report\n")
    report.chmod(0o755)
    day = follow(alone, "eoq start; date +%F")[-1]
    assert follow(alone, once + once) == ["the report"] * 2
    sent = follow(alone, send)
    if follow(alone, "date +%F") != [day]:
        pytest.skip("midnight passed during the test")
    assert (folder / "runs").read_text() == "run\n"
    assert sent == [f"nightly-{day}"] * 2
    assert len(follow(alone, "eoq peek reports --json")) == 1
    follow(alone, schedule)
    assert "15 2 * * *" in alone.run("eoq schedule list").text


@pytest.mark.slow
def test_the_line_of_the_crontab_runs_as_cron_runs_it(alone: Shell, folder: Path) -> None:
    (crontab,) = PAGE.blocks("Cron", "crontab")
    setting, line = crontab.splitlines()
    assert re.fullmatch(r"EOQ_SOCKET=/\S+", setting)
    times, command = line.split(" /", 1)
    assert len(times.split()) == 5
    assert not re.search(r"(?<!\\)%", command), "cron would end the command there"
    (folder / "make-report").write_text("#!/bin/sh\necho the report\n")
    (folder / "make-report").chmod(0o755)
    command = f"/{command}".replace("\\%", "%").replace("/opt/shop", str(folder))
    eoq = shutil.which("eoq", path=alone.environment["PATH"])
    follow(alone, "eoq start")
    printed = follow(alone, f"PATH=/usr/bin:/bin; {command.replace('/usr/local/bin/eoq', str(eoq))}")
    assert printed == ["the report"]


# ── web frameworks ──────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _served(alone: Shell, command: str) -> Iterator[str]:
    """Run a web server on a free port. Yield its address."""
    said = alone.folder / "server.log"
    started = alone.start(f"exec {command.rstrip()} > {said} 2>&1")
    with started:
        try:
            address = eventually(
                lambda: re.search(r"unning on (http://[\d.:]+)\s", said.read_text() if said.exists() else ""),
                PATIENT,
                what="the server runs",
            )
            assert address
            yield address[1]
        finally:
            kill_group(started)


def _ask(alone: Shell, request: str) -> tuple[Any, int]:
    """Run a `curl` of a recipe, without its comment. Return the JSON of its answer, and its status."""
    command = request.partition("  #")[0]
    body, status = follow(alone, f"{command} -s -w '\\n%{{http_code}}\\n' | grep -v '^$'")
    return json.loads(body), int(status)


@needs_curl
@pytest.mark.slow
@pytest.mark.parametrize(("title", "package"), [("Flask", "flask"), ("FastAPI", "fastapi")])
def test_an_endpoint_stores_each_payment_once(alone: Shell, folder: Path, title: str, package: str) -> None:
    pytest.importorskip(package)
    serve, ask = PAGE.blocks(title, "sh")
    _save(folder, title, "python")
    follow(alone, "eoq start")
    with _served(alone, re.sub(r"--port \d+\n", "--port 0", serve)) as address:
        asked = re.sub(r"http://127.0.0.1:\d+", address, ask)
        requests = [line for line in asked.splitlines() if line.startswith("curl")]
        assert len(requests) == 4
        answers = [_ask(alone, request) for request in requests[:3]]
        id = answers[0][0]["id"]
        assert answers[:2] == [({"id": id, "duplicate": duplicate}, 202) for duplicate in (False, True)]
        assert "other content" in answers[2][0]["error"] and answers[2][1] == 409
        follow(alone, asked)  # the whole block once more: the payment was stored once
        assert _ask(alone, requests[3]) == ({"id": id, "outcome": "done"}, 200)
        follow(alone, "eoq stop")
        assert _ask(alone, requests[3])[1] == 503


@pytest.mark.slow
def test_django_stores_an_order_and_its_message_together_and_books_once(alone: Shell, folder: Path) -> None:
    pytest.importorskip("django", "5.1")
    follow(alone, "django-admin startproject site_ . && python manage.py startapp shop")
    _save(folder, "Django", "python")
    settings = folder / "site_" / "settings.py"
    ours = (folder / "settings.py").read_text()
    settings.write_text(f"{settings.read_text()}\nINSTALLED_APPS.append('shop')\n{ours}")
    follow(alone, "python manage.py makemigrations shop && python manage.py migrate && eoq start")
    (folder / "order.py").write_text(
        "from django.db import connection, transaction\n"
        "from django.test import RequestFactory\n"
        "from shop.views import place_order\n"
        "request = RequestFactory().post('/', {'account': 'alice', 'amount': 5})\n"
        "print(connection.cursor().execute('pragma synchronous').fetchone()[0])\n"
        "print(place_order(request).content.decode())\n"
        "try:\n"
        "    with transaction.atomic():\n"
        "        place_order(request)\n"
        "        raise LookupError\n"
        "except LookupError:\n"
        "    pass\n"
    )
    synchronous, placed = follow(alone, "python manage.py shell < order.py")[-2:]
    assert (synchronous, json.loads(placed)) == ("3", {"order": 1})
    (commands,) = PAGE.blocks("Django", "sh")
    assert follow(alone, commands)[-1] == "booked"
    bookings = "select payment, account, amount from shop_booking"
    assert _rows(folder / "db.sqlite3", bookings) == [("order-1", "alice", 5)]
    # The same message again, as if its ack had been lost: the inbox runs nothing.
    follow(alone, "eoq stop; rm -r eoq.db*")
    body = json.dumps({"account": "alice", "amount": 5}, separators=(",", ":"))
    follow(alone, f"eoq start; eoq send payments '{body}' --header content-type=application/json --id order-1")
    assert follow(alone, "python manage.py book_payments --until-empty; eoq result payments order-1")[-1] == "booked"
    assert _rows(folder / "db.sqlite3", bookings) == [("order-1", "alice", 5)]


@pytest.mark.slow
def test_sqlalchemy_stores_an_order_and_its_message_together_and_books_once(alone: Shell, folder: Path) -> None:
    pytest.importorskip("sqlalchemy")
    _save(folder, "SQLAlchemy", "python")
    (commands,) = PAGE.blocks("SQLAlchemy", "sh")
    asked = "import shop; print(shop.engine.connect().exec_driver_sql('pragma synchronous').scalar())"
    assert follow(alone, f'python -c "{asked}"') == ["3"], "extra"
    assert follow(alone, f"eoq start; {commands}")[-1] == "booked"
    assert _rows(folder / "shop.db", "select payment, amount from booking") == [("order-1", 5)]


# ── other languages ─────────────────────────────────────────────────────────────────────────────────────────


@needs_sqlite3
@pytest.mark.slow
def test_a_shell_books_once(alone: Shell, folder: Path) -> None:
    (folder / "examples").symlink_to(EXAMPLES)
    apply, script = PAGE.blocks("Shell", "sh")
    follow(alone, f"eoq start; {apply}")
    assert _rows(folder / "book.db", "select * from booking") == [("alice", 5)]
    printed = follow(alone, script)
    assert any(line.endswith(" crash points, 0 differences") for line in printed), printed
    assert _rows(folder / "ledger.db", "select account, cents from balance") == [("dave", 300)]


@needs_node
@pytest.mark.slow
def test_node_sends_and_books_once(alone: Shell, folder: Path) -> None:
    (folder / "examples").symlink_to(EXAMPLES)
    _save(folder, "Node.js", "js")
    (commands,) = PAGE.blocks("Node.js", "sh")
    printed = follow(alone, f"eoq start; {commands}")
    assert printed == [
        "order-71 is on disk",
        "order-71 was stored before",
        "order-71: carol has 900 cents",
        "carol has 900 cents",
    ]
    assert _rows(folder / "ledger.db", "select payment from booking") == [("order-71",)]
