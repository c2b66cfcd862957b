"""The inbox with a real daemon, in each kind of database: every message takes effect once (G5)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

import eoq
from tests.integration.stores import AnyInbox, Store
from tests.support import Daemon, eventually


@pytest.fixture
def inbox(store: Store) -> Iterator[AnyInbox]:
    """Return an inbox of the database."""
    with store.inbox() as inbox:
        yield inbox


def _receive(client: eoq.Client, queue: str, limit: int = 1, lease: float | None = None) -> list[eoq.Message]:
    messages = client.receive(queue, limit, wait=20, lease=lease)
    assert messages
    return messages


def _delivered(client: eoq.Client, queue: str, id: str = "m", lease: float | None = None) -> eoq.Message:
    client.send(queue, {"amount": 5}, id=id)
    (message,) = _receive(client, queue, lease=lease)
    return message


def _deliver_many(client: eoq.Client, queue: str, count: int) -> list[eoq.Message]:
    client.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(count)])
    return _receive(client, queue, count)


def _state(client: eoq.Client, queue: str, id: str = "m") -> tuple[str, str | None]:
    shown = client.ask("show", queue=queue, id=id)["message"]
    return shown["state"], shown.get("error")


def test_a_message_is_applied_and_acked_with_its_result(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    assert not inbox.seen(queue, "m")
    assert inbox.process(_delivered(blocking, queue), store.apply) == b'{"paid":5}'
    assert inbox.seen(queue, "m")
    assert not inbox.seen(queue + ".other", "m")
    assert store.payments() == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b'{"paid":5}')


@pytest.mark.parametrize(("returned", "result"), [(None, None), (b"\xff", b"\xff"), ("é", "é".encode()), ([1], b"[1]")])
def test_the_result_is_bytes_now_and_later(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store, returned: object, result: bytes | None
) -> None:
    message = _delivered(blocking, queue, lease=0.02)
    again = _receive(blocking, queue)[0]
    with pytest.raises(eoq.LeaseLost):
        inbox.process(message, lambda _tx, _message: returned)
    assert inbox.process(again, store.apply) == result
    assert blocking.result(queue, "m") == eoq.Result("done", result)


def test_a_redelivered_message_runs_nothing_and_gives_the_stored_result(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    def slow(tx: Any, message: eoq.Message) -> object:
        result = store.apply(tx, message)
        eventually(lambda: _state(blocking, queue)[0] == "ready")
        return result

    with pytest.raises(eoq.LeaseLost):
        inbox.process(_delivered(blocking, queue, lease=0.05), slow)
    assert store.payments() == ["m"]
    (again,) = _receive(blocking, queue)
    assert again.attempt == 2
    assert inbox.process(again, slow) == b'{"paid":5}'
    assert store.payments() == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b'{"paid":5}')


def test_an_ack_that_was_lost_with_the_daemon_is_repeated_without_the_effect(
    daemon: Daemon, inbox: AnyInbox, store: Store
) -> None:
    with eoq.connect(daemon.socket) as client:

        def interrupted(tx: Any, message: eoq.Message) -> object:
            daemon.restart()
            return store.apply(tx, message)

        with pytest.raises(eoq.LeaseLost):
            inbox.process(_delivered(client, "q"), interrupted)
        assert inbox.process(_receive(client, "q")[0], store.apply) == b'{"paid":5}'
        assert store.payments() == ["m"]


def test_a_handler_that_raises_is_rolled_back_and_its_message_given_back(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    def fail(tx: Any, message: eoq.Message) -> None:
        store.apply(tx, message)
        raise OSError("the bank is closed")

    with pytest.raises(OSError, match="the bank is closed"):
        inbox.process(_delivered(blocking, queue), fail)
    assert store.payments() == []
    assert not inbox.seen(queue, "m")
    assert _state(blocking, queue) == ("ready", "OSError: the bank is closed")
    assert inbox.process(_receive(blocking, queue)[0], store.apply) == b'{"paid":5}'
    assert store.payments() == ["m"]


def test_an_interrupted_handler_is_rolled_back(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    def interrupted(tx: Any, message: eoq.Message) -> None:
        store.apply(tx, message)
        raise KeyboardInterrupt

    message = _delivered(blocking, queue)
    with pytest.raises(KeyboardInterrupt):
        inbox.process(message, interrupted)
    assert store.payments() == []
    inbox.process(message, store.apply)
    assert store.payments() == ["m"]


@pytest.mark.parametrize("returned", [object(), float("nan")])
def test_a_result_that_cannot_be_stored_undoes_the_effect(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store, returned: object
) -> None:
    def handler(tx: Any, message: eoq.Message) -> object:
        store.apply(tx, message)
        return returned

    with pytest.raises(eoq.InvalidRequest):
        inbox.process(_delivered(blocking, queue), handler)
    assert store.payments() == []
    assert _state(blocking, queue)[0] == "dead"


def test_a_result_that_is_too_large_undoes_the_effect(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    """If it was committed, it could never be acked: the message would be delivered again until it is dead."""

    def handler(tx: Any, message: eoq.Message) -> object:
        store.apply(tx, message)
        return b"x" * (1024 * 1024 + 1)

    with pytest.raises(eoq.MessageTooLarge):
        inbox.process(_delivered(blocking, queue), handler)
    assert store.payments() == []
    assert not inbox.seen(queue, "m")
    assert _state(blocking, queue)[0] == "dead"


@pytest.mark.slow
def test_two_inboxes_with_the_same_message_make_one_effect(
    blocking: eoq.Client, queue: str, store: Store, shared_daemon: Daemon
) -> None:
    for number in range(20):
        old = _delivered(blocking, queue, f"{number}", lease=0.01)
        (new,) = _receive(blocking, queue)
        barrier = threading.Barrier(2)

        def process(message: eoq.Message, barrier: threading.Barrier = barrier) -> bytes | None:
            with store.inbox() as inbox:
                barrier.wait(20)
                try:
                    return inbox.process(message, store.apply)
                except eoq.LeaseLost:
                    return None

        with ThreadPoolExecutor(2) as pool:
            assert b'{"paid":5}' in list(pool.map(process, (old, new)))
    assert store.payments() == [f"{number}" for number in range(20)]


@pytest.mark.slow
def test_threads_share_an_inbox_of_a_path(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    blocking.send_many(queue, [eoq.Outgoing({"amount": n}, id=f"{n}") for n in range(200)])

    def work(_: int) -> None:
        for message in blocking.consume(queue, prefetch=5, idle=0.3):
            inbox.process(message, store.apply)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert sorted(store.payments(), key=int) == [f"{n}" for n in range(200)]


def test_many_are_applied_together(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    outcomes = inbox.process_many(_deliver_many(blocking, queue, 5), store.apply)
    assert outcomes == [f'{{"paid":{n}}}'.encode() for n in range(5)]
    assert store.payments() == [f"{n}" for n in range(5)]
    assert blocking.result(queue, "3") == eoq.Result("done", b'{"paid":3}')


def test_of_many_a_bad_one_undoes_only_itself(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    def picky(tx: Any, message: eoq.Message) -> object:
        result = store.apply(tx, message)
        if message.id == "1":
            raise ValueError("no such account")
        return result

    outcomes = inbox.process_many(_deliver_many(blocking, queue, 3), picky)
    assert [type(outcome) for outcome in outcomes] == [bytes, ValueError, bytes]
    assert store.payments() == ["0", "2"]
    assert [_state(blocking, queue, id)[0] for id in ("0", "1", "2")] == ["done", "ready", "done"]
    assert _state(blocking, queue, "1")[1] == "ValueError: no such account"


def test_of_many_those_that_were_processed_before_run_nothing(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    messages = _deliver_many(blocking, queue, 3)
    inbox.process(messages[1], store.apply)
    assert inbox.process_many(messages, store.apply) == [f'{{"paid":{n}}}'.encode() for n in range(3)]
    assert sorted(store.payments()) == ["0", "1", "2"]


def test_of_many_a_lost_lease_stops_no_other_ack(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    messages = _deliver_many(blocking, queue, 3)
    messages[1].nack()
    with pytest.raises(eoq.LeaseLost):
        inbox.process_many(messages, store.apply)
    assert store.payments() == ["0", "1", "2"]
    assert [_state(blocking, queue, id)[0] for id in ("0", "1", "2")] == ["done", "ready", "done"]
    inbox.process(_receive(blocking, queue)[0], store.apply)
    assert store.payments() == ["0", "1", "2"]


def test_of_many_one_that_is_delivered_twice_takes_effect_once(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    message = _delivered(blocking, queue, lease=0.02)
    (again,) = _receive(blocking, queue)
    with pytest.raises(eoq.LeaseLost):
        inbox.process_many([message, again, message], store.apply)
    assert store.payments() == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b'{"paid":5}')


def test_of_many_one_that_is_delivered_twice_and_fails_first_is_tried_twice(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    message = _delivered(blocking, queue)
    tries = iter([OSError("once"), None])

    def handler(tx: Any, message: eoq.Message) -> object:
        result = store.apply(tx, message)
        if error := next(tries):
            raise error
        return result

    with suppress(eoq.LeaseLost):  # given back after the first try
        inbox.process_many([message, message], handler)
    assert store.payments() == ["m"]
    assert inbox.seen(queue, "m")


def test_of_many_each_id_is_looked_up_in_its_own_queue(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    other = queue[:100] + ".other"
    messages = [_delivered(blocking, name, id) for name in (queue, other) for id in ("a", "b")]
    inbox.process(messages[0], store.apply)
    assert inbox.process_many(messages, store.apply) == [b'{"paid":5}'] * 4
    assert store.payments() == ["a", "b", "a", "b"]
    assert [inbox.seen(name, id) for name in (queue, other) for id in ("a", "b")] == [True] * 4


def test_no_messages_are_an_empty_result(inbox: AnyInbox, store: Store) -> None:
    assert inbox.process_many([], store.apply) == []


def test_the_table_is_plain_sql(blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store) -> None:
    before = time.time()
    message = _delivered(blocking, queue)
    inbox.process(message, store.apply)
    rows = store.execute("select queue, id, seq, result, processed_at from eoq_processed")
    ((*row, processed_at),) = rows
    assert row == [queue, "m", message.seq, b'{"paid":5}']
    assert before <= processed_at <= time.time()


@pytest.mark.slow
def test_more_than_fit_in_one_request_are_acked(
    blocking: eoq.Client, queue: str, inbox: AnyInbox, store: Store
) -> None:
    blocking.send_many(queue, [eoq.Outgoing({"amount": 1}, id=f"{n}") for n in range(1200)])
    messages = [*_receive(blocking, queue, 1000), *_receive(blocking, queue, 1000)]
    assert len(inbox.process_many(messages, store.apply)) == 1200
    assert len(store.payments()) == 1200
    assert {_state(blocking, queue, id)[0] for id in ("0", "999", "1000", "1199")} == {"done"}
