"""The keys of the dedup service in the daemon's file: who runs one, and what came of it."""

from __future__ import annotations

from .....errors import IdConflict, LeaseLost
from ....records import OnceRecord
from ..database import File


class OnceTable(File):
    """The verbs of the table ``once``; see ``file.py`` for what a verb is."""

    def once_begin(self, now: float, key: str, token: str, fingerprint: str | None) -> OnceRecord:
        """Takes ``key`` for the caller with ``token``, unless another runs it or it is done.

        Raises `IdConflict` where the key stands for something with another fingerprint.
        """
        self._database.execute(
            """
            delete from once
            where key = ? and expires_at <= ?
            """,
            (key, now),
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
                f"{fingerprint!r}), and nothing was run; what is new needs a new key"
            )
        return OnceRecord(state, stored_token == token, status or 0, output, output_bytes or 0)

    def once_finish(
        self, key: str, token: str, status: int, output: bytes | None, output_bytes: int, expires_at: float | None
    ) -> None:
        """Stores what came of a key. Repeating it is without effect.

        Raises `LeaseLost` where another caller has taken the key meanwhile.
        """
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
            (key, token, status, output, output_bytes, expires_at),
        ).rowcount
        if written == 0 and not self._once_is_by(key, token):
            raise LeaseLost(
                f"the key {key!r} was taken by another caller while this one was cut off from the daemon: it may "
                "have run twice, and what is stored is the other's"
            )

    def _once_is_by(self, key: str, token: str) -> bool:
        found = self._database.execute("select token from once where key = ?", (key,)).fetchone()
        return found is not None and found[0] == token

    def once_release(self, key: str, token: str) -> None:
        """Opens a key again that ``token`` runs; without effect where it does not."""
        self._database.execute(
            """
            delete from once
            where key = ? and token = ? and state = 'running'
            """,
            (key, token),
        )

    def once_running(self) -> list[tuple[str, str]]:
        """The keys that are running, with their tokens."""
        return self._database.execute("select key, token from once where state = 'running'").fetchall()

    def once_forget(self, now: float, limit: int) -> int:
        """Drops up to ``limit`` keys that have expired; returns how many."""
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
            (now, limit),
        ).rowcount
