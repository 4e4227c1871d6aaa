"""Service call: processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from tests.boundaries import Program, boundary

CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]

fork = multiprocessing.get_context("fork")
spawn = multiprocessing.get_context("spawn")
forkserver = multiprocessing.get_context("forkserver")

CHILD = [sys.executable, "-c", "from tests.boundaries import Program; Program().far()"]
SHELL = f"'{sys.executable}' -c 'from tests.boundaries import Program; Program().far()'"


def nothing() -> int:
    return os.getpid()


def work(key: str) -> str:
    Program().far(key)
    return key


def fail(key: str) -> None:
    Program().far(key)
    raise ValueError(key)


def is_clean() -> None:
    Program().clean("a job that nobody's request submitted")


# ----------------------------------------------------------------------------------------------------------------- Process


@boundary("multiprocessing.Process (fork)", expect="direct")
def process_fork(b: Program) -> None:
    with b.near():
        _ran(fork.Process(target=b.far))


@boundary("multiprocessing.Process (spawn)", expect="direct")
def process_spawn(b: Program) -> None:
    with b.near():
        _ran(spawn.Process(target=work, args=("",)))


@boundary("multiprocessing.Process (forkserver)", expect="direct")
def process_forkserver(b: Program) -> None:
    with b.near():
        _ran(forkserver.Process(target=work, args=("",)))


@boundary("multiprocessing.Process (forkserver), two requests", expect="direct")
def process_forkserver_twice(b: Program) -> None:
    for key in "ab":
        with b.near(key):
            _ran(forkserver.Process(target=work, args=(key,)))
    _ran(forkserver.Process(target=is_clean))


class Worker(spawn.Process):  # type: ignore[name-defined, misc]
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def run(self) -> None:
        work(self.key)


class ForkWorker(fork.Process):  # type: ignore[name-defined, misc]
    def run(self) -> None:
        work("")


@boundary("Process subclass overriding run() (spawn), made before its request", expect="direct")
def process_subclass_spawn(b: Program) -> None:
    worker = Worker("")
    with b.near():
        _ran(worker)


@boundary("Process subclass overriding run() (fork)", expect="direct")
def process_subclass_fork(b: Program) -> None:
    with b.near():
        _ran(ForkWorker())


@boundary("Process made in one request, started in another", expect="direct")
def process_made_elsewhere(b: Program) -> None:
    with b.span("another"):
        process = spawn.Process(target=work, args=("",))
    with b.near():
        _ran(process)


@boundary("Process started by a Process", expect="direct")
def process_of_process(b: Program) -> None:
    with b.near():
        _ran(spawn.Process(target=_start_another))


def _start_another() -> None:
    _ran(spawn.Process(target=work, args=("",)))


@boundary("Process started by a pool thread", expect="direct")
def process_of_thread(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool, b.near():
        pool.submit(_start_another).result()


@boundary("os.fork in the span", expect="direct")
def os_fork(b: Program) -> None:
    with b.near():
        child = os.fork()
        if not child:
            b.far()
            os._exit(0)
        os.waitpid(child, 0)


def _ran(process: Any) -> None:
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode


# ----------------------------------------------------------------------------------------------------- ProcessPoolExecutor


def _submits(b: Program, pool: Any) -> None:
    for key in "ab":
        with b.near(key):
            assert pool.submit(work, key).result() == key
    pool.submit(is_clean).result()


@boundary("ProcessPoolExecutor.submit (fork, workers started before)", expect="direct")
def executor_fork_before(b: Program) -> None:
    with ProcessPoolExecutor(1, fork) as pool:
        pool.submit(nothing).result()
        _submits(b, pool)


@boundary("ProcessPoolExecutor.submit (fork, workers started in the first span)", expect="direct")
def executor_fork_inside(b: Program) -> None:
    with ProcessPoolExecutor(1, fork) as pool:
        _submits(b, pool)


@boundary("ProcessPoolExecutor made and first used in another request (fork)", expect="direct")
def executor_fork_other(b: Program) -> None:
    with b.span("another"):
        pool = ProcessPoolExecutor(2, fork)
        pool.submit(nothing).result()
    with pool:
        _submits(b, pool)


@boundary("ProcessPoolExecutor.submit (spawn)", expect="direct")
def executor_spawn(b: Program) -> None:
    with ProcessPoolExecutor(1, spawn) as pool:
        _submits(b, pool)


@boundary("ProcessPoolExecutor.submit (forkserver, a new worker for each job)", expect="direct")
def executor_forkserver(b: Program) -> None:
    with ProcessPoolExecutor(1, forkserver, max_tasks_per_child=1) as pool:
        _submits(b, pool)


@boundary("ProcessPoolExecutor.map (spawn)", expect="direct")
def executor_map(b: Program) -> None:
    with ProcessPoolExecutor(2, spawn) as pool, b.near():
        assert list(pool.map(work, ["", "", ""], chunksize=2)) == ["", "", ""]


@boundary("ProcessPoolExecutor: a job that fails, then the next", expect="direct")
def executor_failure(b: Program) -> None:
    with ProcessPoolExecutor(1, fork) as pool:
        with b.near("c"):
            assert isinstance(pool.submit(fail, "c").exception(), ValueError)
        _submits(b, pool)


@boundary("ProcessPoolExecutor, results read after the request", expect="direct")
def executor_late(b: Program) -> None:
    with ProcessPoolExecutor(1, spawn) as pool:
        with b.near():
            results = pool.map(work, ["", ""])
        assert list(results) == ["", ""]


@boundary("ProcessPoolExecutor: initializer belongs to nobody", expect="own root")
def executor_initializer(b: Program) -> None:
    with b.near(), ProcessPoolExecutor(1, fork, initializer=work, initargs=("",)) as pool:
        pool.submit(nothing).result()


@boundary("loop.run_in_executor(ProcessPoolExecutor)", expect="direct")
async def run_in_executor(b: Program) -> None:
    with ProcessPoolExecutor(1, spawn) as pool:
        for key in "ab":
            with b.near(key):
                await asyncio.get_running_loop().run_in_executor(pool, work, key)


@boundary("several tasks share a ProcessPoolExecutor", expect="direct")
async def run_in_executor_gather(b: Program) -> None:
    async def request(key: str) -> None:
        with b.near(key):
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, work, key) for _ in range(2)))

    with ProcessPoolExecutor(2, fork) as pool:
        await asyncio.gather(*(request(key) for key in "abcd"))


@boundary("ProcessPoolExecutor submitted to by a pool thread", expect="direct")
def executor_of_thread(b: Program) -> None:
    with ProcessPoolExecutor(1, spawn) as processes, ThreadPoolExecutor(1) as threads:
        for key in "ab":
            with b.near(key):
                threads.submit(lambda key=key: processes.submit(work, key).result()).result()


# -------------------------------------------------------------------------------------------------------------------- Pool


@boundary("multiprocessing.Pool.apply_async / map (fork, started before)", expect="direct")
def pool_fork_before(b: Program) -> None:
    with fork.Pool(1) as pool:
        with b.near("a"):
            pool.apply_async(work, ("a",)).get(30)
        with b.near("b"):
            pool.map(work, ["b", "b"])


@boundary("multiprocessing.Pool: all methods (fork, started inside the first request)", expect="direct")
def pool_fork_inside(b: Program) -> None:
    with b.near("a"):
        pool = fork.Pool(2)
        pool.apply(work, ("a",))
    with b.near("b"):
        assert list(pool.imap(work, iter(["b", "b", "b"]), 2)) == ["b", "b", "b"]
    with b.near("c"):
        assert list(pool.imap_unordered(work, ["c", "c"])) == ["c", "c"]
    with b.near("d"):
        pool.starmap(work, [("d",), ("d",)])
    with b.near("e"):
        pool.map_async(work, ["e"]).get(30)
    with b.near("f"):
        pool.starmap_async(work, [("f",)], 1).get(30)
    pool.apply(is_clean)
    pool.close()
    pool.join()


@boundary("multiprocessing.Pool.map (spawn)", expect="direct")
def pool_spawn(b: Program) -> None:
    with spawn.Pool(1) as pool:
        for key in "ab":
            with b.near(key):
                assert pool.map(work, [key]) == [key]


@boundary("multiprocessing.Pool (fork, a new worker for each job)", expect="direct")
def pool_new_workers(b: Program) -> None:
    with b.span("another"):
        pool = fork.Pool(1, maxtasksperchild=1)
    with pool:
        for key in "abc":
            with b.near(key):
                assert pool.apply(work, (key,)) == key
        pool.apply(is_clean)


@boundary("multiprocessing.Pool: callback and error_callback", expect="direct")
def pool_callbacks(b: Program) -> None:
    called = threading.Semaphore(0)

    def done(result: object) -> None:
        b.far("a" if result == 3 else "b")
        called.release()

    with fork.Pool(1) as pool:
        with b.near("a"):
            pool.apply_async(len, ("abc",), {}, done)
        called.acquire()
        with b.near("b"):
            pool.apply_async(len, (3,), error_callback=done)
        called.acquire()


@boundary("multiprocessing.Pool.imap: the generator that it reads", expect="direct")
def pool_generator(b: Program) -> None:
    def items() -> Iterator[str]:
        for item in ("x", "yy"):
            b.far()
            yield item

    with b.span("another"):
        pool = fork.Pool(1)
    with pool, b.near():
        assert list(pool.imap(len, items())) == [1, 2]


# ------------------------------------------------------------------------------------------------- started programs


@boundary("subprocess.run", expect="direct")
def subprocess_run(b: Program) -> None:
    with b.near():
        subprocess.run(CHILD, check=True)


@boundary("subprocess.Popen(env=explicit)", expect="direct")
def subprocess_env(b: Program) -> None:
    env = {**os.environ, "TRACEPARENT": "00-11111111111111111111111111111111-1111111111111111-01"}
    kept = dict(env)
    with b.near():
        assert subprocess.Popen(CHILD, env=env).wait() == 0
    assert env == kept


@boundary("subprocess.check_output(shell=True), env positional", expect="direct")
def subprocess_shell(b: Program) -> None:
    with b.near():
        subprocess.check_output(f"true && {SHELL} | cat", shell=True)
        with subprocess.Popen(
            ["true"], -1, None, None, None, None, None, True, False, None, {"PATH": os.environ["PATH"]}
        ) as child:
            assert child.wait() == 0


@boundary("subprocess.run in a pool thread", expect="direct")
def subprocess_thread(b: Program) -> None:
    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(subprocess.run, [*CHILD[:2], CHILD[2].replace("far()", f"far({key!r})")]).result()


@boundary("asyncio.create_subprocess_exec", expect="direct")
async def asyncio_exec(b: Program) -> None:
    with b.near():
        assert await (await asyncio.create_subprocess_exec(*CHILD)).wait() == 0


@boundary("asyncio.create_subprocess_shell", expect="direct")
async def asyncio_shell(b: Program) -> None:
    with b.near():
        assert await (await asyncio.create_subprocess_shell(SHELL)).wait() == 0


@boundary("uvloop: create_subprocess_exec and shell", expect="direct")
def uvloop_exec(b: Program) -> None:
    import uvloop

    async def main() -> None:
        with b.near():
            assert await (await asyncio.create_subprocess_exec(*CHILD)).wait() == 0
            assert await (await asyncio.create_subprocess_shell(SHELL, env=dict(os.environ))).wait() == 0

    uvloop.run(main())


@boundary("os.system / shell pipeline", expect="direct")
def os_system(b: Program) -> None:
    with b.near():
        assert os.system(f"{SHELL} | cat") == 0
        assert os.system("exit 3") >> 8 == 3


@boundary("os.popen", expect="direct")
def os_popen(b: Program) -> None:
    with b.near(), os.popen(SHELL) as pipe:
        pipe.read()


@boundary("os.posix_spawn, os.spawnv, os.spawnle", expect="direct")
def os_spawn(b: Program) -> None:
    with b.near():
        os.waitpid(os.posix_spawn(sys.executable, CHILD, os.environ), 0)
        assert os.spawnv(os.P_WAIT, sys.executable, CHILD) == 0
        assert os.spawnle(os.P_WAIT, sys.executable, *CHILD, dict(os.environ)) == 0


@boundary("os.fork and os.execv", expect="direct")
def os_exec(b: Program) -> None:
    with b.near():
        child = os.fork()
        if not child:
            os.execvp(sys.executable, CHILD)
        assert os.waitpid(child, 0)[1] == 0


@boundary("a program that is started starts another", expect="direct")
def subprocess_of_subprocess(b: Program) -> None:
    with b.near():
        middle = f"import subprocess, tests.boundaries; subprocess.run({CHILD!r}, check=True)"
        subprocess.run([sys.executable, "-c", middle], check=True)


@boundary("started by cron/CI with TRACEPARENT in the environment", expect="direct")
def from_environment(b: Program) -> None:
    with b.near() as span:
        position = span.get_span_context()
    env = {**os.environ, "TRACEPARENT": f"00-{position.trace_id:032x}-{position.span_id:016x}-01"}
    subprocess.run(CHILD, env=env, check=True)
    in_thread = (
        "import threading; from tests.boundaries import Program; "
        "t = threading.Thread(target=Program().far); t.start(); t.join()"
    )
    subprocess.run([sys.executable, "-c", in_thread], env=env, check=True)
    subprocess.run(f"{SHELL} | cat", env=env, shell=True, check=True)


@boundary("a program started outside of any request", expect="own root")
def subprocess_alone(b: Program) -> None:
    with b.near():
        pass
    subprocess.run(CHILD, check=True)
