"""bind(): generators whose context is their own, with OpenTelemetry's stock runtime context."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace

from tests.contracts import ancestors, finished, tracer
from tracefill.handoff import generators


def name() -> str:
    return str(getattr(trace.get_current_span(), "name", ""))


def in_thread(function: Callable[[], Any]) -> Any:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def rows(count: int = 3) -> Iterator[str]:
    """Each time the span that is current for the generator itself."""
    with tracer.start_as_current_span("rows"):
        for _ in range(count):
            yield name()


async def async_rows(count: int = 3) -> AsyncIterator[str]:
    with tracer.start_as_current_span("rows"):
        for _ in range(count):
            await asyncio.sleep(0)
            yield name()


@pytest.fixture(autouse=True)
def _nothing_left(no_log: Any) -> Iterator[None]:
    yield
    gc.collect()
    assert name() == ""


def test_the_consumer_never_sees_it_and_the_generator_always_does() -> None:
    with tracer.start_as_current_span("near"):
        assert [(own, name()) for own in generators.bind(rows())] == [("rows", "near")] * 3


def test_it_belongs_to_where_it_was_made(spans: Any) -> None:
    with tracer.start_as_current_span("maker"):
        made = generators.bind(rows())
    with tracer.start_as_current_span("consumer"):
        list(made)
    assert ancestors(spans, finished(spans, "rows")) == ["maker"]


def test_a_generator_function() -> None:
    @generators.bind
    def bound(count: int) -> Iterator[str]:
        """Its own words."""
        yield from rows(count)

    assert (bound.__name__, bound.__doc__) == ("bound", "Its own words.")
    with tracer.start_as_current_span("near"):
        assert [(own, name()) for own in bound(2)] == [("rows", "near")] * 2


@pytest.mark.parametrize("close", ["close", "drop", "close in a thread", "throw"])
def test_left_half_way(spans: Any, close: str) -> None:
    with tracer.start_as_current_span("near"):
        made: Any = generators.bind(rows())
        next(made)
        if close == "close":
            made.close()
        elif close == "close in a thread":
            in_thread(made.close)
        elif close == "throw":
            with pytest.raises(KeyError):
                made.throw(KeyError())
        del made
        gc.collect()
        assert name() == "near"
    assert ancestors(spans, finished(spans, "rows")) == ["near"]


def test_each_step_in_another_thread() -> None:
    made = generators.bind(rows())
    assert [in_thread(made.__next__) for _ in range(3)] == ["rows"] * 3
    assert in_thread(lambda: (list(made), name())) == ([], "")


def test_send_and_what_it_raises() -> None:
    def echo() -> Any:
        got = None
        with tracer.start_as_current_span("echo"):
            while got != "stop":
                got = yield got, name()
            raise ValueError("of the generator")

    made = generators.bind(echo())
    next(made)
    assert made.send(1) == (1, "echo")
    with pytest.raises(ValueError, match="of the generator"):
        made.send("stop")
    with pytest.raises(StopIteration):
        next(made)


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(TypeError, match="list"):
        generators.bind([1])  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------------------------------ async


def run(program: Callable[[], Any]) -> Any:
    return asyncio.run(program())


def test_async_for() -> None:
    async def program() -> None:
        with tracer.start_as_current_span("near"):
            assert [(own, name()) async for own in generators.bind(async_rows())] == [("rows", "near")] * 3

    run(program)


def test_an_async_generator_function() -> None:
    bound = generators.bind(async_rows)

    async def program() -> None:
        assert [(own, name()) async for own in bound(2)] == [("rows", "")] * 2

    assert not inspect.isasyncgen(bound)
    run(program)


def test_closed_by_another_task(spans: Any) -> None:
    async def program() -> None:
        with tracer.start_as_current_span("near"):
            made = generators.bind(async_rows())
            await made.__anext__()
            await asyncio.create_task(made.aclose())
            assert name() == "near"

    run(program)
    assert ancestors(spans, finished(spans, "rows")) == ["near"]


def test_each_step_by_another_task() -> None:
    async def program() -> None:
        made = generators.bind(async_rows())

        async def step() -> str:
            return str(await made.__anext__())

        assert [await asyncio.create_task(step()) for _ in range(3)] == ["rows"] * 3
        with pytest.raises(StopAsyncIteration):
            await asyncio.create_task(step())

    run(program)


def test_left_half_way_and_closed_by_the_event_loop(spans: Any) -> None:
    async def program() -> None:
        with tracer.start_as_current_span("near"):
            async for _ in generators.bind(async_rows()):
                break
            gc.collect()
            await asyncio.sleep(0.01)
            assert name() == "near"

    run(program)
    assert ancestors(spans, finished(spans, "rows")) == ["near"]


def test_thrown_into_and_cancelled(spans: Any) -> None:
    async def program() -> None:
        made = generators.bind(async_rows())
        await made.__anext__()
        with pytest.raises(KeyError):
            await made.athrow(KeyError())

        async def consume() -> None:
            async for _ in generators.bind(slow()):
                await asyncio.sleep(60)

        async def slow() -> AsyncIterator[int]:
            with tracer.start_as_current_span("slow"):
                yield 1
                await asyncio.sleep(60)

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(program)
    gc.collect()
    assert finished(spans, "rows").parent is None
    assert finished(spans, "slow").parent is None


def test_without_it_the_stock_context_leaks_or_complains(no_log: Any) -> None:
    """What all this is for: should it come to pass that this fails, bind() is needed no more."""

    def program() -> str:
        made: Any = rows()
        next(made)
        seen = name()
        in_thread(made.close)
        return seen

    assert in_thread(program) == "rows"
    assert any("detach" in record.getMessage() for record in no_log.records)
    no_log.clear()
