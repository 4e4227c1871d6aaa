"""A request that has arrived: its identity, and the span that stands for it once somebody has begun one.

Three ways to meet a caller, each from the context that his headers hold and the X-Request-ID that he sent:

| | trace | request id in force |
|---|---|---|
| `at_edge` | his, else the one that his request id names, else a new one | the trace id, always |
| `from_stranger` | a new one, linked to his | the trace id, always |
| `further_in` | as `at_edge` | what he sent; the trace id where he sent nothing |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span

from tracefill import _codec, tags
from tracefill._codec import snapshot, with_span
from tracefill.context import current
from tracefill.edge import request_ids, root_ids
from tracefill.formats import TRACECONTEXT
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer, link_to

__all__ = ["KEY", "Arrival", "at_edge", "caller", "from_stranger", "further_in", "new_trace_id"]

#: Where a WSGI environ or an ASGI scope holds the Arrival while its request is served.
KEY = "tracefill.arrival"

_ids = _codec.RandomIds()


class Arrival:
    """One request. `context` is that of its caller, with the request id in force; `trace_id` and `span_id`, where they are
    not 0, are those that its root span is to have; `sent` is the caller's request id where that is not in force.

    It stands in its `carrier` (`within()`) until the response is complete (`over()`).
    """

    __slots__ = (
        "adopted",
        "begun",
        "carrier",
        "context",
        "inside",
        "links",
        "on_begin",
        "request_id",
        "sent",
        "span",
        "span_id",
        "trace_id",
    )

    def __init__(
        self,
        context: Context,
        request_id: str | None = None,
        trace_id: int = 0,
        span_id: int = 0,
        sent: str | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        self.context = context
        self.request_id = request_id
        self.trace_id = trace_id
        self.span_id = span_id
        self.sent = sent
        self.links = links
        self.span: Span | None = None
        self.inside = context  # what is current while the application works
        self.on_begin: Callable[[Span], None] | None = None
        self.begun = False  # the span is tracefill's own, and its Middleware says when it is over
        self.adopted: Held | None = None
        self.carrier: dict[str, Any] | None = None

    def within(self, carrier: Any) -> Any:
        """Puts it where everybody who serves the request finds it; returns the carrier."""
        carrier[KEY] = self
        self.carrier = carrier
        return carrier

    def bring_tags(self, carrier: Any, path: str, trusted: bool = True) -> None:
        """The business tags that the request says of itself are in force."""
        self.context = self.inside = tags.received(self.context, carrier, path, trusted)

    def attributes(self) -> dict[str, Any]:
        """What the server span says of the request id and of tags."""
        said: dict[str, Any] = dict(tags.attributes(self.context)) if tags.declared() else {}
        if self.request_id is not None:
            said["request_id"] = self.request_id
        if self.sent is not None:
            said["http.request.header.x-request-id"] = [self.sent]
        return said

    def begin(self, tracer: Tracer, name: str, attributes: Mapping[str, Any]) -> Span:
        """The server span, made by tracefill, whose tracer `records()` it; current in `inside`."""
        self.begun = True
        if self.trace_id and root_ids.can_choose():
            root_ids.choose(self.trace_id, self.span_id)
        if (self.request_id is not None or tags.declared()) and (said := self.attributes()):
            attributes = {**attributes, **said}
        self.span = tracer.begin(name, "server", self.context, attributes, self.links)
        if self.trace_id:
            root_ids.forget()
        self.inside = with_span(self.context, self.span)
        if self.on_begin is not None:
            self.on_begin(self.span)
        return self.span

    def routed(self, name: str, route: str) -> None:
        """A framework has found which of its routes the request takes."""
        if self.begun and self.span is not None:
            self.span.update_name(name)
            self.span.set_attribute("http.route", route)

    def adopt(self, span: Span, context: Context) -> Context:
        """The server span, made by somebody else in this context; returns the context with the request id in force."""
        if self.span is not None:
            return context
        self.span = span
        if span.is_recording():
            span.set_attributes(self.attributes())
            for link in self.links:
                span.add_link(link.context)
            self.adopted = Held(span)
        if self.request_id is not None:
            context = request_ids.in_context(context, self.request_id)
        context = tags.taken_over(context, self.context)
        self.inside = with_span(context, span)
        return context

    def written(self) -> dict[str, str]:
        """The caller's position as a W3C header, for those who read no other; nothing where he gave none."""
        position = snapshot(self.context)
        values = TRACECONTEXT.encode(position) if position.is_valid else (None, None)
        position.release()
        return {name: str(value) for name, value in zip(TRACECONTEXT.fields, values, strict=True) if value is not None}

    def for_others(self, is_adopted: bool = True) -> Context:
        """What is current around an application whose server span somebody else makes: he takes ids that were chosen from the
        id generator. What has only the context to go by finds the Arrival in it. `is_adopted`: contrib will be shown no span
        when it looks (see adoption.py); else there must be none from the start."""
        if self.trace_id and root_ids.can_choose():
            root_ids.choose(self.trace_id, self.span_id)
        return Context({**self.context, KEY: self}) if is_adopted else self.without_span()

    def without_span(self) -> Context:
        """The same, without the caller's position."""
        return Context({KEY: self, request_ids.KEY: self.request_id})

    def over(self) -> None:
        """The response is complete: an adopted span may end."""
        tags.over(self.context, self.span)
        if self.adopted is not None:
            self.adopted.release()
            self.adopted = None
        if self.carrier is not None:
            self.carrier.pop(KEY, None)
            self.carrier = None

    def answers(self) -> dict[str, str]:
        """The headers that tell the caller who his request was: the request id, and the trace where that is another."""
        if self.request_id is None:
            return {}
        said = {"x-request-id": self.request_id}
        position = snapshot(self.inside)
        if position.is_valid and request_ids.as_trace_id(self.request_id) != position.trace_id:
            said["traceresponse"] = str(TRACECONTEXT.encode(position)[0])
        position.release()
        return said


