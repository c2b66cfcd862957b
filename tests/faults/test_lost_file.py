"""A daemon that cannot rely on its file any more ends at once, confirms nothing, and the next start recovers.

A sync of the disk fails; or the file or its log is replaced, removed, truncated, or written to by another program. In
each case the daemon must confirm no more sends, must not close its file (that would be a checkpoint), and must say what
happened.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.store.sqlite.trouble import OWNERSHIP_SECONDS
from tests.faults.daemons import ids_of, planted_daemon, settle_all, show
from tests.faults.planted_daemon import Plant
from tests.support import PATIENCE, Daemon, running_daemon

LOST: Final = 75
"""The exit status: try again later."""


def _log_of(daemon: Daemon) -> Path:
    return daemon.db.with_name("eoq.db-wal")


@pytest.mark.first_by_default
@pytest.mark.parametrize("quick_commit", [None, 0.0], ids=["on-the-loop", "on-the-thread"])
def test_a_failed_sync_ends_the_daemon_and_the_outcome_is_called_unknown(quick_commit: float | None) -> None:
    with (
        planted_daemon(Plant(quick_commit=quick_commit, failed_sync="failed_sync")) as daemon,
        eoq.connect(daemon.socket, timeout=PATIENCE) as client,
    ):
        client.send("q", "x", id="confirmed")
        failed_sync = daemon.folder / "failed_sync"
        failed_sync.touch()
        with pytest.raises(eoq.StorageFailed, match=r"unknown whether this was stored.*same id"):
            client.send("q", "x", id="unknown")
        assert daemon.wait() == LOST
        assert "stopping at once" in daemon.said
        assert _log_of(daemon).stat().st_size > 0, "it was closed, which is a checkpoint"
        failed_sync.unlink()
        daemon.start()
        # Here the transaction is in the log. The sender learns it by repeating the send.
        assert client.send("q", "x", id="unknown").duplicate
        assert ids_of(settle_all(client, "q")) == ["confirmed", "unknown"]


def test_no_send_is_confirmed_after_a_failed_sync() -> None:
    """Also not a send that was submitted together with the one whose sync failed."""
    with planted_daemon(Plant(failed_sync="failed_sync")) as daemon, daemon.wire() as wire:
        (daemon.folder / "failed_sync").touch()
        wire.send(*({"op": "send", "queue": "q", "id": f"{n}", "body": "x", "rid": n} for n in range(50)))
        replies = [wire.read() for _ in range(50)]
        assert [reply["ok"] for reply in replies] == [False] * 50
        assert {reply["error"]["code"] for reply in replies} == {"storage_failed"}
        assert daemon.wait() == LOST


def _replace(daemon: Daemon) -> None:
    shutil.copy(daemon.db, daemon.folder / "copy")
    (daemon.folder / "copy").replace(daemon.db)


def _remove(daemon: Daemon) -> None:
    daemon.db.unlink()


def _replace_log(daemon: Daemon) -> None:
    shutil.copy(_log_of(daemon), daemon.folder / "copy")
    (daemon.folder / "copy").replace(_log_of(daemon))


def _remove_log(daemon: Daemon) -> None:
    _log_of(daemon).unlink()


def _truncate_log(daemon: Daemon) -> None:
    os.truncate(_log_of(daemon), 32)


def _write(daemon: Daemon) -> None:
    with closing(sqlite3.connect(daemon.db)) as database, database:
        database.execute("update message set priority = 1")


def _send_until_refused(client: eoq.Client) -> None:
    """Send for at most a few milliseconds: the check of the file is made once a millisecond."""
    for _ in range(50):
        client.send("q", "x")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_replace, "was replaced"),
        (_remove, "was removed"),
        (_replace_log, "was replaced"),
        (_remove_log, "was removed"),
        (_truncate_log, "was truncated"),
        (_write, "another program has written"),
    ],
    ids=["file-replaced", "file-removed", "log-replaced", "log-removed", "log-truncated", "written-to"],
)
def test_a_file_that_others_changed_is_noticed_within_milliseconds(harm: Callable[[Daemon], None], says: str) -> None:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        for n in range(3):
            client.send("q", "x", id=f"before-{n}")
        time.sleep(2 * OWNERSHIP_SECONDS)  # the file is checked then before anything is written: a log grows again
        harm(daemon)
        with pytest.raises((eoq.StorageFailed, eoq.Unavailable)) as refused:
            _send_until_refused(client)
        # If a transaction of the daemon's own came first, the daemon has ended before the send.
        assert isinstance(refused.value, eoq.Unavailable) or says in str(refused.value)
        assert daemon.wait() == LOST
        assert says in daemon.said


def test_a_second_daemon_without_the_lock_file_takes_no_message_of_the_first() -> None:
    with running_daemon() as first, eoq.connect(first.socket) as client:
        client.send("q", "x", id="start")
        first.db.with_name("eoq.db.lock").unlink()
        second = Daemon(first.folder)
        second.socket = first.folder / "s2"
        try:
            second.start()
            with pytest.raises(eoq.StorageFailed, match="second daemon"):
                client.send("q", "x", id="refused")  # the second took longer to start than a check is good for
            assert first.wait() == LOST
            with eoq.connect(second.socket) as other:
                with pytest.raises(eoq.IdConflict):
                    other.send("q", "other content", id="start")
                assert show(other, "q", "refused") is None
                assert ids_of(settle_all(other, "q")) == ["start"]
        finally:
            second.kill()


def test_programs_that_only_read_the_file_do_not_stop_the_daemon() -> None:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="a")
        with closing(sqlite3.connect(daemon.db)) as reader, closing(sqlite3.connect(daemon.folder / "copy")) as copy:
            assert reader.execute("select count(*) from message").fetchone() == (1,)
            reader.backup(copy)
            client.send("q", "x", id="b")
            assert reader.execute("select count(*) from message").fetchone() == (2,)
        for n in range(3):
            client.send("q", bytes(1_000_000), id=f"large-{n}")
        assert client.send("q", "x", id="c").duplicate is False
