"""The table ``once``: the keys of the dedup service, which caller runs each, and its output."""

from __future__ import annotations

from .....errors import IdConflict, LeaseLost
from ....records import OnceRecord
from ....store.commands import OnceBegin, OnceFinish, OnceForget, OnceRelease, OnceRunning
from ..database import Database
from .clock import ClockNotes


class OnceKeys:
    """All keys."""

    def __init__(self, database: Database, clock_notes: ClockNotes) -> None:
        self._database = database
        self._unset = clock_notes.unset

    def begin(self, command: OnceBegin) -> OnceRecord:
        """See `OnceBegin`."""
        key, token, fingerprint = command.key, command.token, command.fingerprint
        self._database.execute(
            """
            delete from once
            where key = ? and expires_at <= ?
            """,
            (key, self._unset(command.now)),
        )
        self._database.execute(
            """
            insert into once (key, token, fingerprint, state)
            values (?, ?, ?, 'running')
            on conflict (key) do nothing
            """,
            (key, token, fingerprint),
        )
        stored_token, stored_fingerprint, state, status, output, output_bytes = self._database.execute(
            """
            select token, fingerprint, state, status, output, output_bytes
            from once
            where key = ?
            """,
            (key,),
        ).fetchone()
        if fingerprint is not None and stored_fingerprint is not None and fingerprint != stored_fingerprint:
            raise IdConflict(
                f"the key {key!r} was used for something else (fingerprint {stored_fingerprint!r}, now "
                f"{fingerprint!r}), and nothing was run; use another key for it"
            )
        return OnceRecord(state, stored_token == token, status or 0, output, output_bytes or 0)

    def finish(self, command: OnceFinish) -> None:
        """See `OnceFinish`."""
        key, token, expires_at = command.key, command.token, self._unset(command.expires_at)
        written = self._database.execute(
            """
            insert into once (key, token, state, status, output, output_bytes, expires_at)
            values (?, ?, 'done', ?, ?, ?, ?)
            on conflict (key) do update
            set
              state = 'done',
              status = excluded.status,
              output = excluded.output,
              output_bytes = excluded.output_bytes,
              expires_at = excluded.expires_at
            where token = excluded.token and state = 'running'
            """,
            (key, token, command.status, command.output, command.output_bytes, expires_at),
        ).rowcount
        if written == 0 and not self._runs(key, token):
            raise LeaseLost(
                f"the key {key!r} was taken by another caller while this one was cut off from the daemon: it may "
                "have run twice, and what is stored is the other's"
            )

    def _runs(self, key: str, token: str) -> bool:
        """Return whether the caller with ``token`` runs the key, or ran it."""
        found = self._database.execute("select token from once where key = ?", (key,)).fetchone()
        return found is not None and found[0] == token

    def release(self, command: OnceRelease) -> None:
        """See `OnceRelease`."""
        self._database.execute(
            """
            delete from once
            where key = ? and token = ? and state = 'running'
            """,
            (command.key, command.token),
        )

    def running(self, _command: OnceRunning) -> list[tuple[str, str]]:
        """See `OnceRunning`."""
        return self._database.execute("select key, token from once where state = 'running'").fetchall()

    def forget(self, command: OnceForget) -> int:
        """See `OnceForget`."""
        return self._database.execute(
            """
            delete from once
            where number in (
              select number
              from once
              where expires_at <= ?
              order by expires_at
              limit ?
            )
            """,
            (self._unset(command.now), command.limit),
        ).rowcount
