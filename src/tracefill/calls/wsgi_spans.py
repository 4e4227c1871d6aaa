"""The server spans of WSGI applications: what every WSGI server and framework shares."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill import tags
from tracefill._codec import Scope, enter_scope
from tracefill.calls.http_spans import (
    SHOWN_CHARACTERS,
    call_hook,
    header_capture,
    method_attributes,
    record_failure,
    record_server_status,
    redacted_query,
    server_address,
    span_name,
)
from tracefill.calls.http_spans import excluded_urls as url_test
from tracefill.context import current, extract
from tracefill.edge import makers
from tracefill.edge.arrivals import KEY, Arrival, caller
from tracefill.edge.bodies import Over, covered
from tracefill.edge.entrances import Serving
from tracefill.edge.wsgi import Edge, Environ, StartResponse, WSGIApplication, path_of
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer

__all__ = ["Middleware", "failed", "routed", "serving"]

_tracer = Tracer("tracefill.calls.wsgi")

RequestHook = Callable[[Span, Environ], object]
ResponseHook = Callable[[Span, Environ, str, list[tuple[str, str]]], object]


def _nothing(_: BaseException | None) -> None:
    pass


class Middleware:
    """The application with a server span around each request.

    Where contrib's middleware or instrumentation is within, the span is contrib's, and this does nothing.
    `excluded_urls`: patterns of URLs without a span. `request_hook(span, environ)` is called when the span has begun,
    `response_hook(span, environ, status, headers)` when the response has. `request_headers`, `response_headers`: names of
    headers to record; `secret_headers`: names of those whose values are not to be seen. All but the hooks can also be set by
    OpenTelemetry's variables, see `http_spans`.
    """

    makes_server_span = True

    def __init__(
        self,
        app: WSGIApplication,
        *,
        excluded_urls: str | Iterable[str] | None = None,
        request_hook: RequestHook | None = None,
        response_hook: ResponseHook | None = None,
        request_headers: Iterable[str] | None = None,
        response_headers: Iterable[str] | None = None,
        secret_headers: Iterable[str] | None = None,
        library: str = "HTTP",
    ) -> None:
        self.app = app
        self._contribs: tuple[makers.Maker, ...] | None = None
        self._is_plain = False  # nobody else's span to leave alone and no URL excluded, as far as is known
        self._excluded = url_test(library, excluded_urls)
        self._library = library
        self._request_hook = request_hook
        self._response_hook = response_hook
        self._request_headers = header_capture("server", "request", request_headers, secret_headers)
        self._response_headers = header_capture("server", "response", response_headers, secret_headers)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        met = _tracer.enter(environ, KEY) if self._is_plain else None
        if type(met) is Scope:  # the caller says no, and there is nothing else to look at
            try:
                body = self.app(environ, start_response)
                return body if type(body) is list else covered(body, environ, current(), _nothing)
            finally:
                met.close()
        if met is not None:
            return self._record(environ, start_response, Arrival(met))
        if self._is_contribs(environ):
            return self.app(environ, start_response)
        return self._look(environ, start_response)

    def _is_contribs(self, environ: Environ) -> bool:
        """Whether the span is contrib's, whose middleware or instrumentation is within."""
        if self._contribs is None:
            self._contribs = makers.contribs(self.app)
            self._is_plain = not self._contribs and self._excluded is None
        return any(makes_span() for makes_span in self._contribs) and not self.shuns(environ)

    def shuns(self, environ: Environ) -> bool:
        """Whether this URL is excluded by the variables of a framework, which contrib's instrumentation of it reads too."""
        return self._library != "HTTP" and self._excluded is not None and bool(self._excluded(_url(environ)))

    def _look(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        arrival = environ.get(KEY)
        if arrival is not None:
            if arrival.span is not None:
                return self.app(environ, start_response)
            context = arrival.context
        else:
            base, is_served = caller()
            if is_served:
                return self.app(environ, start_response)
            context = tags.received(extract(environ, base), environ, path_of(environ))
        if _tracer.records(context) and not (self._excluded is not None and self._excluded(_url(environ))):
            return self._record(environ, start_response, arrival or Arrival(context))
        return self._pass(environ, start_response, context)

    def _pass(self, environ: Environ, start_response: StartResponse, context: Context) -> Iterable[bytes]:
        """A request that is to have no span."""
        over = _tags_over(context) if tags.declared() else _nothing
        opened = enter_scope(context)
        try:
            return covered(self.app(environ, start_response), environ, current(), over)
        except BaseException as error:
            over(error)
            raise
        finally:
            opened.close()

    def _record(self, environ: Environ, start_response: StartResponse, arrival: Arrival) -> Iterable[bytes]:
        span = arrival.begin(_tracer, span_name(environ["REQUEST_METHOD"]), self._attributes(environ))

        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            self._respond(span, environ, status, headers)
            return start_response(status, headers, *rest)

        def over(error: BaseException | None) -> None:
            if error is not None:
                record_failure(span, error)
            arrival.over()
            end_span(span)

        opened = enter_scope(arrival.inside)
        try:
            if self._request_hook is not None:
                call_hook(self._request_hook, span, environ)
            body = self.app(arrival.within(environ), started)
        except BaseException as error:
            over(error)
            raise
        finally:
            opened.close()
        return covered(body, environ, arrival.inside, over)

    def _respond(self, span: Span, environ: Environ, status: str, headers: list[tuple[str, str]]) -> None:
        if span.is_recording():
            _find_route(environ)
            if status[:3].isdecimal():
                record_server_status(span, int(status[:3]))
            if self._response_headers is not None:
                span.set_attributes(self._response_headers(headers))
        if self._response_hook is not None:
            call_hook(self._response_hook, span, environ, status, headers)

    def _attributes(self, environ: Environ) -> dict[str, Any]:
        get = environ.get
        attributes = {
            **_common_attributes(
                environ["REQUEST_METHOD"],
                get("wsgi.url_scheme", "http"),
                get("SERVER_PROTOCOL"),
                _authority(environ)[:SHOWN_CHARACTERS],
                get("HTTP_USER_AGENT", "")[:SHOWN_CHARACTERS],
            ),
            "url.path": _path(environ),
        }
        if query := get("QUERY_STRING"):
            attributes["url.query"] = redacted_query(query)[:SHOWN_CHARACTERS]
        if address := get("REMOTE_ADDR"):
            attributes["client.address"] = address
        if self._request_headers is not None:
            attributes.update(self._request_headers(_headers(environ)))
        return attributes


@functools.lru_cache(256)
def _common_attributes(method: str, scheme: str, protocol: str | None, authority: str, agent: str) -> Mapping[str, Any]:
    """What the requests of one client to one host have in common."""
    attributes = {**method_attributes(method), "url.scheme": scheme, **server_address(authority)}
    if agent:
        attributes["user_agent.original"] = agent
    if protocol:
        attributes["network.protocol.version"] = protocol.removeprefix("HTTP/")
    return attributes


serving = Serving(Edge, Middleware)

_is_plain = re.compile(r"[\w./~-]*", re.ASCII).fullmatch  # nothing to quote, as in most paths


def routed(environ: Environ, route: str) -> None:
    """A framework has found the route of the request that this environ belongs to."""
    arrival = environ.get(KEY)
    if arrival is not None:
        route = environ.get("SCRIPT_NAME", "") + route
        arrival.routed(span_name(environ["REQUEST_METHOD"], route), route)


def failed(environ: Environ, error: BaseException) -> None:
    """A framework answers for an exception that the request has ended with."""
    arrival = environ.get(KEY)
    if arrival is not None and arrival.begun:
        record_failure(arrival.span, error)


def _find_route(environ: Environ) -> None:
    """Flask, and what else is built on Werkzeug, keeps its request here until it has answered."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    if rule is not None:
        routed(environ, rule.rule)


def _tags_over(context: Context) -> Over:
    return lambda _: tags.over(context, None)


def _url(environ: Environ) -> str:
    return f"{environ.get('wsgi.url_scheme', 'http')}://{_authority(environ)}{_path(environ)}"


def _authority(environ: Environ) -> str:
    host = environ.get("HTTP_HOST")
    return host if host else f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT', '')}"


def _path(environ: Environ) -> str:
    """As the client wrote it, where the server tells; PATH_INFO has lost its percent codes."""
    target = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if target and target.startswith("/"):
        return str(target.partition("?")[0][:SHOWN_CHARACTERS])
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return (path if _is_plain(path) else quote(path.encode("latin-1", "replace")))[:SHOWN_CHARACTERS] or "/"


def _headers(environ: Environ) -> Iterable[tuple[str, str]]:
    for key, value in environ.items():
        if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            yield key.removeprefix("HTTP_").replace("_", "-"), str(value)
