"""The page on operations can be followed, and its table has every error."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from eoq import errors
from tests.examples.pages import Page, follow
from tests.support import Shell

PAGE: Final = Page("eoq/docs/operations.md")


def test_no_block_is_left_out() -> None:
    assert PAGE.inventory() == {(title, "sh"): 1 for title in ("Backup", "Restore", "Audit", "Move", "Size")}


@pytest.mark.slow
def test_backup_restore_and_compacting_can_be_pasted(alone: Shell, folder: Path) -> None:
    (backup,), (restore,), (size,) = (PAGE.blocks(title, "sh") for title in ("Backup", "Restore", "Size"))
    follow(alone, "eoq start && eoq send q hello --id a")
    assert len(follow(alone, backup)) == 2
    assert len(list((folder / "backups").iterdir())) == 2
    follow(alone, "eoq send q hello --id b")
    (kept,) = follow(alone, restore)
    with closing(sqlite3.connect(kept)) as old:
        assert old.execute("select count(*) from message").fetchone() == (2,)
    assert follow(alone, "eoq show q a --json | jq -r .state") == ["ready"]
    (sizes,) = follow(alone, size)
    assert all(int(number) > 0 for number in sizes.split())


@pytest.mark.slow
def test_a_move_can_be_pasted(alone: Shell, folder: Path) -> None:
    (move,) = PAGE.blocks("Move", "sh")
    follow(alone, "eoq start && eoq send q hello --id a")
    assert follow(alone, move) == ["2"], "the message, and what was counted of its queue"
    assert follow(alone, "eoq export --db new.db | jq -r 'select(.id) | .id'") == ["a"]


def test_the_audit_can_be_pasted(alone: Shell) -> None:
    (audit,) = PAGE.blocks("Audit", "sh")
    follow(alone, "eoq start && eoq send q hello --id a")
    (alone.folder / "ledger.db").touch()
    sql = "create table if not exists seen (x); insert into seen values (1)"
    apply = f"eoq apply q --db ledger.db --until-empty --sql '{sql}'"
    follow(alone, apply)
    assert follow(alone, audit) == []


def test_each_metric_to_alert_on_exists(alone: Shell) -> None:
    named = {name for alert, *_ in PAGE.rows("Alerts") for name in re.findall(r"eoq_\w+", alert)}
    follow(alone, "eoq start && eoq send q hello")
    printed = "\n".join(follow(alone, "eoq metrics"))
    assert len(named) > 10
    assert {name for name in named if not re.search(rf"^{name}[ {{]", printed, re.MULTILINE)} == set()


def test_the_table_has_every_error_with_its_exit_status() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE.section("Errors"), re.MULTILINE))
    kinds: list[type[errors.EoqError]] = [errors.EoqError, *errors.EoqError.__subclasses__()]
    assert listed == {kind.code: str(kind.exit_status) for kind in kinds if kind.__module__ == errors.__name__}
