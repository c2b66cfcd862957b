"""README can be followed: its blocks run as they stand, one after the other."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.examples.pages import ROOT, Page, follow
from tests.support import Shell

README: Final = Page("README.md")


def test_no_block_is_left_out() -> None:
    assert README.inventory() == {
        ("Set up", "sh"): 2,
        ("Set up", ""): 1,
        ("Use it from a shell", "sh"): 1,
        ("Use it from Python", "python"): 1,
    }


def test_it_is_short() -> None:
    words = [word for word in README.text.split() if re.search(r"\w", word)]  # without the lines of tables
    assert 800 <= len(words) <= 1000


def test_the_set_up_commands_are_those_that_ci_runs() -> None:
    demo, tests = README.blocks("Set up", "sh")
    assert demo == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/eoq demo\n"
    assert tests == "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest\n"
    pattern = r"^\(python3 -m venv .*pytest.*\)$"
    assert pattern in (ROOT / ".ci" / "run").read_text()
    assert re.findall(pattern.replace("\\", ""), README.text, re.MULTILINE) == [tests.rstrip()]


def _names(table: list[str]) -> list[str]:
    """Return the names of the table's rows, as they are indented, and the line under the table."""
    return [line[:24] for line in table[:12]] + table[12:13]


def test_the_demo_ends_with_the_table_that_is_shown(shell: Shell) -> None:
    (shown,) = README.blocks("Set up", "")
    ran = shell.run("eoq demo --payments 100 --kills 2")
    assert ran.status == 0, ran.errors
    assert len(ran.lines) == len(shown.splitlines())
    assert _names(ran.lines) == _names(shown.splitlines())
    assert re.fullmatch(r"[\d.]+ s; repeat with --seed \d+", ran.lines[-1])
    values = dict(re.findall(r"^ *(\S.*?)  +([\d.,]+)$", shown, re.MULTILINE))
    assert values["payments"] == values["effects"] == "2,000"
    assert values["missing"] == values["doubled"] == "0"
    assert values["balance expected"] == values["balance found"]


def test_the_steps_in_a_shell_can_be_pasted(alone: Shell, folder: Path) -> None:
    (steps,) = README.blocks("Use it from a shell", "sh")
    printed = follow(alone, steps)
    assert printed[:2] == ["order-17", "order-17"]
    assert "state       done" in printed
    assert printed[-1] == "the report of the day"
    with closing(sqlite3.connect(folder / "book.db")) as database:
        assert database.execute("select * from booking").fetchall() == [("alice", 5)]


def test_the_python_example_books_once_though_it_runs_twice(alone: Shell, folder: Path) -> None:
    (program,) = README.blocks("Use it from Python", "python")
    (folder / "program.py").write_text(program)
    printed = follow(alone, "eoq start; python program.py; python program.py")
    assert printed == ["Result(outcome='done', body=b'booked', error=None)"] * 2
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        assert database.execute("select * from ledger").fetchall() == [("order-18", "alice", 5)]