class Held:
    """Keeps somebody else's span open until its response is complete: it ends when it is released, if its maker asked."""

    __slots__ = ("_asked", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._asked = False
        span.end = self._ask  # type: ignore[method-assign]

    def _ask(self, end_time: int | None = None) -> None:
        self._asked = True

    def release(self) -> None:
        vars(self._span).pop("end", None)
        if self._asked:
            end_span(self._span)


def further_in(context: Context, sent: str | bytes | None) -> Arrival:
    """Behind a gateway: what it has decided is kept, and made up for where there was none."""
    text = request_ids.readable(sent)
    trace_id = _trace_id(context)
    if trace_id:
        request_id = text or f"{trace_id:032x}"
        return Arrival(request_ids.in_context(context, request_id), request_id)
    chosen = (request_ids.as_trace_id(text) if text else 0) or new_trace_id()
    request_id = text or f"{chosen:032x}"
    return Arrival(request_ids.in_context(context, request_id), request_id, chosen)


def at_edge(context: Context, sent: str | bytes | None) -> Arrival:
    """At the gateway, from a caller who is trusted: request id and trace id are one from here on."""
    text = request_ids.readable(sent)
    asked = request_ids.as_trace_id(text) if text else 0
    held = _trace_id(context)
    trace_id = held or asked or new_trace_id()
    _count(sent, asked, held)
    request_id = f"{trace_id:032x}"
    return Arrival(
        request_ids.in_context(context, request_id),
        request_id,
        0 if held else trace_id,
        0 if held else _ids.generate_span_id(),
        text if asked != trace_id else None,
    )


def from_stranger(context: Context, sent: str | bytes | None) -> Arrival:
    """At the gateway, from a caller who is not trusted: a trace of its own, linked to his; his request id on record."""
    text = request_ids.readable(sent)
    _count(sent, request_ids.as_trace_id(text) if text else 0, _trace_id(context))
    trace_id = new_trace_id()
    request_id = f"{trace_id:032x}"
    return Arrival(
        request_ids.in_context(Context(), request_id),
        request_id,
        trace_id,
        _ids.generate_span_id(),
        text,
        link_to(context),
    )


def _count(sent: str | bytes | None, asked: int, held: int) -> None:
    """A request id that is not as it should be: `asked`, the trace that it names, and `held`, the one that came with it."""
    if not asked:
        request_ids.count("missing" if sent is None else "bad")
    elif held and asked != held:
        request_ids.count("disagreeing")


def caller() -> tuple[Context | None, bool]:
    """The current context, where a span of it is open: the application was called by a program and not by a server; and
    whether that span is a server's, so that somebody serves this request already."""
    context = current()
    if not context:
        return None, False
    span = trace.get_current_span(context)
    if not span.is_recording():
        return None, False  # what is left of the time when the server was started
    return context, getattr(span, "kind", None) is trace.SpanKind.SERVER


def new_trace_id() -> int:
    """128 random bits."""
    return _ids.generate_trace_id()


def _trace_id(context: Context) -> int:
    position = snapshot(context)
    trace_id = position.trace_id if position.is_valid else 0
    position.release()
    return trace_id
