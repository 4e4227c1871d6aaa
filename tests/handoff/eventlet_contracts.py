"""What eventlet's integrations owe: run by test_eventlet.py, in an interpreter of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import eventlet
import eventlet.event
import eventlet.greenthread
import eventlet.queue
import eventlet.tpool
import pytest

import tracefill
from tests.contracts import BoundaryContract, PatchContract, tracer
from tracefill import snapshots


class Eventlet(BoundaryContract):
    name = "eventlet"


class TestSpawn(Eventlet):
    def cross(self, work: Callable[[], Any]) -> None:
        eventlet.spawn(work).wait()


class TestSpawnAfter(Eventlet):
    def cross(self, work: Callable[[], Any]) -> None:
        eventlet.spawn_after(0.001, work).wait()


class TestSpawnN(Eventlet):
    def cross(self, work: Callable[[], Any]) -> None:
        done = eventlet.event.Event()
        eventlet.spawn_n(lambda: (work(), done.send()))
        done.wait()


class TestGreenPool(Eventlet):
    def cross(self, work: Callable[[], Any]) -> None:
        pool = eventlet.GreenPool(1)
        pool.spawn_n(work)
        pool.waitall()


class TestGreenPile(Eventlet):
    def cross(self, work: Callable[[], Any]) -> None:
        pile = eventlet.GreenPile(1)
        pile.spawn(work)
        list(pile)


class TestNativeThread(Eventlet):
    def cross(self, work: Callable[[], Any]) -> None:
        eventlet.tpool.execute(work)


class TestQueue(BoundaryContract):
    name = "eventlet_queues"

    def cross(self, work: Callable[[], Any]) -> None:
        jobs = eventlet.Queue()
        worker = eventlet.spawn(lambda: jobs.get()())
        eventlet.sleep(0)
        jobs.put(work)
        worker.wait()


class TestPatch(PatchContract):
    name = "eventlet"

    def owners(self) -> list[Any]:
        return [eventlet, eventlet.greenthread, eventlet.greenthread.GreenThread, eventlet.GreenPool, eventlet.tpool]


class TestPatchOfQueues(PatchContract):
    name = "eventlet_queues"

    def owners(self) -> list[Any]:
        return [eventlet.queue.LightQueue]


@pytest.fixture
def installed() -> Any:
    tracefill.install(only=["eventlet", "eventlet_queues"])
    yield
    tracefill.uninstall()


@pytest.mark.usefixtures("installed")
def test_no_snapshot_is_left() -> None:
    before = snapshots.stats().in_use
    with tracer.start_as_current_span("near"):
        eventlet.spawn(int).wait()
        eventlet.spawn_after(60, int).cancel()
        eventlet.spawn_n(int)
        eventlet.tpool.execute(int)
        with pytest.raises(ZeroDivisionError):
            eventlet.tpool.execute(divmod, 1, 0)
        eventlet.Queue().put("never taken")
        eventlet.sleep(0.01)
    assert snapshots.stats().in_use == before
