"""The pool at work: acquire, release, stats; bind and go.

    with tracefill.snapshot() as here:          # acquired from the default pool, released at the end
        here.run(work)                          # `work` runs in the context of now
    tracefill.go(work, order)                   # a thread that carries the context
    executor.submit(tracefill.bind(work))       # a callable that does

TRACEFILL_DEBUG=1 remembers where each Snapshot in use was acquired: `leaks()` lists the places.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from tracefill import _codec
from tracefill._codec import PoolStats, Snapshot, SnapshotPool, SnapshotReleased, bind, snapshot

__all__ = ["PoolStats", "Snapshot", "SnapshotPool", "SnapshotReleased", "bind", "go", "leaks", "snapshot", "stats"]


def go(fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> threading.Thread:
    """A started daemonless thread that runs `fn(*args, **kwargs)` in the context of now.

    >>> import tracefill
    >>> tracefill.go(print, "carried").join()
    carried
    """
    thread = threading.Thread(target=bind(fn), args=args, kwargs=kwargs, name=getattr(fn, "__name__", None))
    thread.start()
    return thread


def stats() -> PoolStats:
    """capacity, idle, in_use, hits, misses and overflows of the default pool."""
    return _codec.pool_stats()


def leaks() -> list[str]:
    """Where the snapshots of the default pool that are in use were acquired, `file:line` each; needs TRACEFILL_DEBUG=1."""
    return _codec.pool_leaks()


def _after_fork_in_child() -> None:
    _codec.in_forked_child()
    _codec.forget_seeds()


_codec.set_debugging(os.environ.get("TRACEFILL_DEBUG") == "1")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
