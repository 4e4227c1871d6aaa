"""Exported spans, from whatever wrote them: files of every format, query APIs, databases, standard input.

`read` recognises a format by its content, never by a name, and gives the same table for the same spans.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracefill.audit.readers.batch import SpanBatch
from tracefill.audit.readers.records import SourceError
from tracefill.audit.readers.sources import (
    FORMATS,
    TABLES,
    expand,
    head_of,
    is_plain,
    read_stream,
    recognise,
    stream_blocks,
)
from tracefill.audit.readers.workers import Part, Task, read_here, read_in_processes
from tracefill.audit.spans import Spans, concat

__all__ = ["Progress", "SourceError", "read"]

LINES = "OTLP JSON lines"
RANGE_BYTES = 1 << 25
WORTH_PROCESSES_BYTES = 1 << 26  # fresh interpreters take half a second to start

Progress = Callable[[int, "int | None", int], None]
"""Called with the bytes read so far, the bytes there are (None when nobody knows) and the spans found so far."""


def read(names: Sequence[str], *, processes: int | None = None, progress: Progress | None = None) -> Spans:
    """The spans of every source: a file, a folder, a pattern, a URL, or ``-`` for standard input.

    An empty table when the sources hold no spans; what was damaged or skipped is in its `input`. `processes` is how
    many may read at once (default: one a core); small sources are read in this one. Raises `SourceError` for a source
    that is not there or answers something else.
    """
    meter = _Meter(progress)
    tasks = [task for name in names if _is_local(name) for task in _tasks(name)]
    meter.total = sum(map(_size, tasks)) if all(map(_is_local, names)) else None
    parts = [*_read_files(tasks, processes or _cores(), meter)]
    parts += [_read_elsewhere(name, meter) for name in names if not _is_local(name)]
    return concat(parts)


@dataclass
class _Meter:
    """Adds up what the steps took."""

    progress: Progress | None
    total: int | None = None
    bytes: int = 0
    spans: int = 0

    def tick(self, count: int, spans: int) -> None:
        self.bytes += count
        self.spans += spans
        if self.progress:
            self.progress(self.bytes, self.total, self.spans)


def _is_local(name: str) -> bool:
    return name != "-" and "://" not in name


def _tasks(name: str) -> Iterator[Task]:
    """What there is to do for a path; of a folder or a pattern, files that no format fits are passed over."""
    paths = expand(name)
    for path in paths:
        head = head_of(path)
        kind = recognise(head) or (LINES if head and path == Path(name) else None)
        if kind == LINES and is_plain(path):
            size = path.stat().st_size
            yield from (
                Task(path, kind, start, min(start + RANGE_BYTES, size)) for start in range(0, size, RANGE_BYTES)
            )
        elif kind:
            yield Task(path, kind)


def _size(task: Task) -> int:
    return task.path.stat().st_size if task.stop is None else task.stop - task.start


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_files(tasks: list[Task], processes: int, meter: _Meter) -> Iterator[Spans]:
    tables = [task for task in tasks if task.format in TABLES]
    blocks = [task for task in tasks if task.format in FORMATS]
    for task in tables:
        from tracefill.audit.readers.columns import read_table  # duckdb takes its time to import

        yield read_table(task.path, task.format, meter.tick)
    for _, pairs in itertools.groupby(_read_blocks(blocks, processes, meter), lambda pair: pair[0].path):
        yield from _renumbered(part for _, part in pairs)


def _read_blocks(tasks: list[Task], processes: int, meter: _Meter) -> Iterator[tuple[Task, Part]]:
    processes = min(processes, len(tasks))
    if processes > 1 and sys.executable and sum(map(_size, tasks)) > WORTH_PROCESSES_BYTES:
        parts: Iterable[Part] = read_in_processes(tasks, processes, meter.tick)
    else:
        parts = (read_here(task, meter.tick) for task in tasks)
    return zip(tasks, parts, strict=True)


def _renumbered(parts: Iterable[Part]) -> Iterator[Spans]:
    """The spans of one file's parts, in order; records are numbered in the file, no longer in the part."""
    before = 0
    for part in parts:
        for damaged in part.spans.input.damaged:
            damaged.record += before
        before += part.records
        yield part.spans


def _read_elsewhere(name: str, meter: _Meter) -> Spans:
    if name == "-":
        return _read_standard_input(meter)
    from tracefill.audit.readers.urls import read_url

    return read_url(name, meter.tick)


def _read_standard_input(meter: _Meter) -> Spans:
    batch = SpanBatch()
    read_stream(stream_blocks(sys.stdin.buffer, batch.teller(meter.tick)), "-", batch, otherwise=LINES)
    return batch.build()
