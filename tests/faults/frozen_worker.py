"""A worker that freezes (SIGSTOP) at a chosen point of a message's first delivery, until the test wakes it.

    python frozen_worker.py SOCKET QUEUE LEDGER POINT

POINT is ``before`` its transaction, ``handler``, inside it, or ``never``. It says when it has opened its files, begins
when it is given a line, ends when the queue is empty, and prints what became of its deliveries.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import eoq


class Inbox:
    """An inbox that freezes before it begins."""

    def __init__(self, inbox: eoq.Inbox, point: str) -> None:
        self._inbox = inbox
        self._point = point

    def process(self, message: eoq.Message, handler: Callable[..., Any]) -> object:
        self.freeze("before", message)
        return self._inbox.process(message, handler)

    def process_many(self, messages: Iterable[eoq.Message], handler: Callable[..., Any]) -> Sequence[object]:
        raise NotImplementedError

    def freeze(self, point: str, message: eoq.Message) -> None:
        """Stop this process, if this is the point."""
        if point == self._point and message.attempt == 1:
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def main(socket: str, queue: str, ledger: str, point: str) -> None:
    """Work until the queue is empty."""
    with eoq.connect(socket) as client, eoq.Inbox(ledger) as plain:
        inbox = Inbox(plain, point)

        def apply(tx: sqlite3.Connection, message: eoq.Message) -> str:
            tx.execute("insert into effect values (?, ?)", (message.id, os.getpid()))
            inbox.freeze("handler", message)
            return str(os.getpid())

        # Only who freezes is to lose its lease. The other one keeps it, also on a busy machine.
        lease = 300 if point == "never" else 0.5
        print("open", flush=True)
        sys.stdin.readline()
        print(json.dumps(asdict(client.work(queue, apply, inbox=inbox, lease=lease, until_empty=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
