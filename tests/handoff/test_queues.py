"""In-process queues: an item brings its producer's context, and queue and item stay what they were."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import pickle
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace

import tracefill
from tests.contracts import BoundaryContract, PatchContract, tracer
from tracefill import snapshots
from tracefill.handoff import queues
from tracefill.handoff.queues import Carrying, consume, extract, inject, scope

KINDS = (queue.Queue, queue.LifoQueue, queue.PriorityQueue, queue.SimpleQueue)


def elsewhere(function: Callable[[], Any]) -> Any:
    """What the function returns, called where no context has ever been: whoever takes an item keeps its context."""
    return contextvars.Context().run(function)


def here() -> int:
    return trace.get_current_span().get_span_context().span_id


@pytest.fixture
def installed() -> Iterator[None]:
    tracefill.install(only=["queues"])
    yield
    tracefill.uninstall()


@pytest.fixture
def no_snapshot_left() -> Iterator[None]:
    gc.collect()
    before = snapshots.stats().in_use
    yield
    gc.collect()
    assert snapshots.stats().in_use == before


def serve(jobs: Any) -> None:
    for work, done in iter(jobs.get, None):
        work()
        done.set()


class Crossing(PatchContract, BoundaryContract):
    """From a request to a worker that was there before."""

    name = "queues"
    kind: Callable[[], Any]

    def owners(self) -> list[Any]:
        return [*KINDS, asyncio.Queue, asyncio.LifoQueue, asyncio.PriorityQueue, asyncio]

    @pytest.fixture(autouse=True)
    def _worker(self, _installed: None) -> Iterator[None]:
        self.jobs = type(self).kind()
        worker = threading.Thread(target=serve, args=(self.jobs,))
        worker.start()
        yield
        self.jobs.put(None)
        worker.join()

    def cross(self, work: Callable[[], Any]) -> None:
        done = threading.Event()
        self.jobs.put((work, done))
        assert done.wait(30)


class TestQueue(Crossing):
    kind = queue.Queue

    def test_uninstall_leaves_no_patched_attribute(self) -> None:
        tracefill.uninstall()
        super().test_uninstall_leaves_no_patched_attribute()

    def test_install_twice_is_install_once(self) -> None:
        tracefill.uninstall()
        super().test_install_twice_is_install_once()


class TestLifoQueue(TestQueue):
    kind = queue.LifoQueue


class TestSimpleQueue(TestQueue):
    kind = queue.SimpleQueue


# ------------------------------------------------------------------------------- with install(queues=True): all is as it was


@pytest.mark.usefixtures("installed", "no_snapshot_left")
class TestTheQueueStaysWhatItWas:
    @pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.SimpleQueue])
    def test_the_very_item_comes_out(self, kind: Any) -> None:
        items = [object(), [], {}, "text", None]
        jobs = kind()
        with tracer.start_as_current_span("near"):
            for item in items:
                jobs.put(item)
        taken = elsewhere(lambda: [jobs.get_nowait() for _ in items])
        assert all(a is b for a, b in zip(taken, reversed(items) if kind is queue.LifoQueue else items, strict=True))

    def test_what_is_stored_is_the_item(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("near"):
            jobs.put("item")
        assert list(jobs.queue) == ["item"]

    def test_priority_order_and_items_that_cannot_be_compared(self) -> None:
        jobs: queue.PriorityQueue[Any] = queue.PriorityQueue()
        for priority in (3, 1, 2):
            with tracer.start_as_current_span("near"):
                jobs.put((priority, str(priority)))
        assert elsewhere(lambda: [jobs.get() for _ in range(3)]) == [(1, "1"), (2, "2"), (3, "3")]
        jobs.put((1, {}))
        with pytest.raises(TypeError):
            jobs.put((1, {"other": 1}))

    def test_maxsize_and_timeouts(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue(1)
        with tracer.start_as_current_span("near"):
            jobs.put("first")
            with pytest.raises(queue.Full):
                jobs.put_nowait("second")
            with pytest.raises(queue.Full):
                jobs.put("second", timeout=0.001)
        assert jobs.full()
        assert jobs.qsize() == 1
        assert elsewhere(jobs.get) == "first"
        with pytest.raises(queue.Empty):
            jobs.get(timeout=0.001)
        assert jobs.empty()

    def test_task_done_and_join(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("near"):
            jobs.put("item")
        elsewhere(jobs.get)
        assert jobs.unfinished_tasks == 1
        jobs.task_done()
        jobs.join()
        with pytest.raises(ValueError, match="too many times"):
            jobs.task_done()

    def test_items_that_are_never_taken(self) -> None:
        for kind in (queue.Queue, queue.SimpleQueue):
            with tracer.start_as_current_span("near"):
                kind().put("never taken")

    def test_storage_that_somebody_empties_behind_its_back(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("first"):
            jobs.put("job")
        jobs.queue.clear()
        with tracer.start_as_current_span("second"):
            jobs.put("job")
            second = here()
        assert elsewhere(lambda: (jobs.get(), here())[1]) == second

    def test_an_item_that_cannot_be_stored_leaves_nothing(self) -> None:
        class Refusing(queue.Queue[Any]):
            def _put(self, item: Any) -> None:
                raise ValueError("refused")

        jobs = Refusing()
        with tracer.start_as_current_span("near"), pytest.raises(ValueError, match="refused"):
            jobs.put("item")

    def test_what_waited_before_install_belongs_to_nobody(self) -> None:
        tracefill.uninstall()
        jobs: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("near"):
            jobs.put("early")
        tracefill.install(only=["queues"])
        assert elsewhere(lambda: (jobs.get(), here())) == ("early", 0)

    def test_what_waits_after_uninstall_is_still_there(self) -> None:
        jobs: queue.PriorityQueue[Any] = queue.PriorityQueue()
        with tracer.start_as_current_span("near"):
            jobs.put(2)
            jobs.put(1)
        tracefill.uninstall()
        assert elsewhere(lambda: (jobs.get(), jobs.get(), here())) == (1, 2, 0)
        jobs.put(3)

    def test_scope_of_an_item(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("near"):
            jobs.put("item")
            near = here()
        taken: list[Any] = []

        def work() -> None:
            item = jobs.get()
            with tracer.start_as_current_span("poll"), scope(item) as same:
                taken.extend((same, here()))

        elsewhere(work)
        assert taken == ["item", near]

    def test_a_taker_with_a_span_of_his_own_keeps_it(self) -> None:
        replies: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("far"):
            replies.put("reply")
        with tracer.start_as_current_span("near"):
            before = here()
            replies.get()
            assert here() == before
        assert here() == 0


@pytest.mark.usefixtures("installed", "no_snapshot_left")
def test_asyncio_queues_keep_item_order_and_size() -> None:
    async def program() -> None:
        jobs: asyncio.PriorityQueue[Any] = asyncio.PriorityQueue(2)
        item = (1, object())
        with tracer.start_as_current_span("near"):
            near = here()
            await jobs.put((2, ""))
            jobs.put_nowait(item)
            with pytest.raises(asyncio.QueueFull):
                jobs.put_nowait(item)

        async def worker() -> None:
            assert await jobs.get() is item
            assert here() == near
            jobs.task_done()
            await jobs.get()
            jobs.task_done()
            assert here() == near

        await asyncio.create_task(worker())
        await jobs.join()
        assert here() == 0

    elsewhere(lambda: asyncio.run(program()))


# --------------------------------------------------------------------------------------------------- explicit, nothing patched


@pytest.mark.usefixtures("no_snapshot_left")
class TestExplicit:
    def test_each_item_is_handled_in_its_own_context(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        near = {}
        for name in ("first", "second"):
            with tracer.start_as_current_span(name):
                near[name] = here()
                jobs.put(inject(name))
        jobs.put(inject("outside"))
        jobs.put(None)
        with tracer.start_as_current_span("worker"):
            worker = here()
            for item in consume(jobs):
                assert here() == near.get(item, 0)
            assert here() == worker
        assert here() == 0

    def test_a_loop_that_is_left_half_way(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("near"):
            jobs.put(inject("item"))
        taken = consume(jobs)
        for _ in taken:
            break
        taken.close()
        assert here() == 0

    def test_a_loop_whose_body_fails(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        with tracer.start_as_current_span("near"):
            jobs.put(inject("item"))
        with pytest.raises(ValueError, match="of the body"):
            self.fail_in(consume(jobs))
        gc.collect()
        assert here() == 0

    @staticmethod
    def fail_in(items: Any) -> None:
        for _ in items:
            raise ValueError("of the body")

    def test_an_end_of_ones_own(self) -> None:
        jobs: queue.Queue[Any] = queue.Queue()
        for item in (1, None, "end", 2):
            jobs.put(item)
        assert list(consume(jobs, until="end")) == [1, None]

    def test_the_scope_closes_when_the_work_fails(self) -> None:
        with tracer.start_as_current_span("near"):
            item = inject("item")
        with pytest.raises(ValueError, match="of the work"), scope(item):
            raise ValueError("of the work")
        assert here() == 0

    def test_async_for(self) -> None:
        async def program() -> list[Any]:
            jobs: asyncio.Queue[Any] = asyncio.Queue()
            with tracer.start_as_current_span("near"):
                near = here()
                jobs.put_nowait(inject("item"))
            jobs.put_nowait(None)
            seen = [(item, here()) async for item in consume(jobs)]
            return [seen == [("item", near)], here()]

        assert asyncio.run(program()) == [True, 0]

    def test_it_sorts_and_compares_as_the_item(self) -> None:
        assert sorted([inject(3), inject(1), inject(2)]) == [inject(1), inject(2), inject(3)]
        assert inject(1) != inject(2)
        assert inject(1) != 1
        assert len({inject(1), inject(1)}) == 1

    def test_it_pickles(self) -> None:
        with tracer.start_as_current_span("near"):
            near = here()
            text = pickle.dumps(inject("item"))
        back = pickle.loads(text)
        assert isinstance(back, Carrying)
        with scope(back) as item:
            assert (item, here()) == ("item", near)

    def test_nothing_came_with_a_plain_item(self) -> None:
        assert extract("item") == {}
        with scope("item") as item:
            assert item == "item"


def test_explicit_and_patched_go_together(installed: None, no_snapshot_left: None) -> None:
    jobs: queue.Queue[Any] = queue.Queue()
    with tracer.start_as_current_span("near"):
        near = here()
        jobs.put(queues.inject("item"))
    jobs.put(None)
    assert elsewhere(lambda: [(item, here()) for item in consume(jobs)]) == [("item", near)]
