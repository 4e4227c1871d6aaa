"""In-process queues: an item brings its producer's context to whoever takes it, until he takes the next (opt-in).

    import tracefill
    tracefill.install(queues=True)
    jobs.put(order)             # in a request
    order = jobs.get()          # in a worker: the request's span is current until the next get

`queue.Queue`, `LifoQueue` and `PriorityQueue`: order, `task_done`, `join`, `maxsize` and the items themselves stay what they were.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry.context import Context

from tracefill._codec import make_current
from tracefill.context import current
from tracefill.wrapping import Patches

LIBRARIES = ()
OPT_IN = True

_patches = Patches()
_NOTHING = Context()
# Beside each item that waits, the context it was put in. By identity, since an item may neither hash nor be weakly held.
_waiting: WeakKeyDictionary[Any, dict[int, deque[Any]]] = WeakKeyDictionary()


def _put(original: Callable[..., Any]) -> Callable[..., Any]:
    def _put(self: Any, item: Any) -> None:
        _waiting.setdefault(self, {}).setdefault(id(item), deque()).append(current())
        original(self, item)

    return _put


def _get(original: Callable[..., Any]) -> Callable[..., Any]:
    def _get(self: Any) -> Any:
        item = original(self)
        contexts = _waiting.get(self, {}).get(id(item))
        brought = contexts.popleft() if contexts else _NOTHING
        if contexts is not None and not contexts:
            del _waiting[self][id(item)]
        make_current(brought)
        return item

    return _get


def patch() -> None:
    for kind in (queue.Queue, queue.LifoQueue, queue.PriorityQueue):
        _patches.wrap(kind, "_put", _put)
        _patches.wrap(kind, "_get", _get)


def unpatch() -> None:
    _patches.undo()
