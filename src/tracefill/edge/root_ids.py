"""Ids for a root span that somebody has chosen: a trace that is named after a request id has no parent that nobody recorded.

    choose(trace_id)            # the next root span that begins in this task or thread gets it
    tracer.start_span("GET")
    forget()

OpenTelemetry's SDK asks its provider's id generator for the ids of a root span, and for nothing else of it. So the generator
that is in use is asked to give out the chosen ids once. A provider without a generator (no SDK) can not be asked:
`can_choose()` says so.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from opentelemetry import trace

__all__ = ["can_choose", "choose", "forget", "leave_generators"]


_WAITING, _BEGUN, _SPENT = range(3)


class _Chosen:
    """Ids to be given out once: the trace id, then the span id (0: any). Contexts that are copied share it."""

    __slots__ = ("span_id", "stage", "trace_id")

    def __init__(self, trace_id: int, span_id: int) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.stage = _WAITING


_chosen: ContextVar[_Chosen | None] = ContextVar("tracefill_chosen_ids", default=None)
_honouring: list[Any] = []
_provider: Any = None


def can_choose() -> bool:
    """True when the root spans of the global TracerProvider take the ids that are chosen."""
    global _provider
    provider = trace.get_tracer_provider()
    if provider is not _provider:
        _provider = provider if _honour(getattr(provider, "id_generator", None)) else None
    return _provider is not None


def choose(trace_id: int, span_id: int = 0) -> None:
    """These ids for the next root span of this task or thread, until `forget()`."""
    _chosen.set(_Chosen(trace_id, span_id))


def forget() -> None:
    """Nothing is chosen any more."""
    _chosen.set(None)


def leave_generators() -> None:
    """Takes our part out of the id generators again."""
    global _provider
    _provider = None
    while _honouring:
        generator = _honouring.pop()
        for name in ("generate_trace_id", "generate_span_id", "is_trace_id_random"):
            vars(generator).pop(name, None)


def _honour(generator: Any) -> bool:
    if generator is None or not hasattr(generator, "__dict__"):
        return False
    if any(generator is other for other in _honouring):
        return True
    any_trace_id, any_span_id = generator.generate_trace_id, generator.generate_span_id
    any_is_random: Any = getattr(generator, "is_trace_id_random", None)

    def generate_trace_id() -> Any:
        chosen = _chosen.get()
        if chosen is None or chosen.stage != _WAITING:
            return any_trace_id()
        chosen.stage = _BEGUN
        return chosen.trace_id

    def is_trace_id_random() -> Any:
        """Nobody knows how the bits of a foreign id were made."""
        chosen = _chosen.get()
        return False if chosen is not None and chosen.stage == _BEGUN else any_is_random()

    def generate_span_id() -> Any:
        chosen = _chosen.get()
        # A child span that begins before the root that the ids are for leaves them alone.
        if chosen is None or chosen.stage != _BEGUN:
            return any_span_id()
        chosen.stage = _SPENT
        return chosen.span_id or any_span_id()

    generator.generate_trace_id, generator.generate_span_id = generate_trace_id, generate_span_id
    if any_is_random is not None:
        generator.is_trace_id_random = is_trace_id_random
    _honouring.append(generator)
    return True
