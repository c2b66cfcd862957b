"""``nc -N -U SOCKET`` for machines without it: copy input to the socket, half-close it, copy replies to the output."""

from __future__ import annotations

import shutil
import socket
import sys
import threading


def main(path: str) -> None:
    """Copy both ways until the other side has closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)

        def copy_input() -> None:
            with connection.makefile("wb") as sink:
                shutil.copyfileobj(sys.stdin.buffer, sink)
            connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=copy_input, daemon=True).start()
        with connection.makefile("rb") as source:
            shutil.copyfileobj(source, sys.stdout.buffer)


if __name__ == "__main__":
    main(sys.argv[1])
