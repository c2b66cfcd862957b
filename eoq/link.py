"""A connection to the daemon that all threads of a client share.

Requests are pipelined on it, and replies come in any order: whichever thread waits reads for all of them.
"""

from __future__ import annotations

import select
import socket as sockets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import calls
from .errors import EoqError
from .protocol import MAX_LINE, Fields, LineBuffer, decode_reply, encode
from .spin import Spin

LISTEN_SECONDS: Final = 1.0
"""How long one wait for the daemon lasts. A Ctrl-C that comes just as it begins is noticed only at its end."""
READ_BYTES: Final = 256 * 1024
"""What is read at once: about as much as a socket holds."""
SPIN_SECONDS: Final = 0.002
"""How long to stay awake for a reply, in a row of requests: longer than a commit on a fast disk takes."""


class Dropped(Exception):
    """The connection broke; what was under way on it may or may not have happened."""


class Stranger(Dropped):
    """Whoever answers is no eoq daemon: trying again is no use."""


class Link:
    """One live connection, shared by all threads of a client."""

    def __init__(self, path: Path) -> None:
        self._socket = sockets.socket(sockets.AF_UNIX)
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise
        # Not with a time-out of Python's, which asks the system three times for each call.
        self._socket.setblocking(False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable.register(self._socket, select.POLLOUT)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._lines = LineBuffer(2**63)
        self._spin = Spin(SPIN_SECONDS)
        self._sending = threading.Lock()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._sleeping = 0
        """Threads that wait for another one to read."""
        self._replies: dict[int, Fields | EoqError | None] = {}
        self._last_rid = 0
        self._reading = False
        self._broken: str | None = None
        self._stranger = False

    def start(self, requests: Sequence[Fields], deadline: float) -> range:
        """Sends ``requests`` in one go; their rids are for `finish` or `forget`. Raises what `finish` raises."""
        with self._lock:
            self._raise_if_broken()
            rids = range(self._last_rid + 1, self._last_rid + 1 + len(requests))
            self._last_rid += len(requests)
            for rid in rids:
                self._replies[rid] = None
        try:
            self._send(rids, requests, deadline)
        except BaseException:
            self.forget(rids)
            raise
        return rids

    def finish(self, rids: range, deadline: float) -> list[Fields | EoqError]:
        """Waits for the replies; raises `Dropped` or `TimeoutError`."""
        with self._lock:
            try:
                return self._wait(rids, deadline)
            finally:
                self._forget(rids)

    def forget(self, rids: range) -> None:
        """Replies to these are thrown away when they come."""
        with self._lock:
            self._forget(rids)

    def _forget(self, rids: range) -> None:
        for rid in rids:
            self._replies.pop(rid, None)

    def close(self, reason: str = "the client was closed") -> None:
        """Ends the connection; whoever waits on it gets `Dropped`."""
        with self._lock:
            if self._broken is None:
                self._broken = reason
                with suppress(OSError):  # the other side was faster
                    self._socket.shutdown(sockets.SHUT_RDWR)
                if not self._reading:
                    self._socket.close()
            self._changed.notify_all()

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise (Stranger if self._stranger else Dropped)(self._broken)

    def _send(self, rids: Sequence[int], requests: Sequence[Fields], deadline: float) -> None:
        lines = []
        for rid, request in zip(rids, requests, strict=True):
            line = encode({"rid": rid, **request})
            if len(line) > MAX_LINE:
                raise calls.too_long(line)
            lines.append(line)
        try:
            with self._sending:
                self._send_all(b"".join(lines), deadline)
        except TimeoutError:
            self.close("the daemon took no more requests")
            raise
        except OSError as error:
            self.close(str(error))
            raise Dropped(str(error)) from error
        except BaseException:
            # Ctrl-C, say, in the middle of a line: what followed would be read as the rest of it.
            self.close("a request was cut off")
            raise

    def _send_all(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    raise TimeoutError from None
                self._writable.poll(min(seconds, LISTEN_SECONDS) * 1000)

    def _wait(self, rids: Sequence[int], deadline: float) -> list[Fields | EoqError]:
        complete: list[Fields | EoqError] = []
        for rid in rids:
            while (reply := self._replies[rid]) is None:
                self._raise_if_broken()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if self._reading:
                    self._sleep(min(left, LISTEN_SECONDS))
                else:
                    self._read(min(left, LISTEN_SECONDS))
            complete.append(reply)
        return complete

    def _sleep(self, seconds: float) -> None:
        """Waits while another thread reads."""
        self._sleeping += 1
        try:
            self._changed.wait(seconds)
        finally:
            self._sleeping -= 1

    def _read(self, seconds: float) -> None:
        """Reads once, for all threads. Called with the lock held; gives it up while it waits."""
        self._reading = True
        self._lock.release()
        data = b""
        reason = "the daemon closed the connection"
        try:
            self._await_data(seconds)
            data = bytes(self._buffer[: self._socket.recv_into(self._buffer)])
        except BlockingIOError:
            reason = ""
        except OSError as error:
            reason = str(error)
        except BaseException:
            reason = ""
            raise
        finally:
            self._lock.acquire()
            self._reading = False
            if data:
                try:
                    self._take(data)
                except ValueError:
                    self._broken = "what answers there is no eoq daemon"
                    self._stranger = True
            elif reason and self._broken is None:
                self._broken = reason
            if self._broken is not None:
                self._socket.close()
            if self._sleeping:
                self._changed.notify_all()

    def _await_data(self, seconds: float) -> None:
        """Returns when there is something to read, or after ``seconds``."""
        # Beside other threads it would hold them up: all need the interpreter's lock.
        spins = threading.active_count() == 1 and self._spin.begin()
        while spins and not self._readable.poll(0):
            spins = self._spin.again()
        if spins or self._readable.poll(seconds * 1000):
            self._spin.end()

    def _take(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            rid, reply = decode_reply(line)
            if rid is None:
                # Said of the connection as a whole, before it is closed: everybody is told.
                for waiting in self._replies:
                    self._replies[waiting] = reply
            elif rid in self._replies:
                self._replies[rid] = reply
