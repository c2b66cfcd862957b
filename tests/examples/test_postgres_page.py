"""The page on PostgreSQL: its programs run, and its tables are those that eoq makes."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

import eoq
from tests.examples.pages import Page
from tests.integration.stores import Store
from tests.support import Shell

PAGE = Page("eoq/docs/postgres.md")


@pytest.fixture
def store(database: str) -> Store:
    return Store("postgres", database)


def _for(database: str, text: str) -> str:
    """Return a block of the page with the URL of the test's database."""
    with_driver = database.replace("postgresql:", "postgresql+psycopg:")
    text = text.replace("postgresql+psycopg:///shop", with_driver)
    return re.sub(r"postgresql:///shop\b", lambda _: database, text)


@pytest.mark.slow
def test_the_programs_and_the_commands_run(shell: Shell, folder: Path, database: str, store: Store) -> None:
    store.execute("create table receipt (id text, number integer)")
    ((inbox,), (guest,), (outbox,)) = (
        PAGE.blocks(title, "python")
        for title in ("The inbox", "Inside SQLAlchemy and Django", "The outbox in PostgreSQL")
    )
    for number, program in enumerate((inbox, guest, outbox)):
        (folder / "program.py").write_text(_for(database, program))
        ran = shell.run(f"""eoq send payments '{{"amount": 5}}' --id {number}; python {folder}/program.py""")
        assert ran.status == 0, ran.errors
    assert store.payments() == ["0", "1", "order-17"]
    (commands,) = PAGE.blocks("From a shell", "sh")
    ran = shell.run(_for(f"'{database}'", commands))
    assert ran.status == 0, ran.errors
    assert store.execute("select number from receipt") == [(17,)]


def test_the_tables_are_as_the_page_shows(database: str, store: Store) -> None:
    with psycopg.connect(database) as connection:
        eoq.PgOutbox(connection).send("q", "x")
    with eoq.PgInbox(database):
        pass
    names = ("eoq_processed", "eoq_watermark", "eoq_outbox")
    made = {name: _columns(store, name) for name in names}
    for name in names:
        store.execute(f"drop table {name}")
    (tables,) = PAGE.blocks("Tables", "sql")
    store.execute(tables)
    assert {name: _columns(store, name) for name in names} == made


def _columns(store: Store, table: str) -> list[tuple[object, ...]]:
    return store.execute(
        "select attname, format_type(atttypid, atttypmod), attnotnull, attcollation, pg_get_expr(adbin, adrelid) "
        "from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum "
        f"where attrelid = '{table}'::regclass and attnum > 0 order by attnum"
    )
