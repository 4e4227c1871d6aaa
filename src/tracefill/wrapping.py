"""How an integration replaces a function of a library, and puts it back: one `Patches` a module.

_patches = Patches()

def patch() -> None:
    from kafka import KafkaProducer
    _patches.wrap(KafkaProducer, "send", _send)     # _send(original) -> the function to put in its place

def unpatch() -> None:
    _patches.undo()
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from tracefill import _codec

__all__ = ["Patches", "contrib_active"]

_ABSENT = object()


class Patches:
    """What one integration has replaced. Wrapping twice changes nothing; undoing leaves no attribute behind."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, Any]] = []

    @property
    def active(self) -> bool:
        return bool(self._done)

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        """Puts `make(original)` in the place of `owner.name`; static and class methods stay what they are."""
        if any(done_owner is owner and done_name == name for done_owner, done_name, _, _ in self._done):
            return
        own = vars(owner).get(name, _ABSENT) if hasattr(owner, "__dict__") else _ABSENT
        kept = getattr(owner, name) if own is _ABSENT else own
        # Looked up and not taken out of the class: contrib's wrappers learn by the look-up that they are a method.
        function = kept.__func__ if isinstance(kept, (staticmethod, classmethod)) else getattr(owner, name)
        made: Any = make(function)
        if callable(function) and not isinstance(function, type):
            functools.update_wrapper(made, function)
        if isinstance(kept, (staticmethod, classmethod)):
            made = type(kept)(made)
        self.replace(owner, name, made)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Puts `value` in the place of `owner.name`."""
        own = vars(owner).get(name, _ABSENT) if hasattr(owner, "__dict__") else _ABSENT
        _set(owner, name, value)
        self._done.append((owner, name, own, value))

    def undo(self) -> None:
        """Puts back what was there, also from under a wrapper that somebody else (contrib) has put on top of ours."""
        while self._done:
            owner, name, own, value = self._done.pop()
            current = vars(owner).get(name, _ABSENT)
            if current is value:
                if own is _ABSENT:
                    _delete(owner, name)
                else:
                    _set(owner, name, own)
            elif current is not _ABSENT:
                _take_out(current, value, own)


def _set(owner: Any, name: str, value: Any) -> None:
    if type(owner) is type:
        _codec.set_type_attribute(owner, name, value)  # classes of C too (sqlite3.Connection, queue.SimpleQueue)
    else:
        setattr(owner, name, value)


def _delete(owner: Any, name: str) -> None:
    if type(owner) is type:
        _codec.delete_type_attribute(owner, name)
    else:
        delattr(owner, name)


def _take_out(outer: Any, value: Any, own: Any) -> None:
    """Follows `__wrapped__` from the outermost wrapper to the one that holds ours, and hands it what ours had held."""
    inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    below = getattr(inner, "__wrapped__", own)
    while outer is not None:
        held = getattr(outer, "__wrapped__", None)
        if held is inner or held is value:
            outer.__wrapped__ = below
            return
        outer = held


def contrib_active(module: str, instrumentor: str) -> bool:
    """True while contrib's instrumentor of this name is switched on; never imports it.

    >>> contrib_active("opentelemetry.instrumentation.kafka", "KafkaInstrumentor")
    False
    """
    loaded = sys.modules.get(module)
    if loaded is None:
        return False
    # BaseInstrumentor keeps one instance a class, and makes it when asked: look, do not make.
    instance = getattr(getattr(loaded, instrumentor, None), "_instance", None)
    return instance is not None and bool(getattr(instance, "_is_instrumented_by_opentelemetry", False))
