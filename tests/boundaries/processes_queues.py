"""Queues and pipes between processes."""

from __future__ import annotations

import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Listener
from typing import Any

from tests.boundaries import Program, boundary
from tests.boundaries.ran import check

fork = multiprocessing.get_context("fork")
spawn = multiprocessing.get_context("spawn")
forkserver = multiprocessing.get_context("forkserver")

program = Program()


def serve(jobs: Any, results: Any) -> None:
    """A long-lived worker."""
    while (key := jobs.get()) is not None:
        if key == "check":
            check()
        else:
            program.far(key)
        results.put(key)


def serve_joinable(jobs: Any) -> None:
    while True:
        key = jobs.get()
        program.far(key)
        jobs.task_done()


def serve_pipe(end: Any) -> None:
    for key in iter(end.recv, None):
        program.far(key)
        end.send(key)


def start(context: Any, target: Callable[..., None], *ends: Any, daemon: bool = False) -> Any:
    process = context.Process(target=target, args=ends, daemon=daemon)
    process.start()
    return process


def two_and_nobodys(b: Program, process: Any, jobs: Any, results: Any) -> None:
    for key in "ab":
        with b.near(key):
            jobs.put(key)
            assert results.get() == key
    jobs.put("check")
    assert results.get() == "check"
    jobs.put(None)
    process.join()


@boundary("multiprocessing.Queue to a long-lived worker (fork)", expect="direct")
def queue_fork(b: Program) -> None:
    jobs, results = fork.Queue(), fork.Queue()
    two_and_nobodys(b, start(fork, serve, jobs, results), jobs, results)


@boundary("multiprocessing.Queue to a long-lived worker (spawn)", expect="direct")
def queue_spawn(b: Program) -> None:
    jobs, results = spawn.Queue(), spawn.Queue()
    two_and_nobodys(b, start(spawn, serve, jobs, results), jobs, results)


@boundary("multiprocessing.SimpleQueue, worker started inside another request (forkserver)", expect="direct")
def simple_queue(b: Program) -> None:
    jobs, results = forkserver.SimpleQueue(), forkserver.SimpleQueue()
    with b.span("another"):
        process = start(forkserver, serve, jobs, results)
    two_and_nobodys(b, process, jobs, results)


@boundary("multiprocessing.Queue, worker started lazily inside the first request (fork)", expect="direct")
def queue_lazily(b: Program) -> None:
    jobs, results = fork.Queue(), fork.Queue()
    with b.near("c"):
        process = start(fork, serve, jobs, results)
        jobs.put("c")
        results.get()
    two_and_nobodys(b, process, jobs, results)


@boundary("multiprocessing.JoinableQueue, two workers", expect="direct")
def joinable_queue(b: Program) -> None:
    jobs = fork.JoinableQueue()
    workers = [start(fork, serve_joinable, jobs, daemon=True) for _ in range(2)]
    for key in "abcd":
        with b.near(key):
            jobs.put_nowait(key)
    jobs.join()
    for worker in workers:
        worker.terminate()
        worker.join()


@boundary("multiprocessing.Pipe", expect="direct")
def pipe(b: Program) -> None:
    here, there = spawn.Pipe()
    process = start(spawn, serve_pipe, there)
    for key in "ab":
        with b.near(key):
            here.send(key)
            assert here.recv() == key
    here.send(None)
    process.join()


@boundary("multiprocessing.Manager().Queue()", expect="direct")
def manager_queue(b: Program) -> None:
    with fork.Manager() as manager:
        jobs, results = manager.Queue(), manager.Queue()
        two_and_nobodys(b, start(spawn, serve, jobs, results), jobs, results)


@boundary("multiprocessing.Queue between threads of one process", expect="direct")
def queue_threads(b: Program) -> None:
    jobs, results = fork.Queue(), fork.Queue()
    thread = threading.Thread(target=serve, args=(jobs, results))
    with b.span("another"):
        thread.start()
    two_and_nobodys(b, thread, jobs, results)


@boundary("multiprocessing.Queue: hop after hop", expect="connected")
def queue_hops(b: Program) -> None:
    jobs, middle, results = spawn.Queue(), spawn.Queue(), spawn.Queue()
    first, second = start(spawn, serve, jobs, middle), start(fork, serve, middle, results)
    for key in "ab":
        with b.near(key):
            jobs.put(key)
            results.get()
    jobs.put(None)
    middle.put(None)
    first.join()
    second.join()


@boundary("multiprocessing.Queue: the results of workers leave the caller as it was", expect="direct")
def queue_results(b: Program) -> None:
    jobs, results = fork.Queue(), fork.Queue()
    process = start(fork, serve, jobs, results)
    with b.near("a"):
        jobs.put("a")
    with b.near():
        results.get()
        b.far()
    jobs.put(None)
    process.join()


@boundary("multiprocessing.connection: another program sees what was sent", expect="own root")
def strangers(b: Program) -> None:
    with Listener(("127.0.0.1", 0), authkey=b"key") as listener:
        reads = "from multiprocessing.connection import Client; import sys; "
        reads += f"sys.modules['tracefill'] = None; print(Client({listener.address!r}, authkey=b'key').recv())"
        child = subprocess.Popen([sys.executable, "-c", reads], stdout=subprocess.PIPE, text=True)
        connection = listener.accept()
        with b.near():
            connection.send("as it is")
        assert child.communicate()[0].strip() == "as it is"
        answers = threading.Thread(target=lambda: listener.accept().recv())
        answers.start()
        with b.span("another"):
            Client(listener.address, authkey=b"key").send(os.getpid())
        answers.join()
    b.far()


def serve_patiently(jobs: Any, results: Any) -> None:
    """Asks with a timeout, and looks at the pipe before it reads."""
    key = ""
    while key is not None:
        try:
            key = jobs.get(timeout=0.01)
        except queue.Empty:
            continue
        if key is not None:
            program.far(key)
            results.send(key)


def serve_polling(end: Any) -> None:
    while True:
        if not end.poll(0.01):
            continue
        with program.span("handles"):
            pass
        key = end.recv()
        if key is None:
            return
        program.far(key)
        end.send(key)


@boundary("multiprocessing.Queue with timeouts, the reply by a Pipe", expect="direct")
def queue_with_timeouts(b: Program) -> None:
    jobs, (here, there) = fork.Queue(), fork.Pipe()
    process = start(fork, serve_patiently, jobs, there)
    for key in "ab":
        time.sleep(0.03)
        with b.near(key):
            jobs.put(key)
            assert here.recv() == key
            b.far(key)
    jobs.put(None)
    process.join()


@boundary("multiprocessing.Pipe, polled, the worker started inside the first request (spawn)", expect="direct")
def polled_pipe(b: Program) -> None:
    here, there = spawn.Pipe()
    process = None
    for key in "abc":
        with b.near(key):
            process = process or start(spawn, serve_polling, there)
            here.send(key)
            assert here.recv() == key
    here.send(None)
    process.join()


@boundary("multiprocessing.Queue read by a process that hands the work to a thread pool", expect="direct")
def queue_to_pool(b: Program) -> None:
    jobs, results = spawn.Queue(), spawn.Queue()
    process = start(spawn, serve_by_a_pool, jobs, results)
    for key in "abc":
        with b.near(key):
            jobs.put(key)
    for _ in "abc":
        results.get()
    jobs.put(None)
    process.join()


def serve_by_a_pool(jobs: Any, results: Any) -> None:
    def work(key: str) -> None:
        program.far(key)
        results.put(key)

    with ThreadPoolExecutor(2) as pool:
        for key in iter(jobs.get, None):
            pool.submit(work, key)
