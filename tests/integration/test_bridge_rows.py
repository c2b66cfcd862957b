"""The rows of the bridge in PostgreSQL, as one machine claims, tries, takes and forgets them. No daemon is needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg
import pytest

from eoq.bridge.postgres import result_statements
from eoq.bridge.postgres.claims import list_claims, release_claims
from eoq.bridge.postgres.ingest import ClaimedRows, NameInUse
from eoq.bridge.postgres.results import AwaitedRows, OwedRows
from eoq.bridge.postgres.statements import LOCK_QUEUE, MAKE
from eoq.message import Outgoing
from eoq.outbox.rows import FileBusy, Row
from eoq.postgres.waking import WakingTable
from eoq.protocol.forwarding import MessageEnd
from tests.support import PATIENCE, eventually

DAY = 86400.0


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(MAKE)
        yield connection


@pytest.fixture
def machine(connection: psycopg.Connection[Any], database: str) -> Iterator[Callable[..., ClaimedRows]]:
    """Return a function that makes a machine's end of the table, for the queue `q`, with room for all."""
    made: list[ClaimedRows] = []

    def make(
        owner: str, identity: str = "", conninfo: str = database, owe: Callable[[list[str]], None] | None = None
    ) -> ClaimedRows:
        one = ClaimedRows(conninfo, "q", owner, identity or owner, 3 * DAY, lambda: None, owe)
        one.room = 10_000
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def _insert(connection: psycopg.Connection[Any], *ids: str, queue: str = "q", **columns: object) -> None:
    names = ["queue", "id", "body", *(f'"{name}"' for name in columns)]
    for id in ids:
        values = [queue, id, b"x", *columns.values()]
        columns_text = ", ".join(names)
        connection.execute(
            f"insert into eoq_forward ({columns_text}) values ({', '.join(['%s'] * len(values))})",
            values,
        )


def _ask(connection: psycopg.Connection[Any], id: str, queue: str = "q", **columns: object) -> None:
    names = ["queue", "id", "origin", *columns]
    connection.execute(
        f"insert into eoq_forward_result ({', '.join(names)}) values ({', '.join(['%s'] * len(names))})",
        [queue, id, "o", *columns.values()],
    )


def _ids(rows: list[Row]) -> list[str]:
    return [row.key.decode() for row in rows]


def _read(machine: ClaimedRows, limit: int = 250, most_bytes: int = 1024 * 1024) -> list[Row]:
    return machine.read(limit, most_bytes, resend_within=6 * DAY)


def _age(connection: psycopg.Connection[Any], column: str, days: float) -> None:
    connection.execute(f"update eoq_forward set {column} = {column} - {days * DAY}")


def test_a_machine_forgets_only_of_its_queue_and_all_that_is_due(
    connection: psycopg.Connection[Any], machine: Callable[..., ClaimedRows]
) -> None:
    _insert(connection, "a", taken_at=1.0, queue="other")
    connection.execute(
        "insert into eoq_forward (queue, id, body, taken_at) select 'q', n, '', 1 from generate_series(1, 1500) n"
    )
    _insert(connection, "new")
    connection.execute("update eoq_forward set taken_at = extract(epoch from now()) where id = 'new'")
    one = machine("b")
    _read(one)
    _read(one)
    left = connection.execute("select queue, id from eoq_forward order by queue").fetchall()
    assert left == [("other", "a"), ("q", "new")]


@pytest.mark.parametrize("by", ["an ingester", "a release"])
def test_a_name_whose_holder_is_just_leaving_is_waited_for(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows], by: str
) -> None:
    _insert(connection, "1")
    leaving = machine("b")
    assert _ids(_read(leaving)) == ["1"]

    def is_tried_again() -> bool:
        trying = connection.execute(
            "select count(*) from pg_stat_activity where query like '%try_advisory_lock%' and pid <> pg_backend_pid()"
        )
        return trying.fetchone() == (1,)

    def take() -> int:
        return len(_read(machine("b"))) if by == "an ingester" else release_claims(database, "q", "b")

    with ThreadPoolExecutor(1) as threads:
        taking = threads.submit(take)
        eventually(is_tried_again, what="the name is tried")
        leaving.close()
        assert taking.result(PATIENCE) == 1


