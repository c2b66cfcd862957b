"""The page on speed: it has the rows and peers of the benchmark that makes it, and its commands run."""

from __future__ import annotations

import re
import sys

import pytest

from tests.bench.peers.__main__ import PEERS, ROWS
from tests.examples.pages import ROOT, Page
from tests.support import Shell

PAGE = Page("eoq/docs/speed.md")


def _table() -> dict[str, list[str]]:
    lines = re.findall(r"^\| (.+) \|$", PAGE.section("Beside others"), flags=re.MULTILINE)
    return {label: figures for label, *figures in (line.split(" | ") for line in lines) if len(figures) > 1}


def test_the_table_has_rows_and_peers_of_the_benchmark() -> None:
    peers, *rows = _table().items()
    assert set(peers[1]) <= {peer.name for peer in (kind() for kind in PEERS)}
    known = {f"{row.label}, {row.unit}" if row.unit != "rate" else row.label for row in ROWS}
    assert {label for label, _ in rows} <= known


def test_readme_says_what_the_table_says() -> None:
    table, text = _table(), " ".join(Page("README.md").text.split())
    labels = ("send, 1 producer", "send, 8 producers", "send, batches of 100")
    one, eight, batches = (float(table[label][0]) for label in labels)
    assert f"{one:.2f} messages from one producer, {eight:.1f} from eight and {batches:.0f} in batches" in text


@pytest.mark.slow
def test_the_command_prints_such_a_table(shell: Shell) -> None:
    (command,) = PAGE.blocks("What is compared", "sh")
    quick = "--rounds 1 --scale 0.01 --rows send --peers eoq"
    ran = shell.run(f"cd {ROOT} && {command.strip().replace('python', sys.executable, 1)} {quick}")
    assert ran.status == 0, ran.errors
    assert re.search(r"^send, 1 producer +[0-9.]+ +0.75$", ran.text, flags=re.MULTILINE)
    assert "eoq: synced before each confirmation" in ran.text


@pytest.mark.slow
def test_the_parts_are_those_that_the_command_prints(shell: Shell) -> None:
    ran = shell.run(f"cd {ROOT} && {sys.executable} -m tests.bench.parts --rounds 1")
    assert ran.status == 0, ran.errors
    printed = {re.split(r"  +", line)[0] for line in ran.lines[1:]}
    assert {row[0] for row in PAGE.rows("Where the time goes")} <= printed
