"""Ingest a queue: claim rows of `eoq_forward` by the name of this machine, store them here, mark them as taken.

`ClaimedRows` stands in for the outbox of a `Relay`, which sends, waits and repeats. So the three steps are those of a
relay: read (and claim), send, remove (mark as taken).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final

import psycopg

from ...client.aio import AsyncClient
from ...errors import EoqError, InvalidRequest
from ...outbox.relay import RESEND_WITHIN, Relay
from ...outbox.rows import Row, SetAside, check_age, read_message
from ...postgres.driver import storable_error
from ...postgres.waking import WakingTable
from ..engine import IngestOptions
from ..results import ResultSender, check_results
from ..room import ROOM_SECONDS, free_room
from ..tasks import run_all
from . import result_statements, statements
from .names import take_name
from .results import OwedRows

log = logging.getLogger("eoq.bridge")

FORGET_SECONDS: Final = 60.0
"""How often rows are forgotten."""


class NameInUse(InvalidRequest):
    """Another ingester works under the name of this one."""


class ClaimedRows:
    """The rows of a queue that this machine, ``owner``, claims. It has the methods of an outbox, for `Relay`.

    ``claimed`` is called, in the thread that reads, when rows were claimed. ``owe`` is called likewise with the ids of
    rows that were taken, and whose results are waited for.
    """

    def __init__(
        self,
        conninfo: str,
        queue: str,
        owner: str,
        identity: str,
        keep: float,
        claimed: Callable[[], None],
        owe: Callable[[list[str]], None] | None = None,
    ) -> None:
        self._table = WakingTable(conninfo, "eoq_forward", "`eoq forward` makes it", self._begin)
        self.name = f"{queue} from {self._table.name}"
        self.room = 0
        """How many more messages may be claimed now."""
        self._claimed = claimed
        self._owe = owe
        self._queue = queue
        self._owner = owner
        self._identity = identity
        self._keep = keep
        self._forgotten_at = -FORGET_SECONDS
        self._open: set[bytes] | None = None
        """What this machine has claimed and not taken, rows that are set aside among them. None: not known."""
        self._reads = 0
        """How many reads in a row have found something."""
        self._was_all = False
        """Whether the last read has found nothing, and whatever has come since then is notified."""
        self._untried: set[bytes] = set()
        """The rows of the last `read` that were never tried."""
        self._first_tries: set[bytes] = set()
        """The rows of the last `mark` that were not tried before."""
        self._marked: set[bytes] = set()
        """The rows that were claimed by the last `read`, which noted their first try, and that `mark` has not had."""
        self._marked_at = 0.0

    def _begin(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Take the name, for as long as the connection lives, and make the table if there is none."""
        # While the name was not held, another may have tried them.
        self._open, self._untried, self._first_tries, self._marked = None, set(), set(), set()
        if not take_name(connection, self._queue, self._owner):
            raise NameInUse(
                f"another `eoq ingest` takes {self._queue!r} as {self._owner!r} just now; two machines under one name "
                "would double messages: give each a name of its own (--as)"
            )
        connection.execute(statements.MAKE)
        if self._owe is not None:
            connection.execute(result_statements.MAKE)
        connection.execute(statements.NAME_OWNER, (self._queue, self._owner, self._identity))
        identity, has_claims = connection.execute(statements.OWNER, (self._queue, self._owner)).fetchall()[0]
        if identity != self._identity and (has_claims or self._owes(connection)):
            raise NameInUse(
                f"the name {self._owner!r} {'has claims or groups' if has_claims else 'owes results'} of another "
                "daemon's file, which may have stored their messages; start that daemon again, or take another name "
                "(--as) and give its claims up: `eoq ingest --release`"
            )
        if identity != self._identity:  # what the other file has taken is not of this name any more
            connection.execute(statements.RELEASE, (self._queue, self._owner))
        connection.execute(statements.RENAME_OWNER, (self._identity, self._queue, self._owner))
        connection.execute(statements.PREPARE_CLAIM)

    def _owes(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        (is_there,) = connection.execute(result_statements.IS_THERE).fetchone() or (False,)
        if not is_there:
            return False
        (owes,) = connection.execute(result_statements.OWES, (self._queue, self._owner)).fetchone() or (False,)
        return bool(owes)

    def close(self) -> None:
        """Close the connection, and give the name up. The next use opens it again."""
        self._table.close()

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when rows may have been inserted, until cancelled."""
        await self._table.watch(wake, seconds)

    def read(
        self,
        limit: int,
        most_bytes: int,
        *,
        without: Collection[str] = (),
        resend_within: float,
        behind_writers: bool = False,
        reread: bool = False,
    ) -> list[Row]:
        """Return the open claims of this machine, or claim more. See `OutboxFile.read`."""
        if self._queue in without:
            return []
        if behind_writers:
            if self._was_all and self._table.is_notified:
                return []
            self._table.begin_waiting()
        elif self._reads > 1:  # many come: nobody needs to say so
            self._table.end_waiting()
        self._forget()
        self._was_all = False
        is_notified = self._table.is_notified
        now = time.time()
        with self._table.connected() as connection:
            # A new connection knows nothing of open claims. They come first, since a group may go on behind them.
            is_clear = self._open == set() and not reread
            found = [] if is_clear else self._own(connection, limit, most_bytes)
            claims = [] if found else self._claim(connection, min(limit, self.room), most_bytes)
        found = found or claims
        self._untried = {bytes(key) for _seq, key, age, *_ in found if age is None}
        self._marked, self._marked_at = {bytes(key) for _seq, key, *_ in claims}, now
        self._reads = self._reads + 1 if found else 0
        self._was_all = is_notified and not found
        return [self._row(*row, resend_within=resend_within) for row in found]

    def _own(
        self, connection: psycopg.Connection[tuple[Any, ...]], limit: int, most_bytes: int
    ) -> list[tuple[Any, ...]]:
        """Return the open claims of this machine."""
        with connection.transaction():
            if self._marked:  # they were not sent
                self._unmark(connection, self._marked)
            found = connection.execute(statements.OWN, (self._queue, self._owner, limit, most_bytes)).fetchall()
            ((more,),) = connection.execute(statements.HAS_CLAIMED, (self._queue, self._owner)).fetchall()
        self._open = None if more else set()
        return found

    def _claim(
        self, connection: psycopg.Connection[tuple[Any, ...]], wanted: int, most_bytes: int
    ) -> list[tuple[Any, ...]]:
        """Claim rows for this machine, which has no others to send, and return them."""
        if wanted <= 0:
            return []
        before, self._open = self._open, None  # unless it is known what was claimed
        cursor = psycopg.ClientCursor(connection)  # it binds the values itself: so both statements are one request
        cursor.execute(statements.CLAIM_AT_ONCE, (self._queue, self._queue, self._owner, wanted, most_bytes))
        cursor.nextset()
        found = cursor.fetchall()
        self._open = None if before is None else {bytes(key) for _seq, key, *_ in found}
        if found:
            self.room -= len(found)
            self._claimed()
        return found

    def _row(
        self,
        seq: int,
        key: bytes,
        age: float | None,
        group: str | None,
        body: bytes,
        headers: str | None,
        id: str,
        priority: int,
        left: float | None,
        *,
        resend_within: float,
    ) -> Row:
        now = time.time()
        too_old = check_age(None if age is None else now - age, resend_within, "set its taken_at")
        # A message whose time is over is stored all the same, so that it is known, and expires at once.
        ttl = None if left is None else max(left, 0.001)
        message = too_old or read_message(self._queue, group, bytes(body), headers, id, priority, None, ttl, now)
        return Row(seq, bytes(key), None if group is None else (self._queue, group), message)

    def mark(self, rows: Sequence[Row]) -> tuple[list[Row], float]:
        """Note that rows are about to be sent. Return those that are claimed, and when the first of them was tried."""
        marked = self._marked.intersection(row.key for row in rows)
        self._marked -= marked
        if len(marked) == len(rows):
            self._first_tries = marked
            return list(rows), self._marked_at
        with self._table.transaction() as connection:
            keys = [row.key.decode() for row in rows]
            ages = {
                id.encode(): age for id, age in connection.execute(statements.MARK, (self._queue, keys, self._owner))
            }
            now = time.time()
        self._first_tries = marked | self._untried.intersection(ages)
        self._untried -= self._first_tries
        return [row for row in rows if row.key in ages], now - max(ages.values(), default=0.0)

    def unmark(self, rows: Sequence[Row]) -> None:
        """Note that the daemon refused rows, so that they may wait for any time. They stay claimed.

        What an earlier try may have stored stays noted. See `OutboxFile.unmark`.
        """
        with self._table.transaction() as connection:
            keys = self._first_tries.intersection(row.key for row in rows)
            self._unmark(connection, keys)
        self._untried |= keys

    def _unmark(self, connection: psycopg.Connection[tuple[Any, ...]], keys: Collection[bytes]) -> None:
        connection.execute(statements.UNMARK, (self._queue, [key.decode() for key in keys], self._owner))

    def remove(self, rows: Sequence[Row]) -> None:
        """Mark rows as taken: the daemon has stored them."""
        keys = [row.key.decode() for row in rows]
        if self._owe is None:
            with self._table.connected() as connection:
                connection.execute(statements.TAKEN, (self._queue, keys, self._owner))
        else:
            with self._table.transaction() as connection:
                connection.execute(statements.TAKEN, (self._queue, keys, self._owner))
                found = connection.execute(result_statements.OWE, (self._queue, keys, self._owner)).fetchall()
            if found:
                self._owe([id for (id,) in found])
        if self._open is not None:
            self._open.difference_update(row.key for row in rows)

    def set_aside(self, row: Row, error: str) -> None:
        """Mark a row that the daemon cannot store. It stays claimed, with the reason."""
        with self._table.transaction() as connection:
            connection.execute(
                statements.SET_ASIDE, (storable_error(error, connection), self._queue, row.key.decode(), self._owner)
            )

    def count_set_aside(self) -> int:
        """Return how many rows are set aside."""
        with self._table.transaction() as connection:
            return int(connection.execute(statements.COUNT_SET_ASIDE, (self._queue, self._owner)).fetchall()[0][0])

    def list_set_aside(self, limit: int) -> list[SetAside]:
        """Return the first rows that are set aside."""
        with self._table.transaction() as connection:
            rows = connection.execute(statements.LIST_SET_ASIDE, (self._queue, self._owner, limit))
            return [SetAside(*row) for row in rows]

    def _forget(self) -> None:
        if time.monotonic() >= self._forgotten_at + FORGET_SECONDS:
            with self._table.transaction() as connection:
                forgotten = connection.execute(statements.FORGET, (self._queue, self._keep)).rowcount
                if self._owe is not None:
                    values = {"queue": self._queue, "keep": self._keep}
                    results = connection.execute(result_statements.FORGET, values).rowcount
                    forgotten = max(forgotten, results)
            if forgotten < statements.FORGET_ROWS:  # or else the next read goes on
                self._forgotten_at = time.monotonic()


class Ingester:
    """It takes the messages of one queue from the table in the database of a connection string. See `Mover`."""

    def __init__(self, client: AsyncClient, queue: str, conninfo: str, options: IngestOptions) -> None:
        self._client = client
        self.owner = options.name
        """The name of this machine. Without one it is known once it has begun."""
        self._queue = queue
        self._conninfo = conninfo
        self._options = options
        self._running: Relay | None = None

    @property
    def moved(self) -> int:
        """How many messages were stored here, those included that were here already."""
        return 0 if self._running is None else self._running.sent

    @property
    def refused(self) -> int:
        """How many rows were set aside, since they cannot be stored here."""
        return 0 if self._running is None else self._running.set_aside

    @property
    def error(self) -> str | None:
        """Why it waits now, or None."""
        return None if self._running is None else self._running.error

    async def check(self) -> None:
        """Raise `Unavailable` without a daemon, and `InvalidRequest` if it cannot tell results."""
        await self._client.ask("status")
        if self._options.results:
            await check_results(self._client)

    async def run(self) -> None:
        """Ingest until this task is cancelled. Raises `NameInUse` at the start."""
        used, loop = asyncio.Event(), asyncio.get_running_loop()

        def claimed() -> None:
            loop.call_soon_threadsafe(used.set)

        claims, relay, sender = await self._relay(claimed)
        await asyncio.to_thread(claims.count_set_aside)
        works = [relay.run(), self._make_room(claims, relay, used)]
        if sender is not None:
            works.append(sender.run())
        await run_all(works)

    async def flush(self) -> int:
        """Ingest what is there now, up to the limit. Return how many rows are set aside."""
        claims, relay, sender = await self._relay(lambda: None)
        claims.room = await self._free()
        aside = await relay.flush()
        if sender is not None:
            await sender.flush()
        return aside

    async def _relay(self, claimed: Callable[[], None]) -> tuple[ClaimedRows, Relay, ResultSender | None]:
        status = await self._client.ask("status")
        identity = str(status["identity"])
        self.owner = self.owner or identity
        sender, owe, loop = None, None, asyncio.get_running_loop()
        if self._options.results:
            sender = ResultSender(
                self._client, self._queue, OwedRows(self._conninfo, self._queue, self.owner, identity)
            )
            owe = partial(_call_in, loop, sender.add)
        claims = ClaimedRows(self._conninfo, self._queue, self.owner, identity, self._options.keep, claimed, owe)
        remembers = status.get("remembers") or RESEND_WITHIN
        self._running = Relay(claims, self._client, resend_within=min(RESEND_WITHIN, float(remembers)))
        return claims, self._running, sender

    async def _make_room(self, claims: ClaimedRows, relay: Relay, used: asyncio.Event) -> None:
        """Ask the daemon how much room there is: while there is none, and after each claim."""
        while True:
            used.clear()
            try:
                free = await self._free()
            except EoqError:
                used.set()  # the daemon is away: ask again
            else:
                had, claims.room = claims.room, free
                if had <= 0 < free:
                    relay.wake()
            await asyncio.sleep(ROOM_SECONDS)
            if claims.room > 0:
                await used.wait()

    async def _free(self) -> int:
        return await free_room(self._client, self._queue, self._options.limit)


def _call_in(loop: asyncio.AbstractEventLoop, add: Callable[[list[str]], None], ids: list[str]) -> None:
    loop.call_soon_threadsafe(add, ids)