def test_a_name_with_a_group_belongs_to_its_file(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    _insert(connection, "1", group="g")
    first = machine("b", "file 1")
    first.remove(_read(first))
    first.close()
    with pytest.raises(NameInUse, match="claims or groups of another"):
        _read(machine("b", "file 2"))
    assert release_claims(database, "q", "b") == 0
    assert _read(machine("b", "file 2")) == []


@pytest.mark.slow
def test_a_request_is_adopted_only_by_the_file_that_has_taken_its_message(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    connection.execute(result_statements.MAKE)
    _insert(connection, "1")
    _insert(connection, "2")
    first = machine("b", "file 1")
    first.remove(_read(first, 1))
    for id in ("1", "2"):
        _ask(connection, id)
    with closing(OwedRows(database, "q", "b", "file 1")) as owed:
        assert owed.owed(10) == ["1"]
    connection.execute("update eoq_forward_result set owner = null")
    connection.execute("delete from eoq_forward where taken_at is null")
    first.close()
    assert _read(machine("b", "file 2")) == []
    with closing(OwedRows(database, "q", "b", "file 2")) as owed:
        assert owed.owed(10) == []


@pytest.mark.slow
def test_results_of_one_moment_are_read_in_parts(connection: psycopg.Connection[Any], database: str) -> None:
    connection.execute(result_statements.MAKE)
    for queue in ("a", "b"):
        _ask(connection, "m", queue=queue, asked_at=1.0, outcome="done", result=b"x" * 800_000)
    _ask(connection, "long", queue="a", asked_at=2.0, outcome="dead", error="x" * 2 * 1024 * 1024)
    _ask(connection, "n", queue="a", asked_at=3.0, outcome="done")
    read = []
    with closing(AwaitedRows(database, "o")) as awaited:
        while found := awaited.read(["a", "b"], [], behind_writers=False):
            read.append([(queue, end.id) for queue, end in found])
            for queue, end in found:
                awaited.finish(queue, [end])
    assert read == [[("a", "m")], [("b", "m")], [("a", "long")], [("a", "n")]]


@pytest.mark.slow
def test_a_result_that_is_still_to_come_is_not_forgotten(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    connection.execute(result_statements.MAKE)
    _insert(connection, "waits")
    _insert(connection, "was taken", taken_at=1.0)
    long_ago = time.time() - 4 * DAY
    for id in ("waits", "was taken", "nowhere"):
        _ask(connection, id, asked_at=long_ago)
    _ask(connection, "runs", owner="b", asked_at=long_ago)
    _ask(connection, "lost", owner="b", asked_at=time.time() - 31 * DAY)
    _ask(connection, "told", owner="b", asked_at=long_ago, outcome="done")
    _ask(connection, "just told", owner="b", asked_at=long_ago)
    one = machine("b", owe=lambda _: None)
    one.room = 0
    one.count_set_aside()  # it takes the name
    with closing(OwedRows(database, "q", "b", "b")) as owed:
        owed.fill([MessageEnd("just told", "done", None, None)])
    assert _read(one) == []
    left = connection.execute("select id from eoq_forward_result order by id").fetchall()
    assert [id for (id,) in left] == ["just told", "runs", "waits"]


@pytest.mark.slow
def test_a_frozen_machine_tells_no_result_of_the_one_that_has_its_name(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    """Its claims were released while it was frozen, and then another file took the name. Then it wakes."""
    connection.execute(result_statements.MAKE)
    _insert(connection, "m", "n")
    for id in ("m", "n"):
        _ask(connection, id)
    frozen = machine("b", "frozen", owe=lambda _: None)
    assert _ids(_read(frozen)) == ["m", "n"]
    frozen.close()  # the server has ended its connections
    assert release_claims(database, "q", "b") == 2
    second = machine("b", "second", owe=lambda _: None)
    second.remove(_read(second))
    with (
        closing(OwedRows(database, "q", "b", "second")) as owed,
        closing(OwedRows(database, "q", "b", "frozen")) as old,
    ):
        owed.fill([MessageEnd("n", "dead", None, "of the second")])
        assert (old.owed(10), old.dead(10, None)) == ([], [])
        old.fill([MessageEnd(id, "done", b"of the frozen", None) for id in ("m", "n")])
        assert (owed.owed(10), [letter.id for letter in owed.dead(10, None)]) == (["m"], ["n"])
        owed.fill([MessageEnd("m", "done", b"of the second", None)])
    told = connection.execute("select id, outcome, result, error from eoq_forward_result order by id").fetchall()
    assert told == [("m", "done", b"of the second", None), ("n", "dead", None, "of the second")]


@pytest.mark.slow
def test_a_frozen_machine_owes_nothing_that_another_has_taken(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    """It wakes behind its daemon's reply, and marks as taken what the other machine has taken meanwhile."""
    connection.execute(result_statements.MAKE)
    _insert(connection, "m")
    _ask(connection, "m")
    owed_by_it: list[str] = []
    frozen = machine("b", owe=owed_by_it.extend)
    rows = _read(frozen)
    frozen.close()
    assert release_claims(database, "q", "b") == 1
    second = machine("c", owe=lambda _: None)
    second.remove(_read(second))
    frozen.remove(rows)
    assert owed_by_it == []
    with closing(OwedRows(database, "q", "c", "c")) as owed, closing(OwedRows(database, "q", "b", "b")) as old:
        assert (old.owed(10), owed.owed(10)) == ([], ["m"])
        old.fill([MessageEnd("m", "done", b"of the frozen", None)])
        owed.fill([MessageEnd("m", "done", b"of the second", None)])
    assert connection.execute("select owner, result from eoq_forward_result").fetchall() == [("c", b"of the second")]


@pytest.mark.slow
def test_what_was_claimed_before_the_connection_broke_comes_first(
    connection: psycopg.Connection[Any], machine: Callable[..., ClaimedRows]
) -> None:
    """The reply to a claim was lost, so the machine does not know of it. What follows in the group waits for it."""
    _insert(connection, "0", group="g")
    one = machine("b")
    one.remove(_read(one))
    assert _read(one) == []
    _insert(connection, "1", group="g")
    connection.execute("update eoq_forward set owner = 'b', claimed_at = 1, tried_at = 1 where id = '1'")
    _insert(connection, "2", group="g")
    one.close()
    assert _ids(_read(one)) == ["1"]


@pytest.mark.slow
def test_an_empty_read_is_not_repeated_while_all_that_comes_is_notified(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    """Also: a transaction that was open before the reader waited is waited for, and one that came later notifies."""
    one = machine("b")

    def found(*, behind_writers: bool = False) -> list[str]:
        return _ids(one.read(250, 1024 * 1024, resend_within=6 * DAY, behind_writers=behind_writers))

    with psycopg.connect(database) as writing:
        _insert(writing, "early")
        assert found() == []
        with pytest.raises(FileBusy):
            found(behind_writers=True)
        assert found() == []
        with pytest.raises(FileBusy):
            found(behind_writers=True)
    connection.execute("listen eoq_forward")
    assert found(behind_writers=True) == ["early"]
    one.remove(one.mark(one.read(250, 1024 * 1024, resend_within=6 * DAY, reread=True))[0])
    assert (found(), found(behind_writers=True)) == ([], [])
    with psycopg.connect(database) as writing:
        _insert(writing, "late")
        assert (found(), found(behind_writers=True)) == ([], []), "its commit is notified"
    assert [notice.channel for notice in connection.notifies(timeout=PATIENCE, stop_after=1)] == ["eoq_forward"]
    assert found() == ["late"]


@pytest.mark.slow
@pytest.mark.parametrize("outcome", [None, "dead"])
def test_a_name_that_owes_results_belongs_to_its_file(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows], outcome: str | None
) -> None:
    first = machine("b", "file 1")
    assert _read(first) == []
    first.close()
    connection.execute(result_statements.MAKE)
    _ask(connection, "told", owner="b", outcome="done")
    second = machine("b", "file 2")
    assert _read(second) == [], "what is told binds no name"
    second.close()
    _ask(connection, "m", owner="b", outcome=outcome)
    with pytest.raises(NameInUse, match="owes results of another"):
        _read(machine("b", "file 3"))
    assert release_claims(database, "q", "b") == 0
    assert _read(machine("b", "file 3")) == []
    with closing(OwedRows(database, "q", "b", "file 3")) as owed:
        assert owed.owed(10) == []


def test_only_what_was_tried_grows_too_old(
    connection: psycopg.Connection[Any], machine: Callable[..., ClaimedRows]
) -> None:
    _insert(connection, "m")
    one = machine("b")
    _read(one)
    _age(connection, "claimed_at", 9)
    rows = _read(one)
    assert isinstance(rows[0].message, Outgoing), "it was claimed and never tried"
    one.mark(rows)
    one.unmark(rows)
    _age(connection, "claimed_at", 9)
    rows = _read(one)
    assert isinstance(rows[0].message, Outgoing), "the daemon has refused it"
    one.mark(rows)
    one.mark(rows)
    one.unmark(rows)
    _age(connection, "tried_at", 9)
    (row,) = _read(one)
    assert "If so, set its taken_at; if not, set its error to null" in str(row.message)
    one.set_aside(row, str(row.message))
    assert (_read(one), one.count_set_aside()) == ([], 1)
    connection.execute("update eoq_forward set error = null")
    assert isinstance(_read(one)[0].message, Outgoing), "the operator says that it did not arrive"


def test_a_row_that_has_arrived_is_set_aside_no_more(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    _insert(connection, "1", "2", group="g")
    one = machine("b")
    first, _second = _read(one)
    one.set_aside(first, "why")
    _insert(connection, "3", group="g")
    assert _read(one) == [], "the group waits"
    connection.execute("update eoq_forward set taken_at = extract(epoch from now()) where id = '1'")
    taken = _read(one)
    one.remove(taken)
    taken += _read(one)
    assert _ids(taken) == ["2", "3"]
    assert one.count_set_aside() == 0
    assert [claims.set_aside for claims in list_claims(database, "q")] == [0]


@pytest.mark.parametrize(
    "change",
    ["claimed_at = null", "claimed_at = 'NaN', tried_at = 'NaN'", "claimed_at = 'inf', expires_at = null"],
)
def test_dates_of_other_programs_keep_nothing_back(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows], change: str
) -> None:
    _insert(connection, "m")
    connection.execute(f"update eoq_forward set owner = 'b', {change}")
    one = machine("b")
    rows = _read(one)
    assert isinstance(rows[0].message, Outgoing)
    left, since = one.mark(rows)
    assert left == rows
    assert since > 0
    assert list_claims(database, "q")[0].oldest is None


def test_a_date_that_is_no_number_sets_its_row_aside(
    connection: psycopg.Connection[Any], machine: Callable[..., ClaimedRows]
) -> None:
    _insert(connection, "m", owner="b", tried_at=float("-inf"))
    (row,) = _read(machine("b"))
    assert "not a number of seconds" in str(row.message)


def test_a_claim_has_so_many_bytes(connection: psycopg.Connection[Any], machine: Callable[..., ClaimedRows]) -> None:
    _insert(connection, *"abcde")
    connection.execute("update eoq_forward set body = convert_to(repeat('x', 400), 'UTF8')")
    one = machine("b")
    assert _ids(_read(one, most_bytes=1000)) == ["a", "b"]
    assert one.room == 10_000 - 2
    assert _ids(_read(one, most_bytes=100)) == ["a"], "one at least"
    assert _ids(_read(machine("c"), most_bytes=100)) == ["c"]
    assert _ids(_read(machine("d"))) == ["d", "e"]


def test_the_isolation_that_a_database_sets_moves_no_group(
    connection: psycopg.Connection[Any], database: str, machine: Callable[..., ClaimedRows]
) -> None:
    _insert(connection, "1", "2", group="g")
    one = machine("b", conninfo=f"{database}%20-c%20default_transaction_isolation%3Drepeatable%5C%20read")
    assert _read(machine("nobody"), limit=0) == []
    found: list[list[Row]] = []
    reading = threading.Thread(target=lambda: found.append(_read(one)))
    with connection.transaction():
        connection.execute(LOCK_QUEUE, ("q",))
        connection.execute("update eoq_forward set owner = 'c', claimed_at = 1 where id = '1'")
        reading.start()
        while not connection.execute("select 1 from pg_locks where locktype = 'advisory' and not granted").fetchall():
            assert reading.is_alive(), "it waits for its turn"
    reading.join(PATIENCE)
    assert found == [[]]


def test_any_number_of_readers_wait(connection: psycopg.Connection[Any], database: str) -> None:
    readers = [WakingTable(database, "eoq_forward", "") for _ in range(3)]
    connection.execute("listen eoq_forward")
    with psycopg.connect(database) as writer, psycopg.connect(database) as another:
        for one in (writer, another):
            _insert(one, str(id(one)))
        another.commit()
        writer.commit()
        assert list(connection.notifies(timeout=0.1)) == [], "nobody waits, and writers do not mistake each other"
        for reader in readers:
            reader.begin_waiting()
        for reader in readers[:2]:
            reader.end_waiting()
        for one in (writer, another):
            _insert(one, f"{id(one)} again")
        writer.commit()
        another.commit()
        assert len(list(connection.notifies(timeout=PATIENCE, stop_after=2))) == 2, "one waits still"
        readers[2].end_waiting()
    for reader in readers:
        reader.close()


def test_a_long_transaction_fills_no_log(connection: psycopg.Connection[Any], database: str) -> None:
    reader = WakingTable(database, "eoq_forward", "")
    connection.execute("listen eoq_forward")
    with psycopg.connect(database) as writer, psycopg.connect(database) as another:
        _insert(writer, "long")
        for _ in range(2):  # only the first waits, and has its time-out in the log
            with pytest.raises(FileBusy):
                reader.begin_waiting()
        with pytest.raises(FileBusy) as refusal:
            reader.begin_waiting()
        assert refusal.value.__cause__ is None, "the server has answered without an error"
        _insert(another, "meanwhile")
        another.commit()
        assert list(connection.notifies(timeout=PATIENCE, stop_after=1)), "the reader is woken all the same"
        writer.commit()
        reader.begin_waiting()
    reader.close()
