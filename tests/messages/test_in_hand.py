"""What a function has in hand: stopped at a `yield`, it shows which of its variables count there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tracefill.messages.in_hand import collects, values_in_hand


def work(records: list[str], buffer: list[str], given: str) -> Iterator[str]:
    for record in records:  # noqa: B007
        try:
            yield "in the loop"
        except ValueError:
            yield "in its except"
            continue
        yield "further down"
    yield "after the loop"
    while buffer:
        taken = buffer.pop()
        if taken == "skip":
            continue
        yield "in the while"
    yield "after the while"
    for _number, (_topic, pair) in enumerate([("orders", "pair")]):
        yield f"unpacked {pair}"
    yield "in the end"


def in_hand(generator: Any) -> set[str]:
    return {value for value in values_in_hand(generator.gi_frame) if isinstance(value, str)}


def test_variable_of_a_loop_is_in_hand_until_the_loop_is_over() -> None:
    generator = work(["record"], ["taken", "skip"], "given")
    seen = {place: in_hand(generator) for place in generator}
    assert seen == {
        "in the loop": {"record", "given"},
        "further down": {"record", "given"},
        "after the loop": {"given"},
        "in the while": {"taken", "given"},
        "after the while": {"given"},
        "unpacked pair": {"orders", "pair", "given"},
        "in the end": {"given"},
    }


def test_variable_of_a_loop_is_in_hand_in_its_except() -> None:
    generator: Any = work(["record"], [], "given")
    next(generator)
    assert generator.throw(ValueError()) == "in its except"
    assert in_hand(generator) == {"record", "given"}


def test_innermost_comes_first() -> None:
    def nested(given: str) -> Iterator[str]:
        for outer in ["outer"]:  # noqa: B007
            for inner in ["inner"]:  # noqa: B007
                yield "here"

    generator: Any = nested("given")
    next(generator)
    assert list(values_in_hand(generator.gi_frame)) == ["inner", "outer", "given"]


class Asked:
    """An iterable that notes whether a comprehension asks for its items."""

    def __init__(self) -> None:
        self.answers: list[bool] = []

    def __iter__(self) -> Asked:
        return self

    def __next__(self) -> Any:
        frame = sys._getframe(1)
        self.answers.append(collects(frame.f_code, frame.f_lasti))
        if len(self.answers) % 2 == 0:
            raise StopIteration
        return 1


def loop(asked: Asked) -> None:
    for _ in asked:
        [one for one in (1,)]


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda asked: [one for one in asked], True),
        (lambda asked: {one: 1 for one in asked}, True),
        (lambda asked: [one for _ in (1,) for one in asked], True),
        (loop, False),
        (list, False),
    ],
    ids=["list", "dict", "nested", "loop with a comprehension inside", "list()"],
)
def test_comprehension_collects_and_a_loop_handles(ask: Any, answer: bool) -> None:
    asked = Asked()
    ask(asked)
    assert set(asked.answers) == {answer}
