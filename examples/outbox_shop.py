"""A shop that stores orders and requests their payment in one transaction: the transactional outbox.

An order without its payment message would be wrong. So would a message without its order. The shop writes both in one
transaction of its own SQLite file (`eoq.Outbox`). A relay sends the message after the commit.

    eoq relay shop.db &
    python examples/outbox_shop.py --db shop.db alice 500
    eoq receive payments

Kill the shop, the relay or the daemon with `kill -9` at any moment. Each stored order sends exactly one message.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from contextlib import closing

import eoq

SCHEMA = """
    create table if not exists orders (
      number integer primary key,
      customer text not null,
      cents integer not null
    ) strict
"""


def open_shop(path: str) -> sqlite3.Connection:
    """Open the shop's database. The program begins transactions itself, so that their bounds are visible."""
    shop = sqlite3.connect(path, timeout=30, isolation_level=None)
    shop.execute("pragma journal_mode = wal")
    shop.execute(SCHEMA)
    return shop


def place_order(shop: sqlite3.Connection, customer: str, cents: int) -> str:
    """Store an order and request its payment, both or neither. Return the id of the payment message."""
    shop.execute("begin immediate")
    try:
        (number,) = shop.execute(
            "insert into orders (customer, cents) values (?, ?) returning number", (customer, cents)
        ).fetchone()
        # The id comes from the order. A consumer recognizes by it a payment that it has already handled.
        payment = eoq.Outbox(shop).send(
            "payments", {"account": customer, "cents": cents}, id=f"order-{number}", group=customer
        )
        if cents <= 0:
            raise ValueError("an order must cost something")  # late on purpose: the rollback removes the message too
        shop.execute("commit")
    except BaseException:
        shop.execute("rollback")
        raise
    return payment


def main() -> int:
    """Read the arguments. Return the exit status."""
    parser = argparse.ArgumentParser(description="Store an order and request its payment in the same transaction.")
    parser.add_argument("--db", default="shop.db", help="the shop's SQLite file; shop.db if absent")
    parser.add_argument("customer")
    parser.add_argument("cents", type=int)
    arguments = parser.parse_args()
    with closing(open_shop(arguments.db)) as shop:
        try:
            print(place_order(shop, arguments.customer, arguments.cents))
        except (ValueError, eoq.EoqError) as error:
            print(f"outbox_shop: {error}; nothing was stored", file=sys.stderr)
            return 65
    return 0


if __name__ == "__main__":
    sys.exit(main())
