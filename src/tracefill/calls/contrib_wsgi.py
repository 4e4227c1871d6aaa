"""Contrib's WSGI middleware: its span lasts as long as the response, whoever reads the body, and is left on no thread.

Contrib's own generator attaches the span while the body is read: one that is never read keeps the span open and current for
ever, and one that is read by another thread leaves it on the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.trace import Span

from tracefill.calls.http_spans import record_failure
from tracefill.context import current, scope
from tracefill.edge.adoption import adopt_contrib
from tracefill.edge.bodies import covered
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("opentelemetry.instrumentation.wsgi",)

_patches = Patches()


def patch() -> None:
    module = sys.modules[LIBRARIES[0]]
    adopt_contrib(_patches, LIBRARIES[0])
    _patches.wrap(module, "_end_span_after_iterating", _end_after_response)
    _patches.wrap(module.OpenTelemetryMiddleware, "__call__", _leave_nothing)


def unpatch() -> None:
    _patches.undo()


def _end_after_response(_: Any) -> Callable[..., Iterable[bytes]]:
    def end_span(iterable: Iterable[bytes], span: Span, token: Any) -> Iterable[bytes]:
        def over(error: BaseException | None) -> None:
            if error is not None:
                record_failure(span, error)
            span.end()

        return covered(iterable, {}, current(), over)  # called while the span is current

    return end_span


def _leave_nothing(original: Any) -> Callable[..., Iterable[bytes]]:
    def call(self: Any, environ: Any, start_response: Any) -> Iterable[bytes]:
        with scope(current()):  # contrib would detach its context when the body has been read
            body: Iterable[bytes] = original(self, environ, start_response)
        return body

    return call
