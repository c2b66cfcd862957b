"""A shop that stores orders and asks for their payment in one transaction: the transactional outbox.

An order without its payment message, or a message without its order, would be wrong. So both are written in one
transaction of the shop's own SQLite file (`eoq.Outbox`), and a relay sends the message once it has committed.

    eoq relay shop.db &
    python examples/outbox_shop.py --db shop.db alice 500
    eoq receive payments

Kill the shop, the relay or the daemon with `kill -9` at any moment: each order that is stored is asked for once.
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
    """The shop's database. Its transactions are begun by hand, so that it is plain where they begin and end."""
    shop = sqlite3.connect(path, timeout=30, isolation_level=None)
    shop.execute("pragma journal_mode = wal")
    shop.execute(SCHEMA)
    return shop


def place_order(shop: sqlite3.Connection, customer: str, cents: int) -> str:
    """Stores an order and asks for its payment, both or neither. Returns the payment's id."""
    shop.execute("begin immediate")
    try:
        (number,) = shop.execute(
            "insert into orders (customer, cents) values (?, ?) returning number", (customer, cents)
        ).fetchone()
        # The id is the order's: whoever handles the payment can tell by it that it did.
        payment = eoq.Outbox(shop).send(
            "payments", {"account": customer, "cents": cents}, id=f"order-{number}", group=customer
        )
        if cents <= 0:
            raise ValueError("an order costs something")  # too late, on purpose: the message is undone as well
        shop.execute("commit")
    except BaseException:
        shop.execute("rollback")
        raise
    return payment


def main() -> int:
    """Reads the arguments; returns the exit status."""
    parser = argparse.ArgumentParser(description="Stores an order, and asks for its payment in the same transaction.")
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
