"""Reading in several processes: each takes a file, or a range of a large one, and hands back columns.

A worker is a fresh interpreter that talks pickles over its pipes, so a caller needs no ``if __name__ == "__main__"``
and may have threads.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

from tracefill.audit.readers.batch import SpanBatch, Tick
from tracefill.audit.readers.records import SourceError
from tracefill.audit.readers.sources import FORMATS, file_blocks, range_blocks
from tracefill.audit.spans import Spans


class Task(NamedTuple):
    """A file to read, or the lines of it that begin in a range of its bytes."""

    path: Path
    format: str
    start: int = 0
    stop: int | None = None


class Part(NamedTuple):
    """What a task found: its number of records, and its spans."""

    records: int
    spans: Spans


def read_here(task: Task, tick: Tick) -> Part:
    """Do the task in this process."""
    batch = SpanBatch()
    tell = batch.teller(tick)
    records = FORMATS[task.format](_blocks(task, tell), str(task.path), batch)
    tell(0)
    return Part(records, batch.build())


def _blocks(task: Task, tell: Callable[[int], None]) -> Iterator[bytes]:
    if task.stop is None:
        return file_blocks(task.path, tell)
    return range_blocks(task.path, task.start, task.stop, tell)


def read_in_processes(tasks: Iterable[Task], processes: int, tick: Tick) -> list[Part]:
    """Do the tasks in so many processes; the parts in the tasks' order. Raises what a task raises."""
    numbered = _Shared(enumerate(tasks))
    messages: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
    workers: list[subprocess.Popen[bytes]] = []
    parts: dict[int, Part] = {}
    try:
        for _ in range(processes):
            workers.append(_start())
            threading.Thread(target=_drive, args=(workers[-1], numbered, messages), daemon=True).start()
        while processes:
            what, first, second = messages.get()
            if what == "tick":
                tick(first, second)
            elif what == "part":
                parts[first] = second
            elif what == "raised":
                raise first
            else:
                processes -= 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [parts[number] for number in sorted(parts)]


def _start() -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from tracefill.audit.readers.workers import serve; serve()"
    # In a session of its own: an interrupt is for the one who starts it, and he ends it.
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def _drive(worker: subprocess.Popen[bytes], tasks: Iterator[tuple[int, Task]], messages: SimpleQueue[Any]) -> None:
    """Hand the worker one task after the other and pass on what it says, until none is left."""
    assert worker.stdin
    assert worker.stdout
    try:
        for number, task in tasks:
            _send(worker.stdin, (number, task))
            while (message := pickle.load(worker.stdout))[0] == "tick":
                messages.put(message)
            messages.put(message)
    except (EOFError, OSError, pickle.UnpicklingError):
        died = SourceError(f"a reading process ended before its work did (exit code {worker.wait()})")
        messages.put(("raised", died, None))
    messages.put(("end", None, None))


class _Shared(Iterator[tuple[int, Task]]):
    """One iterator for several threads."""

    def __init__(self, tasks: Iterable[tuple[int, Task]]):
        self._tasks = iter(tasks)
        self._lock = threading.Lock()

    def __next__(self) -> tuple[int, Task]:
        with self._lock:
            return next(self._tasks)


def serve() -> None:
    """The worker's side: read tasks from standard input, answer on what was standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    gc.disable()  # nothing here makes cycles, and looking for them takes a tenth of the time
    os.dup2(2, 1)  # a library that prints must not speak into the pickles
    while task := _receive(sys.stdin.buffer):
        number, what = task
        try:
            part = read_here(what, lambda count, spans: _send(answers, ("tick", count, spans)))
        except (SourceError, OSError) as error:
            _send(answers, ("raised", error, None))
        except Exception:
            _send(answers, ("raised", RuntimeError(traceback.format_exc()), None))
        else:
            _send(answers, ("part", number, part))


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    try:
        return pickle.load(pipe)
    except EOFError:
        return None
