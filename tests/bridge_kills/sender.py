"""The sender: it sends numbered messages, and repeats from the last confirmed number when it is started again.

python -m tests.bridge_kills.sender SOCKET COUNT PROGRESS
"""

from __future__ import annotations

import sys
from pathlib import Path

import eoq

BATCH = 20
GROUPS = 5
"""Every second message is in one of so many groups."""


def main() -> None:
    socket, count, progress = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    start = int(progress.read_text() or 0) if progress.exists() else 0
    with eoq.connect(socket, timeout=600) as client:
        for first in range(start, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            client.send_many(
                "q", [eoq.Outgoing("x", id=f"{n}", group=f"g{n % GROUPS}" if n % 2 else None) for n in numbers]
            )
            done = progress.with_suffix(".new")
            done.write_text(str(numbers.stop))
            done.replace(progress)


if __name__ == "__main__":
    main()
