"""``python -m eoq.cli.leave SPOOL QUEUE ID``: leave standard input in a spool, and print the id.

The shell function of `eoq shell-init` calls it for an id that a shell cannot check or write as JSON.
"""

from __future__ import annotations

import sys

from eoq.errors import EoqError
from eoq.spool.sender import Spool

from .common import end, open_closed_streams, print_line, read_body


def leave(spool: str, queue: str, id: str) -> int:
    """Leave standard input as a message in a spool. Return the exit status."""
    open_closed_streams()
    try:
        print_line(Spool(spool).send(queue, read_body(None, "body"), id=id))
    except (EoqError, KeyboardInterrupt, OSError) as error:
        return end(error)
    return 0


if __name__ == "__main__":
    sys.exit(leave(*sys.argv[1:]))
