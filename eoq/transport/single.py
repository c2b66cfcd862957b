"""The connection of a program that sends a request or two and ends, such as a shell command.

It is made of little, because such a program takes longer to start than to be answered. Whatever goes wrong is left to a
`Channel`, which repeats the request, or says what is wrong.
"""

from __future__ import annotations

import socket as sockets
import time

from ..errors import EoqError
from ..protocol.codec import Codec, LineBuffer
from ..protocol.limits import MAX_LINE
from ..protocol.socket_name import socket_name
from .peer import require_own

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from typing import Final

    from ..protocol.codec import Fields
    from .channel import Channel

READ_BYTES: Final = 64 * 1024
"""How many bytes one read takes."""
LISTEN_SECONDS: Final = 1.0
"""How long one wait for the daemon lasts. A Ctrl-C that comes just as it begins is noticed only at its end."""
GIVE_UP_SECONDS: Final = 1.0
"""How long an interrupted request waits for messages that are on their way, to give them back."""


class Single:
    """A connection to the daemon for one request at a time, in one thread. ``path`` is its socket.

    It connects at the first request. ``timeout`` is in seconds: how long a request may take besides its own wait, and
    how long a daemon that went away may take to come back.
    """

    def __init__(self, socket: str | None = None, timeout: float = 30.0) -> None:
        self.path = socket_name(socket)
        self._timeout = timeout
        self._socket: sockets.socket | None = None
        self._channel: Channel | None = None
        """What has replaced the connection after it broke."""
        self._codec = Codec(few=True)
        self._lines = LineBuffer(2**63)
        self._last_rid = 0

    def __enter__(self) -> Single:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._channel is not None:
            self._channel.close()

    def ask(self, request: Fields, wait: float = 0.0) -> Fields:
        """Send a request, and return the fields of the reply. ``wait`` is how many seconds the request itself waits.

        If the connection breaks, the request is repeated, as `Channel.exchange` does. Raises the error that the daemon
        answers with, or `Unavailable`.
        """
        deadline = time.monotonic() + wait + self._timeout
        sent_at = None
        reply: Fields | EoqError
        if self._channel is None:
            self._last_rid += 1
            line = self._codec.encode({"rid": self._last_rid, **request})
            try:
                connection = self._connect()
                sent_at = time.time()
                self._send(connection, line, deadline)
                reply = self._reply(connection, deadline)
            except TimeoutError:
                raise self._unanswered(request, wait) from None
            except (OSError, ValueError):  # not there, gone, or no daemon
                pass
            except BaseException:
                if sent_at is not None and request["op"] == "receive":
                    self._give_up(connection)
                raise
            else:
                return _fields(reply)
        left = max(0.0, deadline - self._timeout - time.monotonic())
        (reply,) = self._go_on(sent_at is not None).exchange([request], left, sent_at)
        return _fields(reply)

    def _connect(self) -> sockets.socket:
        if self._socket is None:
            self._socket = sockets.socket(sockets.AF_UNIX)
            self._socket.connect(self.path)
            require_own(self._socket, self.path)
        return self._socket

    def _send(self, connection: sockets.socket, line: bytes, deadline: float) -> None:
        if len(line) > MAX_LINE:
            from ..protocol.validation import too_long

            raise too_long(line)
        connection.settimeout(max(deadline - time.monotonic(), 0.0))
        connection.sendall(line)

    def _reply(self, connection: sockets.socket, deadline: float) -> Fields | EoqError:
        """Return the reply to the last request. Raises `OSError`, or `ValueError` where it is not that of a daemon."""
        while True:
            seconds = min(deadline - time.monotonic(), LISTEN_SECONDS)
            if seconds <= 0:
                raise TimeoutError
            connection.settimeout(seconds)
            try:
                data = connection.recv(READ_BYTES)
            except TimeoutError:
                continue
            if not data:
                raise ConnectionResetError
            for answer in self._lines.feed(data):
                rid, reply = self._codec.decode(answer)
                if rid in (None, self._last_rid):  # without a rid it concerns the whole connection
                    return reply

    def _go_on(self, was_sent: bool) -> Channel:
        """Replace the connection by a channel. A daemon to which something ``was_sent`` is waited for."""
        if self._channel is None:
            from pathlib import Path

            from .channel import Channel

            self.close()
            self._channel = Channel(Path(self.path), self._timeout, generation=int(was_sent))
        return self._channel

    def _unanswered(self, request: Fields, wait: float) -> EoqError:
        from pathlib import Path

        from .channel import ambiguous, unavailable

        self.close()
        why = f"no answer within {wait + self._timeout:g} s"
        return ambiguous(unavailable(Path(self.path), why), [request])

    def _give_up(self, connection: sockets.socket) -> None:
        """Cancel a receive that was interrupted (by Ctrl-C, say), and give back messages that come nevertheless.

        If the request was cut off, what follows makes it a line that the daemon refuses.
        """
        from ..protocol import calls

        deadline = time.monotonic() + GIVE_UP_SECONDS
        try:
            cancel = calls.cancel(self._last_rid)
            self._send(connection, self._codec.encode({"rid": self._last_rid + 1, **cancel}), deadline)
            reply = self._reply(connection, deadline)
            if not isinstance(reply, EoqError) and (release := calls.release_delivered(reply)) is not None:
                self._send(connection, self._codec.encode(release), deadline)
        except (OSError, ValueError):
            pass  # the leases end by themselves
        finally:
            self.close()


def _fields(reply: Fields | EoqError) -> Fields:
    if isinstance(reply, EoqError):
        raise reply
    return reply
