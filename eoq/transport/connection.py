"""A connection to the daemon that all threads of a client share.

Requests are pipelined on it, and replies come in any order: one of the threads that wait reads for all of them.
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

from ..errors import EoqError
from ..protocol import calls
from ..protocol.codec import Codec, Fields, LineBuffer
from ..protocol.limits import MAX_LINE
from ..protocol.validation import too_long
from ..system.forks import watch_forks
from ..system.spin import Spin
from .peer import require_own

LISTEN_SECONDS: Final = 1.0
"""How long one wait for the daemon lasts. A Ctrl-C that comes just as it begins is noticed only at its end."""
READ_BYTES: Final = 256 * 1024
"""How many bytes one read takes: about as many as fit into the buffer of a socket."""
SPIN_SECONDS: Final = 0.002
"""How long to poll for a reply in a row of requests: longer than a commit on a fast disk takes."""
GIVE_UP_SECONDS: Final = 1.0
"""How long an interrupted request waits for messages that are on their way, to give them back."""
ROOM_SECONDS: Final = 0.05
"""How long to wait for room in the socket while another thread reads: it may stop reading before there is any."""


class ConnectionLost(Exception):
    """The connection broke. The requests in flight on it may or may not have been carried out."""


class NotADaemon(ConnectionLost):
    """The program at the other end is not an eoq daemon. Retrying will not help."""


class Connection:
    """One live connection, shared by all threads of a client.

    A signal (Ctrl-C) may interrupt the main thread between any two calls. So locks are taken by ``with`` only, and a
    line that was cut off, on its way in or out, ends the connection.
    """

    def __init__(self, path: Path) -> None:
        self._socket = sockets.socket(sockets.AF_UNIX)
        try:
            self._socket.connect(str(path))
            require_own(self._socket, path)
        except BaseException:
            self._socket.close()
            raise
        # Python's own socket time-out makes three system calls for each call.
        self._socket.setblocking(False)
        self._readable = self._poll(select.POLLIN)
        self._writable = self._poll(select.POLLOUT)
        self._either = self._poll(select.POLLIN | select.POLLOUT)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._codec = Codec()
        self._lines = LineBuffer(2**63)
        self._spin = Spin(SPIN_SECONDS)
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._sleepers: list[threading.Lock] = []
        """Threads that wait for the reading thread. Each sleeps on a lock of its own."""
        self._replies: dict[int, Fields | EoqError | None] = {}
        """The replies that threads wait for, by rid; None until a reply has arrived."""
        self._receives: set[int] = set()
        """The rids among them whose replies may bring messages."""
        self._last_rid = 0
        self._reading = False
        self._broken: str | None = None
        self._not_a_daemon = False
        watch_forks(self)

    def forked(self) -> None:
        """Close the child's copy of the connection. The parent's stays open, and the daemon notices nothing."""
        self._sending, self._lock, self._sleepers, self._reading = threading.Lock(), threading.Lock(), [], False
        self._break("it is the connection of the parent process")
        self._socket.close()

    def _poll(self, events: int) -> select.poll:
        poll = select.poll()
        poll.register(self._socket, events)
        return poll

    def start(self, requests: Sequence[Fields], deadline: float) -> range:
        """Send ``requests`` in one go. Return their rids, for `finish` or `forget`. Raises what `finish` raises."""
        with self._lock:
            self._raise_if_broken()
            rids = range(self._last_rid + 1, self._last_rid + 1 + len(requests))
            self._last_rid += len(requests)
            for rid, request in zip(rids, requests, strict=True):
                self._replies[rid] = None
                if request["op"] == "receive":
                    self._receives.add(rid)
        try:
            self._send(rids, requests, deadline)
        except BaseException:
            self.forget(rids)
            raise
        return rids

    def finish(self, rids: range, deadline: float) -> list[Fields | EoqError]:
        """Wait for the replies until ``deadline`` (monotonic). Raises `ConnectionLost` or `TimeoutError`."""
        try:
            return self._wait(rids, deadline)
        except (ConnectionLost, TimeoutError):
            raise
        except BaseException:
            self._give_up([rid for rid in rids if rid in self._receives])
            raise
        finally:
            self.forget(rids)

    def tell(self, requests: Sequence[Fields], deadline: float) -> None:
        """Send ``requests`` and ignore their replies. Raises what `finish` raises."""
        self.forget(self.start(requests, deadline))

    def forget(self, rids: range) -> None:
        """Ignore the replies to these requests."""
        with self._lock:
            for rid in rids:
                self._replies.pop(rid, None)
                self._receives.discard(rid)

    def close(self, reason: str = "the client was closed") -> None:
        """End the connection. Threads that wait on it get `ConnectionLost`."""
        with self._lock:
            self._break(reason)
            with suppress(OSError):  # the daemon may have closed it first
                self._socket.shutdown(sockets.SHUT_RDWR)
        self._wake()

    def _break(self, reason: str) -> None:
        if self._broken is None:
            self._broken = reason

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise (NotADaemon if self._not_a_daemon else ConnectionLost)(self._broken)

    def _give_up(self, receives: Sequence[int]) -> None:
        """Cancel receives that were interrupted (by Ctrl-C, say), and give back messages that come nevertheless.

        Where that cannot be done at once, the connection is closed, and the daemon takes them back.
        """
        if not receives:
            return
        deadline = time.monotonic() + GIVE_UP_SECONDS
        done = False
        try:
            self.tell([calls.cancel(rid) for rid in receives], deadline)
            for reply in self._wait(receives, deadline):
                if isinstance(reply, dict) and (request := calls.release_delivered(reply)) is not None:
                    self.tell([request], deadline)
            done = True
        except (ConnectionLost, TimeoutError):
            pass
        finally:
            if not done:
                self.close("a request was interrupted")

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, rids: Sequence[int], requests: Sequence[Fields], deadline: float) -> None:
        lines = []
        for rid, request in zip(rids, requests, strict=True):
            line = self._codec.encode({"rid": rid, **request})
            if len(line) > MAX_LINE:
                raise too_long(line)
            lines.append(line)
        try:
            with self._sending:
                self._send_all(b"".join(lines), deadline)
        except TimeoutError:
            self.close("the daemon took no more requests")
            raise
        except OSError as error:
            self.close(str(error))
            raise ConnectionLost(str(error)) from error
        except BaseException:
            # Interrupted (by Ctrl-C, say) within a line: the daemon would read the next one as the rest of it.
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
                # The daemon may have stopped reading because its own replies are not read.
                if not self._read(self._either, min(seconds, LISTEN_SECONDS)):
                    self._writable.poll(min(seconds, ROOM_SECONDS) * 1000)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────

    def _wait(self, rids: Sequence[int], deadline: float) -> list[Fields | EoqError]:
        complete: list[Fields | EoqError] = []
        for rid in rids:
            while (reply := self._replies[rid]) is None:
                seconds = min(deadline - time.monotonic(), LISTEN_SECONDS)
                if seconds <= 0:
                    raise TimeoutError
                if not self._read(self._readable, seconds):
                    self._sleep(rid, seconds)
            complete.append(reply)
        return complete

    def _read(self, poll: select.poll, seconds: float) -> bool:
        """Read once, for all threads. Return False where another thread is reading. Raises `ConnectionLost`."""
        mine = False
        try:
            with self._lock:
                self._raise_if_broken()
                if self._reading:
                    return False
                self._reading = mine = True
            self._read_once(poll, seconds)
            return True
        finally:
            if mine:
                self._reading = False
                if self._sleepers or self._broken is not None:
                    self._wake()

    def _sleep(self, rid: int, seconds: float) -> None:
        """Wait while another thread reads."""
        sleeper = threading.Lock()
        sleeper.acquire()
        with self._lock:
            self._sleepers.append(sleeper)
        # Checked only now: the reading thread looks for sleepers after it has stopped reading.
        if self._reading and self._replies[rid] is None:
            sleeper.acquire(timeout=seconds)

    def _wake(self) -> None:
        """Wake the sleeping threads, since none reads now: one may read, and those with a reply go on."""
        with self._lock:
            if self._broken is not None and not self._reading:
                self._socket.close()
            sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.release()

    def _read_once(self, poll: select.poll, seconds: float) -> None:
        whole = True
        try:
            self._await_data(poll, seconds)
            whole = False
            data = bytes(self._buffer[: self._socket.recv_into(self._buffer)])
            if data:
                self._handle(data)
            else:
                self._break("the daemon closed the connection")
            whole = True
        except BlockingIOError:
            whole = True
        except OSError as error:
            self._break(str(error))
        except ValueError:
            self._not_a_daemon = True
            self._break("the program that answers there is not an eoq daemon")
        finally:
            if not whole:
                self._break("a reply was cut off")

    def _await_data(self, poll: select.poll, seconds: float) -> None:
        """Return when ``poll`` has reported an event, or after ``seconds``."""
        # With other threads, spinning would slow them down: all need the interpreter's lock.
        spins = self._spin.begin() and threading.active_count() == 1
        while spins and not poll.poll(0):
            spins = self._spin.again()
        if spins or poll.poll(seconds * 1000):
            self._spin.end()

    def _handle(self, data: bytes) -> None:
        lines = self._lines.feed(data)
        with self._lock:
            for line in lines:
                rid, reply = self._codec.decode(line)
                # A reply without a rid concerns the whole connection, which the daemon then closes: it is for all.
                for waiting in list(self._replies) if rid is None else (rid,):
                    if self._replies.get(waiting, reply) is None:
                        self._replies[waiting] = reply
