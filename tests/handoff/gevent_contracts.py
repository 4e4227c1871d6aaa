"""What gevent's integrations owe: run by test_gevent.py, in an interpreter of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import gevent.event
import gevent.hub
import gevent.pool
import gevent.queue
import gevent.threadpool
import pytest

import tracefill
from tests.contracts import BoundaryContract, PatchContract, tracer
from tracefill import snapshots


class Gevent(BoundaryContract):
    name = "gevent"


class TestSpawn(Gevent):
    def cross(self, work: Callable[[], Any]) -> None:
        gevent.spawn(work).get()


class TestSpawnLater(Gevent):
    def cross(self, work: Callable[[], Any]) -> None:
        gevent.spawn_later(0.001, work).get()


class TestSpawnRaw(Gevent):
    def cross(self, work: Callable[[], Any]) -> None:
        done = gevent.event.Event()
        gevent.spawn_raw(lambda: (work(), done.set()))
        done.wait()


class TestPool(Gevent):
    def cross(self, work: Callable[[], Any]) -> None:
        gevent.pool.Pool(1).map(lambda _: work(), [1])


class TestThreadPool(Gevent):
    def cross(self, work: Callable[[], Any]) -> None:
        gevent.get_hub().threadpool.spawn(work).get()


class TestLink(Gevent):
    def cross(self, work: Callable[[], Any]) -> None:
        done = gevent.event.Event()
        gevent.spawn(int).link(lambda _: (work(), done.set()))
        done.wait()


class TestQueue(BoundaryContract):
    name = "gevent_queues"

    def cross(self, work: Callable[[], Any]) -> None:
        jobs: Any = gevent.queue.Queue()
        worker = gevent.spawn(lambda: jobs.get()())
        gevent.sleep(0)
        jobs.put(work)
        worker.get()


class TestPatch(PatchContract):
    name = "gevent"

    def owners(self) -> list[Any]:
        return [gevent, gevent.hub, gevent.Greenlet, gevent.threadpool.ThreadPool]


class TestPatchOfQueues(PatchContract):
    name = "gevent_queues"

    def owners(self) -> list[Any]:
        return [gevent.queue.SimpleQueue, gevent.queue.Channel, gevent.queue.UnboundQueue]


@pytest.fixture
def installed() -> Any:
    tracefill.install(only=["gevent", "gevent_queues"])
    yield
    tracefill.uninstall()


@pytest.mark.usefixtures("installed")
def test_a_link_can_be_taken_out_again() -> None:
    called: list[Any] = []
    with tracer.start_as_current_span("near"):
        job = gevent.spawn(int)
        job.link(called.append)
        job.link_value(called.append)
        job.unlink(called.append)
        job.link_exception(called.append)
        job.join()
        gevent.sleep(0)
    assert called == [job]


@pytest.mark.usefixtures("installed")
def test_no_snapshot_is_left() -> None:
    before = snapshots.stats().in_use
    with tracer.start_as_current_span("near"):
        gevent.spawn(int).get()
        gevent.spawn_later(60, int).kill()
        gevent.spawn_raw(int)
        gevent.get_hub().threadpool.spawn(int).get()
        with pytest.raises(ZeroDivisionError):
            gevent.get_hub().threadpool.spawn(divmod, 1, 0).get()
        gevent.queue.Queue().put("never taken")
        gevent.sleep(0.01)
    assert snapshots.stats().in_use == before
