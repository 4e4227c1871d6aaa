"""What HTTP spans are called and say, for servers and clients alike: the stable HTTP conventions, and no others.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/ (v1.44.0). The variables are those of OpenTelemetry:

| variable | what it holds |
|---|---|
| OTEL_PYTHON_<LIBRARY>_EXCLUDED_URLS, OTEL_PYTHON_EXCLUDED_URLS | patterns of URLs that are to have no span |
| OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_{SERVER,CLIENT}_{REQUEST,RESPONSE} | names of headers to record |
| OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS | names of headers whose values nobody is to see |
| OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS | methods, in the place of those that RFCs define |

Patterns and names are regular expressions, commas between them.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.trace import Span, Status, StatusCode

__all__ = [
    "SHOWN_CHARACTERS",
    "HeaderCapture",
    "call_hook",
    "excluded_urls",
    "header_capture",
    "known_method",
    "method_attributes",
    "record_client_status",
    "record_failure",
    "record_server_status",
    "redacted_query",
    "redacted_url",
    "server_address",
    "span_name",
]

# RFC 9110, RFC 5789 (PATCH) and RFC 10008 (QUERY); https://opentelemetry.io/docs/specs/semconv/registry/attributes/http/
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))

# Header values that are never shown, whatever the variables say.
_SECRET_NAMES = ("authorization", "cookie", "api-?key", "token", "secret", "password", "session", "csrf")

#: What strangers have sent is cut at so many characters before it goes onto a span.
SHOWN_CHARACTERS = 1024

_SECRET_PARAMETERS = re.compile(
    r"(?:(?<=[?&;])|^)"
    r"(AWSAccessKeyId|Signature|sig|X-Goog-Signature|X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=[^&#;]*"
)

UrlTest = Callable[[str], Any]

_logger = logging.getLogger("tracefill")


def _words(variable: str) -> list[str]:
    return [word.strip() for word in os.environ.get(variable, "").split(",") if word.strip()]


_known = frozenset(_words("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS")) or _METHODS


def known_method(method: str) -> str:
    """The method, or `_OTHER`, so that nobody can fill a backend with names of his own.

    >>> known_method("GET"), known_method("get"), known_method("<script>")
    ('GET', 'GET', '_OTHER')
    """
    if method in _known:
        return method
    upper = method.upper()
    return upper if upper in _known else "_OTHER"


def method_attributes(method: str) -> dict[str, Any]:
    """http.request.method, and the original where that is another.

    >>> method_attributes("GET")
    {'http.request.method': 'GET'}
    >>> method_attributes("get")
    {'http.request.method': 'GET', 'http.request.method_original': 'get'}
    """
    known = known_method(method)
    if known == method:
        return {"http.request.method": method}
    return {"http.request.method": known, "http.request.method_original": method[:SHOWN_CHARACTERS]}


@functools.lru_cache(512)
def span_name(method: str, route: str | None = None) -> str:
    """`{method} {route}`, as far as they are known.

    >>> span_name("GET", "/orders/{order_no}"), span_name("BREW")
    ('GET /orders/{order_no}', 'HTTP')
    """
    known = known_method(method)
    name = "HTTP" if known == "_OTHER" else known
    return f"{name} {route}" if route else name


@functools.lru_cache(256)  # a service is called by few names
def server_address(authority: str) -> Mapping[str, Any]:
    """server.address, and server.port where it is given, of a Host header or the authority of a URL.

    >>> server_address("shop.example:8080")
    {'server.address': 'shop.example', 'server.port': 8080}
    >>> server_address("[::1]")
    {'server.address': '::1'}
    """
    host, _, port = authority.rpartition(":")
    if not port.isdecimal() or not port.isascii() or len(port) > 5:
        host, port = authority, ""
    host = host.strip("[]")[:SHOWN_CHARACTERS]
    if not host:
        return {}
    return {"server.address": host, "server.port": int(port)} if port else {"server.address": host}


def redacted_query(query: str) -> str:
    """The query without the values of parameters that are known to be secret.

    >>> redacted_query("page=2&sig=abc")
    'page=2&sig=REDACTED'
    """
    # Each of the names holds one of these: most queries have none, and are not searched name by name.
    if "ig" not in query and "AWS" not in query and "X-Amz" not in query:
        return query
    return _SECRET_PARAMETERS.sub(r"\1=REDACTED", query)


def redacted_url(url: str) -> str:
    """The URL without user, password and the values of secret parameters.

    >>> redacted_url("https://me:secret@shop.example/orders?Signature=abc#top")
    'https://REDACTED:REDACTED@shop.example/orders?Signature=REDACTED#top'
    """
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0] if separator else ""
    if "@" in authority:
        url = f"{scheme}://REDACTED:REDACTED@{rest[authority.rindex('@') + 1 :]}"
    return redacted_query(url) if "?" in url else url


def excluded_urls(library: str, patterns: str | Iterable[str] | None = None) -> UrlTest | None:
    """A test of URLs that are to have no span; None when there is none. `patterns` win over the variables of `library`.

    >>> bool(excluded_urls("FLASK", "health,metrics$")("http://shop/health"))
    True
    >>> excluded_urls("FLASK") is None
    True
    """
    if patterns is None:
        variable = f"OTEL_PYTHON_{library}_EXCLUDED_URLS"
        patterns = _words(variable if variable in os.environ else "OTEL_PYTHON_EXCLUDED_URLS")
    elif isinstance(patterns, str):
        patterns = [word.strip() for word in patterns.split(",")]
    wanted = [pattern for pattern in patterns if pattern]
    return re.compile("|".join(wanted)).search if wanted else None


def header_capture(
    side: str, message: str, names: Iterable[str] | None = None, secret: Iterable[str] | None = None
) -> HeaderCapture | None:
    """The headers of one side that go onto spans, by the names given, else by OpenTelemetry's variables; None for none."""
    if names is None:
        names = _words(f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_{side.upper()}_{message.upper()}")
    if secret is None:
        secret = _words("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS")
    wanted = [name for name in names if name]
    return HeaderCapture(message, wanted, secret) if wanted else None


class HeaderCapture:
    """The headers of a message (request, response) that go onto spans.

    >>> capture = HeaderCapture("request", ["x-tenant", "authorization"])
    >>> capture([("X-Tenant", "a"), ("x-tenant", "b"), ("Authorization", "Basic 123")])
    {'http.request.header.x-tenant': ['a', 'b'], 'http.request.header.authorization': ['[REDACTED]']}
    """

    def __init__(self, message: str, names: Iterable[str], secret: Iterable[str] = ()) -> None:
        self._prefix = f"http.{message}.header."
        self._wanted = re.compile("|".join(names), re.IGNORECASE).fullmatch
        self._secret = re.compile("|".join((*_SECRET_NAMES, *secret)), re.IGNORECASE).search

    def __call__(self, headers: Iterable[Sequence[Any]]) -> dict[str, list[str]]:
        """Attributes of these (name, value) pairs, of str or bytes."""
        found: dict[str, list[str]] = {}
        for pair in headers:
            name, value = _text(pair[0]).lower(), _text(pair[1])
            if self._wanted(name):
                shown = "[REDACTED]" if self._secret(name) else value[:SHOWN_CHARACTERS]
                found.setdefault(self._prefix + name, []).append(shown)
        return found


def record_server_status(span: Span, code: int) -> None:
    """The status code; an error where the server is to blame (5xx), unless an exception has said already which."""
    span.set_attribute("http.response.status_code", code)
    if code >= 500 and not _has_failed(span):
        span.set_attribute("error.type", str(code))
        span.set_status(Status(StatusCode.ERROR))


def record_client_status(span: Span, code: int) -> None:
    """The status code; an error where the request has failed for whatever reason (4xx and 5xx)."""
    span.set_attribute("http.response.status_code", code)
    if code >= 400:
        span.set_attribute("error.type", str(code))
        span.set_status(Status(StatusCode.ERROR))


def record_failure(span: Span, error: BaseException) -> None:
    """The exception that ended the request, as an event, as error.type and as the status.

    One that is no Exception (a cancelled task, a closed generator) leaves the span as it is: nobody failed.
    """
    if isinstance(error, Exception) and span.is_recording():
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        span.set_attribute("error.type", name)
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, f"{kind.__name__}: {error}"))


def call_hook(hook: Callable[..., object], *arguments: Any) -> None:
    """A hook of the user's; what it raises is logged, and the request goes on."""
    try:
        hook(*arguments)
    except Exception:
        _logger.warning("the hook %r failed", hook, exc_info=True)


def _has_failed(span: Span) -> bool:
    status = getattr(span, "status", None)
    return status is not None and status.status_code is StatusCode.ERROR


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else str(value)
