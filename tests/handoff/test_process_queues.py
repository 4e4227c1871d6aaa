"""Queues and pipes between processes: the item arrives as it was, in its producer's context, whoever unpickles it."""

from __future__ import annotations

import contextvars
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.managers
import multiprocessing.queues
import pickle
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace

import tracefill
from tests.contracts import PatchContract, tracer
from tracefill import snapshots

fork = multiprocessing.get_context("fork")


class TestPatch(PatchContract):
    name = "process_queues"

    def owners(self) -> list[Any]:
        return [
            multiprocessing.queues.Queue,
            multiprocessing.queues.JoinableQueue,
            multiprocessing.queues.SimpleQueue,
            multiprocessing.connection,
            multiprocessing.connection._ConnectionBase,
            multiprocessing.connection.Listener,
            multiprocessing.managers.BaseProxy,
        ]


@pytest.fixture
def installed() -> Iterator[None]:
    gc.collect()
    before = snapshots.stats().in_use
    tracefill.install(only=["process_queues", "processes"])
    yield
    tracefill.uninstall()
    gc.collect()
    assert snapshots.stats().in_use == before


class Job:
    """Compares by what it holds, and is not the same object on the far side."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return type(other) is Job and other.number == self.number

    def __hash__(self) -> int:
        return self.number


ITEMS = [1, "text", None, [1, [2]], {"a": 1}, (1, 2), Job(3), ValueError]


def here() -> int:
    return trace.get_current_span().get_span_context().span_id


def elsewhere(function: Callable[[], Any]) -> Any:
    return contextvars.Context().run(function)


def echo(jobs: Any, answers: Any) -> None:
    """A worker of a process of its own: each item, and in which span it was taken."""
    while (item := jobs.get()) != "end":
        answers.put((item, here()))


@pytest.fixture(params=["Queue", "SimpleQueue", "JoinableQueue"])
def jobs(request: pytest.FixtureRequest) -> Any:
    return getattr(fork, request.param)()


@pytest.mark.usefixtures("installed")
def test_there_and_back(jobs: Any) -> None:
    answers = fork.Queue()
    with tracer.start_as_current_span("starter"):
        worker = fork.Process(target=echo, args=(jobs, answers))
        worker.start()
    for item in ITEMS:
        with tracer.start_as_current_span("near"):
            near = here()
            jobs.put(item)
            assert answers.get(timeout=30) == (item, near)
            assert here() == near
    jobs.put("outside")
    assert elsewhere(lambda: answers.get(timeout=30)) == ("outside", 0)
    jobs.put("end")
    worker.join(30)
    assert worker.exitcode == 0


@pytest.mark.usefixtures("installed")
def test_put_nowait_maxsize_and_task_done() -> None:
    jobs = fork.JoinableQueue(1)
    with tracer.start_as_current_span("near"):
        near = here()
        jobs.put_nowait("item")
        with pytest.raises(queue.Full):
            jobs.put_nowait("no room")
        with pytest.raises(queue.Full):
            jobs.put("no room", timeout=0.001)
    assert elsewhere(lambda: (jobs.get(timeout=30), here())) == ("item", near)
    jobs.task_done()
    jobs.join()
    with pytest.raises(ValueError, match="too many times"):
        jobs.task_done()


@pytest.mark.usefixtures("installed")
def test_pipe_in_both_directions_and_its_bytes() -> None:
    one, other = fork.Pipe()
    with tracer.start_as_current_span("near"):
        near = here()
        one.send(Job(1))
        one.send_bytes(b"as they are")
    assert elsewhere(lambda: (other.recv(), here())) == (Job(1), near)
    assert other.recv_bytes() == b"as they are"
    other.send("back")
    assert one.recv() == "back"


@pytest.mark.usefixtures("installed")
def test_what_cannot_be_pickled_fails_where_it_did() -> None:
    one, _other = fork.Pipe()
    with tracer.start_as_current_span("near"), pytest.raises((AttributeError, pickle.PicklingError)):
        one.send(lambda: None)


@pytest.mark.usefixtures("installed")
def test_a_receiver_without_the_patch_sees_the_item() -> None:
    one, other = fork.Pipe()
    with tracer.start_as_current_span("near"):
        near = here()
        one.send("item")
    tracefill.uninstall()
    assert elsewhere(lambda: (other.recv(), here())) == ("item", near)


@pytest.mark.usefixtures("installed")
def test_connections_to_strangers_are_left_alone() -> None:
    with multiprocessing.connection.Listener(("127.0.0.1", 0)) as listener:
        client = multiprocessing.connection.Client(listener.address)
        accepted = listener.accept()
        with tracer.start_as_current_span("near"):
            client.send("item")
        assert pickle.loads(accepted.recv_bytes()) == "item"
        assert b"tracefill" not in pickle.dumps("item")
        client.close()
        accepted.close()


@pytest.mark.usefixtures("installed")
def test_a_managers_queue_keeps_its_priorities() -> None:
    with fork.Manager() as manager:
        jobs: Any = manager.Queue()
        with tracer.start_as_current_span("near"):
            near = here()
            jobs.put(Job(1))
        assert elsewhere(lambda: (jobs.get(), here())) == (Job(1), near)
        listed = manager.list()
        listed.append(Job(2))
        assert list(listed) == [Job(2)]
