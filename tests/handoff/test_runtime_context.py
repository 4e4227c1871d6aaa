"""OTEL_PYTHON_CONTEXT=tracefill: a token may come back from anywhere, and what a generator attaches is the generator's own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

import tracefill
from tests.contracts import ancestors, finished
from tracefill._codec import make_current
from tracefill.context import RuntimeContext, scope

tracer = trace.get_tracer("tests")


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel_context, "_RUNTIME_CONTEXT", RuntimeContext())


def named(name: str) -> Context:
    return Context({"name": name})


def name() -> Any:
    """The name of the current context; None: there is none."""
    return get_current().get("name")


def in_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def holding(what: str, steps: int = 2) -> Iterator[Any]:
    """A generator that holds a context open, and yields the one that it sees itself."""
    token = attach(named(what))
    try:
        for _ in range(steps):
            yield name()
    finally:
        detach(token)


class TestAttachAndDetach:
    def test_a_context_is_current_until_its_token_is_given_back(self) -> None:
        assert get_current() == {}
        outer = attach(named("outer"))
        inner = attach(named("inner"))
        assert name() == "inner"
        detach(inner)
        assert name() == "outer"
        detach(outer)
        assert get_current() == {}

    def test_each_thread_has_its_own(self) -> None:
        token = attach(named("here"))
        assert in_thread(name) is None
        detach(token)

    def test_what_was_attached_in_between_goes_with_the_outer_one(self, no_log: Any) -> None:
        outer = attach(named("outer"))
        left = attach(named("left"))
        detach(outer)
        assert get_current() == {}
        detach(left)
        assert get_current() == {}

    def test_a_scope_ends_as_it_began_whatever_the_user_left_attached(self) -> None:
        with scope(named("ours")):
            kept = [attach(named("user's")), attach(named("user's"))]
        assert get_current() == {}
        assert len(kept) == 2

    def test_a_token_given_back_twice_changes_nothing(self, no_log: Any) -> None:
        token = attach(named("once"))
        detach(token)
        again = attach(named("again"))
        detach(token)
        assert name() == "again"
        detach(again)

    def test_a_token_given_back_in_another_thread_restores_the_context_where_it_was_attached(self, no_log: Any) -> None:
        outer = attach(named("outer"))
        token = attach(named("inner"))
        in_thread(lambda: detach(token))
        assert name() == "outer"
        detach(outer)
        assert get_current() == {}

    def test_a_token_given_back_in_another_thread_leaves_that_thread_alone(self) -> None:
        token = attach(named("first"))

        def elsewhere() -> Any:
            own = attach(named("own"))
            detach(token)
            seen = name()
            detach(own)
            return seen

        assert in_thread(elsewhere) == "own"

    def test_what_is_no_token_is_refused(self) -> None:
        with pytest.raises(TypeError, match="expected what attach"):
            RuntimeContext().detach(None)

    def test_a_copy_of_the_variables_keeps_what_it_copied(self) -> None:
        token = attach(named("copied"))
        copy = contextvars.copy_context()
        detach(token)
        assert copy.run(name) == "copied"
        assert get_current() == {}

    async def test_a_task_keeps_the_context_it_was_started_in_after_its_end(self) -> None:
        ended = asyncio.Event()

        async def later() -> Any:
            await ended.wait()
            inner = attach(named("inner"))
            detach(inner)
            return name()

        token = attach(named("started in"))
        task = asyncio.create_task(later())
        detach(token)
        ended.set()
        assert await task == "started in"

    async def test_a_task_of_a_task_keeps_it_too_when_its_variables_live_where_the_first_ones_did(self) -> None:
        async def grandchild() -> Any:
            return name()

        async def child() -> list[Any]:
            await asyncio.sleep(0.01)  # the first task has ended, and its variables are free to be used again
            return await asyncio.gather(*[grandchild() for _ in range(50)])

        async def first() -> asyncio.Task[list[Any]]:
            token = attach(named("first"))
            task = asyncio.create_task(child())
            detach(token)
            return task

        assert await (await asyncio.create_task(first())) == ["first"] * 50

    async def test_a_token_given_back_in_another_task_restores_the_context_where_it_was_attached(
        self, no_log: Any
    ) -> None:
        token = attach(named("inner"))

        async def elsewhere() -> Any:
            detach(token)
            return name()

        assert await asyncio.create_task(elsewhere()) is None
        assert get_current() == {}


class TestMemory:
    def test_contexts_that_are_attached_and_never_detached_do_not_pile_up(self) -> None:
        kept = []
        for i in range(100):
            context = named(str(i))
            attach(context)
            kept.append(weakref.ref(context))
        del context
        gc.collect()
        assert sum(ref() is not None for ref in kept) <= 2

    async def test_tasks_that_start_one_another_do_not_keep_their_ancestors(self) -> None:
        kept: list[Any] = []

        async def hop(left: int) -> None:
            context = named(str(left))
            kept.append(weakref.ref(context))
            token = attach(context)
            following = asyncio.create_task(hop(left - 1)) if left else None
            detach(token)
            del context, token
            if following is not None:
                following.add_done_callback(lambda _: None)
                tasks.append(following)

        tasks = [asyncio.create_task(hop(50))]
        while tasks:
            await tasks.pop()
        gc.collect()
        assert sum(ref() is not None for ref in kept) <= 2

    def test_generators_that_give_nothing_back_are_forgotten(self) -> None:
        def careless() -> Iterator[None]:
            attach(named("careless"))
            yield

        def many(times: int) -> None:
            for _ in range(times):
                next(careless())

        many(1000)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            many(5000)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 200_000
        finally:
            tracemalloc.stop()
        assert get_current() == {}


class TestGenerators:
    def test_the_consumer_never_sees_it_and_the_generator_always_does(self) -> None:
        seen = []
        for inside in holding("generator"):
            seen.append((inside, name()))
        assert seen == [("generator", None)] * 2
        assert get_current() == {}

    def test_the_consumer_keeps_his_own(self) -> None:
        token = attach(named("consumer"))
        assert [(inside, name()) for inside in holding("generator")] == [("generator", "consumer")] * 2
        assert name() == "consumer"
        detach(token)

    def test_what_the_consumer_attaches_around_a_step_is_not_seen_inside(self) -> None:
        generator = holding("generator", 3)
        next(generator)
        token = attach(named("consumer"))
        assert next(generator) == "generator"
        assert name() == "consumer"
        detach(token)
        assert next(generator) == "generator"
        generator.close()
        assert get_current() == {}

    def test_what_the_consumer_had_attached_may_end_before_the_generator(self) -> None:
        token = attach(named("consumer"))
        generator = holding("generator", 3)
        next(generator)
        detach(token)
        assert get_current() == {}
        assert next(generator) == "generator"
        generator.close()
        assert get_current() == {}

    def test_two_generators_in_turns(self) -> None:
        assert list(zip(holding("a"), holding("b"), strict=True)) == [("a", "b")] * 2
        assert get_current() == {}

    def test_one_generator_inside_another(self) -> None:
        def outer() -> Iterator[Any]:
            token = attach(named("outer"))
            for inside in holding("inner"):
                yield inside, name()
            detach(token)

        assert [(*inside, name()) for inside in outer()] == [("inner", "outer", None)] * 2

    def test_a_generator_that_is_delegated_to(self) -> None:
        def outer() -> Iterator[Any]:
            yield from holding("inner")
            yield name()

        assert list(outer()) == ["inner", "inner", None]

    def test_functions_that_the_generator_calls_see_it(self) -> None:
        def generator() -> Iterator[Any]:
            with tracefill.context.scope(named("generator")):
                yield (lambda: name())()
                with scope(named("deeper")):
                    yield name()
                yield name()

        assert [(inside, name()) for inside in generator()] == [
            ("generator", None),
            ("deeper", None),
            ("generator", None),
        ]

    def test_what_a_function_leaves_attached_for_the_generator_stays_with_it(self) -> None:
        def helper() -> None:
            attach(named("helper"))

        def generator() -> Iterator[Any]:
            token = attach(named("generator"))
            helper()
            yield name()
            detach(token)

        assert [(inside, name()) for inside in generator()] == [("helper", None)]
        assert get_current() == {}

    def test_a_span_held_open_across_yields(self, spans: Any) -> None:
        def generator() -> Iterator[int]:
            with tracer.start_as_current_span("generator"):
                for i in range(2):
                    with tracer.start_as_current_span("step"):
                        pass
                    yield i

        with tracer.start_as_current_span("near") as near:
            for _ in generator():
                assert trace.get_current_span() is near
                tracer.start_span("body").end()
        by_name: dict[str, list[Any]] = {}
        for span in spans.get_finished_spans():
            by_name.setdefault(span.name, []).append(ancestors(spans, span))
        assert by_name["step"] == [["generator", "near"]] * 2
        assert by_name["body"] == [["near"]] * 2

    @pytest.mark.parametrize("how", ["attach", "scope", "class", "exit stack", "snapshot", "use_span"])
    def test_whichever_way_it_attaches(self, how: str) -> None:
        class Manager:
            def __enter__(self) -> None:
                self.token = attach(named("generator"))

            def __exit__(self, *_: object) -> None:
                detach(self.token)

        def generator() -> Iterator[Any]:
            with contextlib.ExitStack() as stack:
                if how == "attach":
                    stack.callback(detach, attach(named("generator")))
                elif how == "scope":
                    stack.enter_context(scope(named("generator")))
                elif how == "snapshot":
                    with tracefill.snapshot(named("generator")) as snapshot:
                        stack.callback(detach, snapshot.attach())
                elif how == "use_span":
                    stack.callback(detach, attach(named("generator")))
                    stack.enter_context(trace.use_span(trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)))
                elif how == "class":
                    with Manager():
                        yield name()
                    return
                else:
                    stack.enter_context(Manager())
                yield name()

        assert [(inside, name()) for inside in generator()] == [("generator", None)]
        assert get_current() == {}

    def test_a_generator_behind_contextlib_is_meant_for_whoever_enters_it(self) -> None:
        @contextlib.contextmanager
        def manager() -> Iterator[None]:
            with scope(named("manager")):
                yield

        with manager():
            assert name() == "manager"
        with contextlib.ExitStack() as stack:
            stack.enter_context(manager())
            assert name() == "manager"
        assert get_current() == {}

        @manager()
        def decorated() -> Any:
            return name()

        assert decorated() == "manager"

    def test_a_context_manager_inside_a_generator_is_the_generators(self) -> None:
        @contextlib.contextmanager
        def manager() -> Iterator[None]:
            with tracer.start_as_current_span("manager"), scope(named("manager")):
                yield

        def generator() -> Iterator[Any]:
            with manager():
                yield name()

        assert [(inside, name()) for inside in generator()] == [("manager", None)]

    def test_left_half_way_and_collected(self, spans: Any, no_log: Any) -> None:
        def generator() -> Iterator[None]:
            with tracer.start_as_current_span("generator"):
                try:
                    yield
                finally:
                    tracer.start_span("cleanup").end()

        with tracer.start_as_current_span("near") as near:
            for _ in generator():
                break
            assert trace.get_current_span() is near
        assert ancestors(spans, finished(spans, "cleanup")) == ["generator", "near"]
        assert get_current() == {}

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="there a frame holds its locals, and we the frame")
    def test_closed_by_the_garbage_collector(self, spans: Any, no_log: Any) -> None:
        def generator(itself: list[Any]) -> Iterator[None]:
            with tracer.start_as_current_span("generator"):
                try:
                    yield
                finally:
                    tracer.start_span("cleanup").end()

        cycle: list[Any] = []
        cycle.append(generator(cycle))
        next(cycle[0])
        del cycle
        with tracer.start_as_current_span("near") as near:
            gc.collect()
            assert trace.get_current_span() is near
        assert ancestors(spans, finished(spans, "cleanup")) == ["generator"]

    def test_closed_in_another_thread(self, spans: Any, no_log: Any) -> None:
        def generator() -> Iterator[None]:
            with tracer.start_as_current_span("generator"):
                try:
                    yield
                finally:
                    tracer.start_span("cleanup").end()

        running = generator()
        next(running)
        assert get_current() == {}
        in_thread(running.close)
        assert get_current() == {}
        assert ancestors(spans, finished(spans, "cleanup")) == ["generator"]

    def test_resumed_in_another_thread(self) -> None:
        generator = holding("generator", 3)
        assert next(generator) == "generator"

        def elsewhere() -> list[Any]:
            token = attach(named("elsewhere"))
            seen = [name(), next(generator), name()]
            detach(token)
            return [*seen, name()]

        assert in_thread(elsewhere) == ["elsewhere", "generator", "elsewhere", None]
        assert next(generator) == "generator"
        generator.close()
        assert get_current() == {}

    def test_each_step_in_a_new_copy_of_the_variables(self, no_log: Any) -> None:
        """What Starlette does with a generator that is no async one."""
        generator = holding("generator", 3)
        token = attach(named("consumer"))
        for _ in range(3):
            assert contextvars.copy_context().run(next, generator) == "generator"
            assert name() == "consumer"
        assert contextvars.copy_context().run(next, generator, "end") == "end"
        assert name() == "consumer"
        detach(token)
        assert get_current() == {}

    def test_work_started_inside_keeps_it(self) -> None:
        copies = []

        def generator() -> Iterator[Any]:
            with scope(named("generator")):
                copies.append(contextvars.copy_context())
                yield tracefill.bind(name)

        running = generator()
        bound = next(running)
        assert in_thread(bound) == "generator"
        assert copies[0].run(name) == "generator"
        running.close()
        assert bound() == "generator"
        assert copies[0].run(name) == "generator"

    def test_a_generator_that_ended_without_giving_back_is_not_seen_by_another_at_its_address(self) -> None:
        def careless() -> Iterator[Any]:
            before = name()
            attach(named("careless"))
            yield before

        for _ in range(10):
            generator = careless()
            assert next(generator) is None
            del generator
            assert name() is None

    def test_a_greenlet_that_shares_the_variables_sees_it(self) -> None:
        greenlet = pytest.importorskip("greenlet")

        def generator() -> Iterator[Any]:
            with scope(named("generator")):
                child = greenlet.greenlet(name)
                child.gr_context = greenlet.getcurrent().gr_context
                yield child.switch()

        def run() -> Any:
            token = attach(named("outer"))  # so that there are variables to share
            try:
                return list(generator())
            finally:
                detach(token)

        assert run() == ["generator"]


class TestAsyncGenerators:
    async def test_the_consumer_never_sees_it_and_the_generator_always_does(self) -> None:
        async def generator() -> AsyncIterator[Any]:
            with scope(named("generator")):
                for _ in range(2):
                    await asyncio.sleep(0)
                    yield name()

        token = attach(named("consumer"))
        seen = []
        async for inside in generator():
            await asyncio.sleep(0)
            seen.append((inside, name()))
        assert seen == [("generator", "consumer")] * 2
        detach(token)

    async def test_what_it_awaits_sees_it(self) -> None:
        async def work() -> Any:
            await asyncio.sleep(0)
            return name()

        async def generator() -> AsyncIterator[Any]:
            with scope(named("generator")):
                yield await work()
                yield await asyncio.create_task(work())
                yield await asyncio.to_thread(name)

        assert [(inside, name()) async for inside in generator()] == [("generator", None)] * 3

    async def test_behind_asynccontextmanager_it_is_meant_for_whoever_enters_it(self) -> None:
        @contextlib.asynccontextmanager
        async def manager() -> AsyncIterator[None]:
            with scope(named("manager")):
                await asyncio.sleep(0)
                yield

        async with manager():
            await asyncio.sleep(0)
            assert name() == "manager"
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(manager())
            assert name() == "manager"
        assert get_current() == {}

    async def test_closed_from_another_task(self, spans: Any, no_log: Any) -> None:
        async def generator() -> AsyncIterator[None]:
            with tracer.start_as_current_span("generator"):
                try:
                    yield
                finally:
                    await asyncio.sleep(0)
                    tracer.start_span("cleanup").end()

        with tracer.start_as_current_span("near") as near:
            running = generator()
            await anext(running)
            assert trace.get_current_span() is near
            await asyncio.create_task(running.aclose())  # type: ignore[attr-defined]
            assert trace.get_current_span() is near
        assert ancestors(spans, finished(spans, "cleanup")) == ["generator", "near"]
        assert get_current() == {}

    async def test_left_half_way_and_collected(self, spans: Any, no_log: Any) -> None:
        async def generator() -> AsyncIterator[None]:
            with tracer.start_as_current_span("generator"):
                try:
                    yield
                finally:
                    tracer.start_span("cleanup").end()

        async for _ in generator():
            break
        gc.collect()
        await asyncio.sleep(0.01)
        assert get_current() == {}
        assert ancestors(spans, finished(spans, "cleanup")) == ["generator"]

    async def test_many_at_once_in_one_task(self) -> None:
        async def generator(what: str) -> AsyncIterator[Any]:
            with scope(named(what)):
                for _ in range(3):
                    await asyncio.sleep(0)
                    yield name()

        running = [generator(str(i)) for i in range(20)]
        for _ in range(3):
            assert [await anext(one) for one in running] == [str(i) for i in range(20)]
            assert get_current() == {}
        for one in reversed(running):
            await one.aclose()  # type: ignore[attr-defined]
        assert get_current() == {}


def test_many_threads_resume_the_same_generators() -> None:
    generators = [holding(str(i), 10_000) for i in range(4)]
    locks = [threading.Lock() for _ in generators]
    wrong: list[Any] = []

    def work() -> None:
        for i in range(2000):
            which = i % 4
            with scope(named("mine")), locks[which]:
                seen = next(generators[which])
                if seen != str(which) or name() != "mine":
                    wrong.append((seen, which, name()))
        if name() is not None:
            wrong.append(name())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert get_current() == {}


def test_opentelemetry_loads_it_by_its_name() -> None:
    program = (
        "from opentelemetry import context; import tracefill.context as ours;"
        "print(type(context._RUNTIME_CONTEXT) is ours.RuntimeContext)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OTEL_PYTHON_CONTEXT": "tracefill"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


class Held:
    """Something that a context holds, and that can be asked whether it is alive."""


class TestCurrentForGood:
    def test_nothing_of_what_was_current_before_stays_alive(self) -> None:
        held = Held()
        alive = weakref.ref(held)
        make_current(Context({"held": held}))
        del held
        make_current(named("next"))
        assert name() == "next"
        assert alive() is None

    def test_who_has_copied_the_variables_keeps_what_he_has(self) -> None:
        make_current(named("first"))
        copied = contextvars.copy_context()
        make_current(named("second"))
        assert (copied.run(name), name()) == ("first", "second")

    def test_a_token_from_before_puts_back_what_was_current_then(self) -> None:
        with scope(named("outermost")):
            token = attach(named("outer"))
            make_current(named("one"))
            make_current(named("two"))
            detach(token)
            assert name() == "outermost"

    def test_so_it_is_with_the_stock_runtime_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(otel_context, "_RUNTIME_CONTEXT", ContextVarsRuntimeContext())
        self.test_nothing_of_what_was_current_before_stays_alive()
        self.test_who_has_copied_the_variables_keeps_what_he_has()
