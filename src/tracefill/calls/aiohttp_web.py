"""aiohttp.web (3.9 and later): a server span for each request, named after its route.

    tracefill.install()
    web.run_app(app)

The span covers handlers and middlewares, responses that are streamed after the handler has returned, and all that happens on
a websocket. Where contrib's middleware is in the application, that makes the span.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tracefill import tags
from tracefill.calls.http_spans import (
    SHOWN_CHARACTERS,
    HeaderCapture,
    UrlTest,
    excluded_urls,
    header_capture,
    method_attributes,
    record_failure,
    record_server_status,
    redacted_query,
    server_address,
    span_name,
)
from tracefill.context import extract, scope
from tracefill.edge import root_ids
from tracefill.edge.arrivals import KEY, Arrival, further_in
from tracefill.edge.asgi import tasks_wait
from tracefill.sdk_spans import end_span
from tracefill.spans import Tracer
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "patch", "scope", "unpatch"]

LIBRARIES = ("aiohttp.web_protocol",)

_tracer = Tracer("tracefill.calls.aiohttp_web")
_patches = Patches()
_excluded: UrlTest | None = None
_request_headers: HeaderCapture | None
_response_headers: HeaderCapture | None


def patch() -> None:
    global _excluded, _request_headers, _response_headers
    from aiohttp.web_protocol import RequestHandler
    from aiohttp.web_request import BaseRequest, Request

    _excluded = excluded_urls("AIOHTTP_SERVER")
    _request_headers, _response_headers = header_capture("server", "request"), header_capture("server", "response")
    _patches.wrap(RequestHandler, "_handle_request", _handle_request)
    _patches.wrap(RequestHandler, "finish_response", _finish_response)
    _patches.wrap(BaseRequest, "_prepare_hook", _prepare_hook)
    _patches.wrap(Request, "_prepare_hook", _prepare_hook)


def unpatch() -> None:
    _patches.undo()


def _handle_request(original: Any) -> Callable[..., Any]:
    async def handle_request(self: Any, request: Any, start_time: Any, request_handler: Any) -> Any:
        sent = request.headers.getall("X-Request-ID", [None])
        arrival = further_in(extract(request.headers), ",".join(sent) if sent[0] is not None else None)
        if tags.declared():
            arrival.bring_tags(request.headers, request.path)
        arrival.within(getattr(request, "_state", request))  # request[key] warns of keys that are texts
        try:
            is_excluded = _excluded is not None and _excluded(str(request.url))
            if not is_excluded and _has_contrib(request_handler):
                with scope(arrival.for_others()):
                    return await original(self, request, start_time, request_handler)
            if is_excluded or not _tracer.records(arrival.context):
                with scope(arrival.context):
                    return await original(self, request, start_time, request_handler)
            return await _record(self, original, request, start_time, request_handler, arrival)
        finally:
            root_ids.forget()
            arrival.over()

    return handle_request


async def _record(self: Any, original: Any, request: Any, start_time: Any, handler: Any, arrival: Arrival) -> Any:
    span = arrival.begin(_tracer, span_name(request.method), _attributes(request))

    async def handle(request: Any) -> Any:
        try:
            return await handler(request)
        except BaseException as error:
            if not hasattr(error, "status_code"):  # an answer like any other, for all that it is raised
                record_failure(span, error)
            raise
        finally:
            _find_route(request, arrival)

    try:
        with scope(arrival.inside):
            response, reset = await original(self, request, start_time, handle)
            record_server_status(span, response.status)
            if _response_headers is not None:
                span.set_attributes(_response_headers(response.headers.items()))
            if tasks_wait():
                await asyncio.sleep(0)
            return response, reset
    finally:
        end_span(span)


def _finish_response(original: Any) -> Callable[..., Any]:
    async def finish_response(self: Any, request: Any, *args: Any) -> Any:
        arrival = request.get(KEY)
        if arrival is None:
            return await original(self, request, *args)
        with scope(arrival.inside):  # contrib has left its span when the handler returned
            return await original(self, request, *args)

    return finish_response


def _prepare_hook(original: Any) -> Callable[..., Any]:
    async def prepare_hook(self: Any, response: Any) -> None:
        await original(self, response)
        arrival = self.get(KEY)
        if arrival is not None:
            for name, value in arrival.answers().items():
                response.headers.setdefault(name, value)

    return prepare_hook


def _has_contrib(request_handler: Any) -> bool:
    app = getattr(request_handler, "__self__", None)
    return any(
        getattr(middleware, "__module__", "") == "opentelemetry.instrumentation.aiohttp_server"
        for middleware in getattr(app, "_middlewares", ())
    )


def _find_route(request: Any, arrival: Arrival) -> None:
    resource = getattr(getattr(getattr(request, "match_info", None), "route", None), "resource", None)
    if resource is not None:
        arrival.routed(span_name(request.method, resource.canonical), resource.canonical)


def _attributes(request: Any) -> dict[str, Any]:
    path, _, query = request.raw_path.partition("?") if hasattr(request, "raw_path") else (request.path, "", "")
    attributes = method_attributes(request.method)
    attributes["url.scheme"] = request.scheme
    attributes["url.path"] = path[:SHOWN_CHARACTERS]
    if query:
        attributes["url.query"] = redacted_query(query)[:SHOWN_CHARACTERS]
    attributes.update(server_address(request.headers.get("Host", "")))
    if request.remote:
        attributes["client.address"] = request.remote
    if agent := request.headers.get("User-Agent"):
        attributes["user_agent.original"] = agent[:SHOWN_CHARACTERS]
    attributes["network.protocol.version"] = f"{request.version.major}.{request.version.minor}"
    if _request_headers is not None:
        attributes.update(_request_headers(request.headers.items()))
    return attributes
