"""A caller of ``once`` that dies at one point: ``planted_once.py SOCKET TRACE POINT exit|kill``.

Its function writes a line to TRACE, so that each run can be counted.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from eoq.client.blocking import Client
from eoq.transport.channel import Channel
from eoq.transport.connection import Connection

POINTS: Final = {
    "before it asks": (0, False),
    "when it has asked": (0, False),
    "when it may run": (0, False),
    "when it has run": (1, False),
    "when it has said how it ended": (1, True),
    "when it was told that this is stored": (1, True),
}
"""Each with how often the function has run by then, and whether its outcome will surely be stored."""


def main() -> None:
    socket, trace, point, how = sys.argv[1:]

    def reached(name: str) -> None:
        if name == point:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(9)

    start, run = Connection.start, Channel.run

    def dying_start(connection: Connection, requests: Any, deadline: float) -> Any:
        rids = start(connection, requests, deadline)
        op = requests[0]["op"]
        reached({"once": "when it has asked", "once_done": "when it has said how it ended"}.get(op, ""))
        return rids

    def dying_run(channel: Channel, call: Any) -> Any:
        op = call.fields["op"]
        reached("before it asks" if op == "once" else "")
        outcome = run(channel, call)
        reached({"once": "when it may run", "once_done": "when it was told that this is stored"}.get(op, ""))
        return outcome

    def function() -> str:
        with Path(trace).open("a") as lines:
            lines.write("run\n")
        reached("when it has run")
        return "first"

    Connection.start = dying_start  # type: ignore[method-assign,assignment] # planted
    Channel.run = dying_run  # type: ignore[method-assign,assignment] # planted
    with Client(socket) as client:
        client.once("k", function)


if __name__ == "__main__":
    main()
