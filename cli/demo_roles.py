"""The processes of ``eoq demo``, as a user would write them: producers, and workers with an inbox.

python -m eoq.cli.demo_roles produce SOCKET SEED PAYMENTS PART PARTS
python -m eoq.cli.demo_roles work SOCKET LEDGER EVENTS
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import eoq

QUEUE: Final = "payments"
ACCOUNTS: Final = 10
TWICE: Final = 0.2
"""The share of payments that are sent twice, as by an impatient client."""
REACH_SECONDS: Final = 30.0
"""How long to wait for a daemon that is being restarted."""


class Payment(NamedTuple):
    """One payment of the plan; amounts are in cents."""

    id: str
    account: str
    amount: int
    twice: bool


def plan(seed: int, payments: int) -> Iterator[Payment]:
    """Yield the payments of a demo. They are the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 # a plan that can be repeated, not a secret
    for number in range(payments):
        yield Payment(
            f"payment-{number + 1}",
            f"account-{chance.randrange(ACCOUNTS)}",
            chance.randint(1, 50_000),
            chance.random() < TWICE,
        )


def reach(socket: str) -> eoq.Client:
    """Return a client, once the daemon answers. The demo may have killed it before this process first connects."""
    client = eoq.connect(socket)
    deadline = time.monotonic() + REACH_SECONDS
    while True:
        try:
            client.ask("status")
        except eoq.Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # a restart takes about that long
        else:
            return client


def produce(socket: str, seed: int, payments: int, part: int, parts: int) -> None:
    """Send every ``parts``-th payment, and print the numbers of sends and of duplicates."""
    sends = duplicates = 0
    with reach(socket) as client:
        for number, payment in enumerate(plan(seed, payments)):
            if number % parts != part:
                continue
            for _ in range(2 if payment.twice else 1):
                body = {"account": payment.account, "amount": payment.amount}
                sent = client.send(QUEUE, body, id=payment.id)
                sends += 1
                duplicates += sent.duplicate
    print(json.dumps({"sends": sends, "duplicates": duplicates}))


def apply_payment(tx: sqlite3.Connection, message: eoq.Message) -> str:
    """Handle one payment. It needs no check for duplicates and no unique index, thanks to the inbox."""
    payment = message.json()
    tx.execute(
        """
        insert into ledger (payment, account, amount)
        values (?, ?, ?)
        """,
        (message.id, payment["account"], payment["amount"]),
    )
    return "booked"


def work(socket: str, ledger: str, events: str) -> None:
    """Apply payments until killed, and record redeliveries and replays in the file ``events``."""
    log = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with reach(socket) as client, eoq.Inbox(ledger) as inbox:
        for message in client.consume(QUEUE, prefetch=20):
            if message.attempt > 1:
                os.write(log, b"redelivery\n")
            if inbox.seen(message.queue, message.id):
                os.write(log, b"replay\n")
            try:
                inbox.process(message, apply_payment)
            except eoq.LeaseLost:
                continue  # the effect is committed; the message is delivered again and then only acked


def main(arguments: list[str]) -> None:
    """Run the role that the command line names."""
    match arguments:
        case ["produce", socket, seed, payments, part, parts]:
            produce(socket, int(seed), int(payments), int(part), int(parts))
        case ["work", socket, ledger, events]:
            work(socket, ledger, events)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
