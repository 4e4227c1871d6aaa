"""What every integration owes, written once. A test class inherits a contract and says only how its boundary is crossed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace

import tracefill

tracer = trace.get_tracer("tests")


def finished(spans: Any, name: str) -> Any:
    """The one finished span of this name."""
    found = [span for span in spans.get_finished_spans() if span.name == name]
    assert len(found) == 1, f"expected one span {name!r}, got {[span.name for span in spans.get_finished_spans()]}"
    return found[0]


def ancestors(spans: Any, span: Any) -> list[str]:
    """The names of a finished span's ancestors, nearest first, as far as they were recorded."""
    by_id = {other.context.span_id: other for other in spans.get_finished_spans()}
    names = []
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        names.append(span.name)
    return names


class PatchContract:
    """install(only=[name]) and uninstall() of one integration."""

    name: str

    def owners(self) -> list[Any]:
        """The modules and classes that the integration patches."""
        raise NotImplementedError

    def test_uninstall_leaves_no_patched_attribute(self) -> None:
        before = [dict(vars(owner)) for owner in self.owners()]
        tracefill.install(only=[self.name])
        assert self.name in tracefill.installed()
        assert [dict(vars(owner)) for owner in self.owners()] != before
        tracefill.uninstall()
        assert [dict(vars(owner)) for owner in self.owners()] == before
        assert tracefill.installed() == []

    def test_install_twice_is_install_once(self) -> None:
        before = [dict(vars(owner)) for owner in self.owners()]
        tracefill.install(only=[self.name])
        once = [dict(vars(owner)) for owner in self.owners()]
        tracefill.install(only=[self.name])
        assert [dict(vars(owner)) for owner in self.owners()] == once
        tracefill.uninstall()
        assert [dict(vars(owner)) for owner in self.owners()] == before


class BoundaryContract:
    """A boundary that work crosses inside or between services: `cross(work)` runs `work` on the far side and waits for it."""

    #: How many spans of the integration's own stand between the near and the far span.
    spans_between = 0

    @pytest.fixture(autouse=True)
    def _installed(self) -> Any:
        tracefill.install(only=[self.name])  # type: ignore[attr-defined]
        yield
        tracefill.uninstall()

    def cross(self, work: Callable[[], Any]) -> None:
        raise NotImplementedError

    def test_far_side_hangs_below_the_near_side(self, spans: Any, no_log: Any) -> None:
        with tracer.start_as_current_span("near"):
            self.cross(lambda: tracer.start_span("far").end())
        far = finished(spans, "far")
        assert far.context.trace_id == finished(spans, "near").context.trace_id
        above = ancestors(spans, far)
        assert above[-1] == "near"
        assert len(above) == 1 + self.spans_between

    def test_context_of_the_near_side_is_untouched(self) -> None:
        with tracer.start_as_current_span("near") as near:
            before = otel_context.get_current()
            self.cross(lambda: None)
            assert otel_context.get_current() is before
            assert trace.get_current_span() is near
        assert not trace.get_current_span().get_span_context().is_valid

    def test_two_requests_do_not_see_each_other(self, spans: Any) -> None:
        for name in ("first", "second"):
            with tracer.start_as_current_span(name):
                self.cross(lambda name=name: tracer.start_span(f"far of {name}").end())
        for name in ("first", "second"):
            assert ancestors(spans, finished(spans, f"far of {name}"))[-1] == name

    def test_outside_of_any_request_nothing_is_inherited(self, spans: Any) -> None:
        with tracer.start_as_current_span("earlier"):
            self.cross(lambda: None)
        self.cross(lambda: tracer.start_span("alone").end())
        assert "earlier" not in ancestors(spans, finished(spans, "alone"))
