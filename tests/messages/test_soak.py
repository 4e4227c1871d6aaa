"""The short forms of the soaks: tests/messages/soak.py, soak_rabbitmq.py."""

from __future__ import annotations

from typing import Any

from tests.messages import soak_rabbitmq
from tests.messages.soak import complaints, soak

MESSAGES = 2_000


def test_nothing_is_lost_and_every_chain_is_whole(kafka: Any) -> None:
    if not kafka.ours:
        kafka.restart()  # which says that it can not
    without, with_ = (soak(kafka, MESSAGES, plain=plain, quiet=True) for plain in (True, False))
    assert complaints(without, with_) == []
    assert with_["restarted"]
    assert with_["joins"] > 3
    # Each as often as it was handled, those that came again included.
    assert with_["whole"] >= MESSAGES * 9 // 10
    assert with_["whole"] + with_["roots"] == MESSAGES + with_["again"]


def test_nothing_of_rabbitmq_is_lost_and_every_chain_is_whole(rabbitmq: Any) -> None:
    if not rabbitmq.ours:
        rabbitmq.restart()  # which says that it can not
    without, with_ = (soak_rabbitmq.soak(rabbitmq, MESSAGES, plain=plain, quiet=True) for plain in (True, False))
    assert complaints(without, with_) == []
    assert with_["dropped"] == soak_rabbitmq.DROPS
    assert with_["joins"] > 3
    assert with_["whole"] >= MESSAGES * 9 // 10
    assert with_["whole"] + with_["roots"] == MESSAGES + with_["again"]
