"""One HTTP request on its way out: what every client library shares.

    _client = Client("requests", carried_by=("urllib3", "http_client"), contrib=("...requests", "RequestsInstrumentor"))

    call = _client.begin("GET", url)
    if call is not None:                    # None: somebody else traces it, or nobody is to
        call.inject(headers)
        with call:
            call.responded(send(headers).status)

One library rides on another (requests on urllib3 on http.client): the outermost makes the span and writes the headers, and
those that carry it keep quiet, be they ours or contrib's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill import tags
from tracefill._codec import Scope, with_span
from tracefill.calls.http_spans import (
    excluded_urls,
    header_capture,
    method_attributes,
    record_client_status,
    record_failure,
    redacted_url,
    server_address,
    span_name,
)
from tracefill.carriers import pairs, setter
from tracefill.context import current, inject, scope
from tracefill.edge import request_ids
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer, suppressed
from tracefill.wrapping import contrib_active

__all__ = ["Call", "Client", "in_progress", "pass_on", "request_id_left_out", "take_off_stale", "unmark"]

_CALL = "tracefill-http-call"
_COVERING = "tracefill-http-covering"
# Contrib's clients keep quiet below one another by this key of OpenTelemetry's.
_SUPPRESS_HTTP: str = getattr(otel_context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation")

_AUTHORITY = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(?:[^/?#]*@)?([^/?#]*)")
_PLAIN_AUTHORITY = re.compile(r"(?:[^@\\\s]*@)?[^@\\\s]+")
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_VERSIONS = {9: "0.9", 10: "1.0", 11: "1.1", 20: "2"}


class Client:
    """What one library sends. `carried_by`: the libraries that it rides on, by the names of their modules here."""

    def __init__(self, library: str, *, carried_by: Sequence[str] = (), contrib: tuple[str, str] | None = None) -> None:
        self.library = library
        self.carried_by = carried_by
        self._contrib = contrib
        self._tracer = Tracer(f"tracefill.calls.{library}")
        self._excluded = excluded_urls(library.upper())
        self._request_headers = header_capture("client", "request")
        self.response_headers = header_capture("client", "response")

    @property
    def contrib_active(self) -> bool:
        """True while contrib traces this library."""
        return self._contrib is not None and contrib_active(*self._contrib)

    def begin(
        self,
        method: str,
        url: str,
        headers: Any = (),
        *,
        context: Context | None = None,
        resends: int = 0,
    ) -> Call | None:
        """A request that is about to be sent, for the `resends`th time again; None when it is not for us to trace."""
        outer = current() if context is None else context
        if not self.takes(outer) or (self._excluded is not None and self._excluded(url)):
            return None
        covering = outer.get(_COVERING)
        if isinstance(covering, Call) and not covering.is_over:
            if covering.is_of(method, url):
                return None
            if trace.get_current_span(outer) is covering.span:
                outer = covering.outer
        span = None
        if self._tracer.records(outer):
            span = self._tracer.start(
                span_name(method), "client", outer, lambda: self._attributes(method, url, headers, resends)
            )
        return Call(self, outer, span, resends, method, url, headers)

    def takes(self, context: Context | None = None) -> bool:
        """False where requests sent in this context (default: of now) belong to a call of another library, or to nobody."""
        context = current() if context is None else context
        if suppressed(context):
            return False
        call = context.get(_CALL)
        if isinstance(call, Call):
            return self.library not in call.client.carried_by
        return not context.get(_SUPPRESS_HTTP) and not self.contrib_active

    def users_context(self) -> Context | None:
        """The context for code of the user's that runs in the middle of a call of this library; None: the one of now.

        Contrib suppresses there whatever he calls, which is repaired as far as its span shows that contrib did, not he.
        """
        call = in_progress(self)
        if call is not None:
            return call.outer
        context = current()
        if context.get(_SUPPRESS_HTTP) and self._is_in_contribs(context):
            return Context({key: value for key, value in context.items() if key != _SUPPRESS_HTTP})
        return None

    def contribs_context(self) -> Context | None:
        """The context for code of the library's that the user's has come back to from there; None: the one of now."""
        context = current()
        if not context.get(_SUPPRESS_HTTP) and self._is_in_contribs(context):
            return Context({**context, _SUPPRESS_HTTP: True})
        return None

    def _is_in_contribs(self, context: Context) -> bool:
        """True in the middle of a call that contrib traces."""
        if self._contrib is None or not self.contrib_active:
            return False
        made_by = getattr(trace.get_current_span(context), "instrumentation_scope", None)
        return made_by is not None and bool(made_by.name == self._contrib[0])

    def _attributes(self, method: str, url: str, headers: Any, resends: int) -> dict[str, Any]:
        attributes = method_attributes(method)
        attributes["url.full"] = redacted_url(url)
        target = _AUTHORITY.match(url)
        if target is not None:
            scheme, authority = target.groups()
            attributes.update(server_address(authority))
            if "server.port" not in attributes and scheme.lower() in _DEFAULT_PORTS:
                attributes["server.port"] = _DEFAULT_PORTS[scheme.lower()]
        if resends:
            attributes["http.request.resend_count"] = resends
        if self._request_headers is not None:
            attributes.update(self._request_headers(pairs(headers)))
        return attributes


class Call:
    """One request and its answer. `outer` is the context of the caller, `inside` that in which the library works."""

    __slots__ = ("_given", "_method", "_scope", "_url", "client", "inside", "is_over", "outer", "resends", "span")

    def __init__(
        self, client: Client, outer: Context, span: Span | None, resends: int, method: str, url: str, given: Any = ()
    ) -> None:
        self._method = method
        self._url = url
        self._given = given
        self.client = client
        self.outer = outer
        self.span = span
        self.resends = resends
        self.is_over = False
        self.inside = outer if span is None else with_span(outer, span)
        if client.carried_by:
            self.inside = Context({**self.inside, _CALL: self, _SUPPRESS_HTTP: True})
        self._scope: Scope | None = None

    def cover(self) -> None:
        """It may ride on anything: what sends the very same within it stands for the same request, and the rest is beside it."""
        self.inside = Context({**self.inside, _COVERING: self})

    def is_of(self, method: str, url: str) -> bool:
        """True when this is the request that somebody is about to send."""
        return (method, url) == (self._method, self._url)

    def inject(self, headers: Any, *, follows: bool = False) -> None:
        """Writes the position of this request, its tags as far as they may go to this host, and the request id where the
        caller has set none, into what is sent. `follows`: the library follows redirects with these headers, to any host."""
        if tags.declared():
            tags.inject(headers, self.inside, None if follows else _host(self._url), self._given)
        else:
            inject(headers, self.inside)
        pass_on(headers, request_ids.current(self.outer))

    def __enter__(self) -> Call:
        self._scope = scope(self.inside)
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._scope is not None:
            self._scope.__exit__(kind, error, traceback)
            self._scope = None
        self.end(error)

    def responded(self, status: int, version: int | None = None, headers: Iterable[Any] = ()) -> None:
        """The answer has begun. `version` as http.client has it: 11 for HTTP/1.1."""
        span = self.span
        if span is None or self.is_over or not span.is_recording():
            return
        record_client_status(span, status)
        if version in _VERSIONS:
            span.set_attribute("network.protocol.version", _VERSIONS[version])
        if self.client.response_headers:
            span.set_attributes(self.client.response_headers(pairs(headers)))

    def end(self, error: BaseException | None = None) -> None:
        """The request is over; only the first time counts."""
        if self.is_over:
            return
        self.is_over = True
        if self.span is not None:
            if error is not None:
                record_failure(self.span, error)
            end_span(self.span)

    def __del__(self) -> None:
        self.end()  # nobody has waited for the answer


def in_progress(client: Client) -> Call | None:
    """The call of this client within which the caller runs; None when there is none."""
    call = current().get(_CALL)
    return call if isinstance(call, Call) and call.client is client else None


def request_id_left_out() -> str | None:
    """The request id that is missing from requests which contrib traces; None where there is none, or it is ours to send."""
    context = current()
    if isinstance(context.get(_CALL), Call) or suppressed(context):
        return None
    return request_ids.current(context)


def pass_on(headers: Any, request_id: str | None) -> None:
    """Sets the request id, where there is one and the caller has set none himself."""
    if request_id is not None and not _holds(headers, request_ids.HEADER):
        setter.set(headers, request_ids.HEADER, request_id)


def unmark(owner: Any, name: str, mark: str) -> None:
    """Contrib takes off whatever bears its mark. Ours has copied that from contrib's, and is not to be mistaken for it."""
    vars(vars(owner)[name]).pop(mark, None)


def take_off_stale(client: Client, owner: Any, name: str, mark: str) -> None:
    """Contrib was switched off while ours stood on its wrapper, and could not reach it."""
    function = vars(owner)[name]
    if hasattr(function, mark) and not client.contrib_active:
        setattr(owner, name, function.__wrapped__)


def _host(url: str) -> str | None:
    """The host of a URL; None where readers could disagree about it.

    >>> _host("http://me:secret@orders:8000/1"), _host("http://evil.example\\\\@orders/"), _host("/orders")
    ('orders', None, None)
    """
    target = _AUTHORITY.match(url)
    if target is None or not _PLAIN_AUTHORITY.fullmatch(url[target.end(1) + 3 : target.end(2)]):
        return None
    return server_address(target.group(2)).get("server.address")


def _holds(headers: Any, name: str) -> bool:
    wanted = name.lower()
    return any(
        (key.decode("latin-1") if isinstance(key, bytes) else str(key)).lower() == wanted for key, _ in pairs(headers)
    )
