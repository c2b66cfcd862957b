"""The shop with an outbox: each order has its payment message and each message its order, even after kills."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import eoq
from tests.examples.conftest import EXAMPLES
from tests.support import Daemon, clean_environment, eventually, kill_group

SHOP: Final = EXAMPLES / "outbox_shop.py"
SELLER: Final = """
import sys
sys.path.insert(0, sys.argv[1])
import outbox_shop
shop = outbox_shop.open_shop(sys.argv[2])
while True:
    outbox_shop.place_order(shop, "alice", 5)
"""


@pytest.fixture
def shop(daemon: Daemon) -> Path:
    """The shop's file, beside the daemon's."""
    return daemon.folder / "shop.db"


def _orders(shop: Path) -> list[str]:
    with closing(sqlite3.connect(shop, timeout=30)) as database:
        return [f"order-{number}" for (number,) in database.execute("select number from orders order by number")]


def _has_orders(shop: Path, more_than: int) -> bool:
    return len(_orders(shop)) > more_than


def _payments(daemon: Daemon) -> list[str]:
    with eoq.connect(daemon.socket) as client:
        ids = []
        for message in client.consume("payments", idle=0.1):
            ids.append(message.id)
            message.ack()
        return ids


@pytest.mark.slow
def test_the_commands_of_its_docstring(daemon: Daemon, shop: Path) -> None:
    ran = daemon.shell().run(f"python {SHOP} --db {shop} alice 500 && eoq relay {shop} --until-empty")
    assert (ran.status, ran.text) == (0, "order-1\n")
    ran = daemon.shell().run(f"eoq receive payments --json; python {SHOP} --db {shop} bob 0")
    assert ran.status == 65
    assert ran.rows[0]["id"] == "order-1"
    assert ran.rows[0]["body"] == '{"account":"alice","cents":500}'
    assert _orders(shop) == ["order-1"]


@pytest.mark.slow
def test_each_order_sends_one_payment_message_though_every_process_is_killed(daemon: Daemon, shop: Path) -> None:
    chance = random.Random(7)
    command = [sys.executable, "-c", SELLER, str(EXAMPLES), str(shop)]
    for _ in range(5):
        known = len(_orders(shop)) if shop.exists() else 0
        seller = subprocess.Popen(command, env=clean_environment())
        eventually(lambda: shop.exists() and "orders" in _tables(shop))
        relay = daemon.shell().start(f"exec eoq relay {shop}", stderr=subprocess.DEVNULL)
        wanted = known + chance.randint(1, 60)
        eventually(partial(_has_orders, shop, wanted))
        kills: list[Callable[[], None]] = [seller.kill, partial(kill_group, relay), daemon.restart]
        for kill in chance.sample(kills, len(kills)):
            kill()
        seller.wait()
        relay.wait()
    assert daemon.shell().run(f"eoq relay {shop} --until-empty").status == 0
    assert _payments(daemon) == _orders(shop)


def _tables(shop: Path) -> list[str]:
    with closing(sqlite3.connect(shop, timeout=30)) as database:
        return [name for (name,) in database.execute("select name from sqlite_schema")]
