"""Weights: what is much work for the store weighs much, so that others need not wait for many of them."""

from __future__ import annotations

from typing import Final

from eoq.daemon.config.settings import QueueSettings, defaults
from eoq.daemon.records import DeliveryRef, NewMessage
from eoq.daemon.store.commands import Put, RejectDelivery, RetryDeliveries
from eoq.daemon.store.weights import weight_of

NOW: Final = 1000.0
MEBIBYTE: Final = 1024 * 1024


def test_a_message_that_comes_back_weighs_as_much_as_its_body() -> None:
    small, large = DeliveryRef(1, 1, "q"), DeliveryRef(2, 1, "q", size=MEBIBYTE)
    assert weight_of(RetryDeliveries(NOW, [small], defaults)) < 100
    assert weight_of(RetryDeliveries(NOW, [small, large], defaults)) > 1000
    assert weight_of(RejectDelivery(NOW, large, None)) > 1000


def test_a_message_of_a_group_that_comes_back_weighs_more() -> None:
    alone, grouped = DeliveryRef(1, 1, "q"), DeliveryRef(1, 1, "q", "group")
    assert weight_of(RejectDelivery(NOW, grouped, None)) > weight_of(RejectDelivery(NOW, alone, None)) > 1


def test_a_send_to_a_queue_with_a_limit_weighs_more() -> None:
    messages = [NewMessage("q", f"{number}", b"x", b"digest") for number in range(10)]
    plain = weight_of(Put(NOW, messages, defaults))
    assert weight_of(Put(NOW, messages, lambda _: QueueSettings(max_depth=5))) > 5 * plain
    assert weight_of(Put(NOW, [], defaults)) == 0, "a topic that nobody listens to"
