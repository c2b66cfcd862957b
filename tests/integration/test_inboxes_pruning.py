"""Pruning of an inbox with a real daemon, in each kind of database: only ids below the watermark and older than
``keep`` are deleted (G9).

That this is safe is the subject of tests/model/test_retention.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest

import eoq
from tests.integration.stores import AnyInbox, Store
from tests.support import PATIENCE, eventually

ROWS = 200
"""How many rows one step reads."""


@pytest.fixture
def inbox(store: Store) -> Iterator[AnyInbox]:
    """Return an inbox that keeps no id for the sake of backups."""
    with store.inbox(keep=0) as inbox:
        yield inbox


def _send(client: eoq.Client, queue: str, first: int, count: int) -> None:
    client.send_many(queue, [eoq.Outgoing({"amount": 0}, id=f"{n}") for n in range(first, first + count)])


def _receive(client: eoq.Client, queue: str, limit: int = 1) -> list[eoq.Message]:
    messages = client.receive(queue, limit, wait=PATIENCE)
    assert messages
    return messages


def _process(client: eoq.Client, queue: str, store: Store, inbox: AnyInbox, first: int, count: int = 1) -> None:
    _send(client, queue, first, count)
    inbox.process_many(_receive(client, queue, count), store.apply)


def _state(client: eoq.Client, queue: str, id: str) -> str:
    return str(client.ask("show", queue=queue, id=id)["message"]["state"])


def test_an_id_whose_message_is_done_is_deleted(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    for number in range(5):
        _process(blocking, queue, store, inbox, number)
    assert store.known() == [0, 1, 2, 3, 4]
    assert inbox.prune() == 4  # only the next delivery will say that the last one is done
    assert store.known() == [4]
    assert not inbox.seen(queue, "3")
    assert inbox.prune() == 0


def test_ids_younger_than_keep_stay(blocking: eoq.Client, queue: str, store: Store) -> None:
    with store.inbox(keep=3600) as inbox:
        for number in range(5):
            _process(blocking, queue, store, inbox, number)
        assert inbox.prune() == 0
    store.execute("update eoq_processed set processed_at = processed_at - 3601 where id in ('0', '2')")
    with store.inbox(keep=3600) as inbox:
        assert inbox.prune() == 2
    assert store.known() == [1, 3, 4]


def test_keep_may_be_infinite(blocking: eoq.Client, queue: str, store: Store) -> None:
    with store.inbox(keep=math.inf) as inbox:
        _process(blocking, queue, store, inbox, 0, 150)
        _process(blocking, queue, store, inbox, 150)
        assert inbox.prune() == 0


@pytest.mark.slow
def test_a_worker_prunes_while_it_processes(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    """Without a call of `prune` the table stays small."""
    for first in range(0, 2000, 50):
        _process(blocking, queue, store, inbox, first, 50)
        assert len(store.known()) <= 2 * ROWS
    for number in range(2000, 2250):
        _process(blocking, queue, store, inbox, number)
    assert len(store.known()) <= ROWS
    assert store.execute("select count(*), count(distinct id) from payment") == [(2250, 2250)]


def test_workers_that_process_one_message_each_prune_as_well(blocking: eoq.Client, queue: str, store: Store) -> None:
    for number in range(5):
        with store.inbox(keep=0) as inbox:
            _process(blocking, queue, store, inbox, number)
    assert store.known() == [4]


@pytest.mark.first_by_default
def test_prune_uses_the_watermarks_that_other_processes_received(
    blocking: eoq.Client, queue: str, store: Store
) -> None:
    with store.inbox() as worker:
        _process(blocking, queue, store, worker, 0, 500)
        _process(blocking, queue, store, worker, 500, 100)
    with store.inbox(keep=0) as inbox:
        assert inbox.prune() == 500
        assert inbox.prune() == 0
    assert store.known() == list(range(500, 600))


def test_each_queue_has_a_watermark_of_its_own(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    other = queue[:100] + ".other"
    blocking.send(other, {"amount": 0}, id="100", delay=3600)
    blocking.send(other, {"amount": 0}, id="101")
    inbox.process_many(_receive(blocking, other), store.apply)
    for number in range(3):
        _process(blocking, queue, store, inbox, number)
    assert inbox.prune() == 2
    assert store.known() == [2, 101]


def test_the_ids_of_a_queue_that_has_no_watermark_stay(store: Store, inbox: AnyInbox) -> None:
    store.execute("insert into eoq_processed (queue, id, seq, processed_at) values ('q', '1', 1, 0)")
    assert inbox.prune() == 0


@pytest.mark.slow
@pytest.mark.parametrize("state", ["ready", "delayed", "leased", "dead"])
def test_the_id_of_a_message_that_can_be_delivered_again_is_kept(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store, state: str
) -> None:
    """The effect is committed, and the ack was too late. Later messages do not displace the id."""
    _send(blocking, queue, 0, 1)
    (slow,) = blocking.receive(queue, wait=PATIENCE, lease=0.02)
    eventually(lambda: _state(blocking, queue, "0") == "ready")
    with pytest.raises(eoq.LeaseLost):
        inbox.process(slow, store.apply)
    if state != "ready":
        (again,) = _receive(blocking, queue)
        if state == "delayed":
            again.nack(delay=3600)
        elif state == "dead":
            again.reject("no")
    assert _state(blocking, queue, "0") == state
    for number in range(1, 300):
        blocking.send(queue, {"amount": 0}, id=f"{number}", priority=1)
        inbox.process(_receive(blocking, queue)[0], store.apply)
    assert inbox.prune() == 0
    assert inbox.seen(queue, "0")


def test_a_message_whose_id_was_pruned_is_a_duplicate_for_the_daemon(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    _process(blocking, queue, store, inbox, 0)
    _process(blocking, queue, store, inbox, 1)
    inbox.prune()
    assert not inbox.seen(queue, "0")
    assert blocking.send(queue, {"amount": 0}, id="0").duplicate
    assert blocking.receive(queue) == []


def test_a_redelivery_renews_the_date_of_an_id(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    _send(blocking, queue, 0, 1)
    (slow,) = blocking.receive(queue, wait=PATIENCE, lease=0.02)
    eventually(lambda: _state(blocking, queue, "0") == "ready")
    with pytest.raises(eoq.LeaseLost):
        inbox.process(slow, store.apply)
    store.execute("update eoq_processed set processed_at = 1, seq = 0")
    before = time.time()
    inbox.process(_receive(blocking, queue)[0], store.apply)
    ((seq, result, processed_at),) = store.execute("select seq, result, processed_at from eoq_processed")
    assert (seq, result) == (slow.seq, b'{"paid":0}')
    assert processed_at >= before
