"""urllib3 (1.26 and later): every request carries the context, and has a client span for each time that it is sent.

    tracefill.install(only=["urllib3"])
    urllib3.PoolManager().request("GET", "http://shop/orders")      # pools that exist already do the same

A redirect or a retry is another span, beside the first. Below requests, and whatever else makes spans of its own, none is made.
Without install(): `headers = {}; inject(headers); pool.request("GET", url, headers=headers)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.calls.client_spans import Client
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("urllib3.connectionpool",)

_client = Client(
    "urllib3",
    carried_by=("http_client",),
    contrib=("opentelemetry.instrumentation.urllib3", "URLLib3Instrumentor"),
)
_patches = Patches()


def patch() -> None:
    from urllib3.connectionpool import HTTPConnectionPool

    # `urlopen` comes back to itself for redirects and retries; `_make_request` is one exchange.
    _patches.wrap(HTTPConnectionPool, "_make_request", _make_request)


def unpatch() -> None:
    _patches.undo()


def _make_request(original: Any) -> Callable[..., Any]:
    def _make_request(self: Any, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        headers = kwargs.get("headers")
        call = _client.begin(method, _absolute(self, url), headers, resends=_resends(kwargs.get("retries")))
        if call is None:
            return original(self, conn, method, url, *args, **kwargs)
        with call:
            kwargs["headers"] = {} if headers is None else headers.copy()
            call.inject(kwargs["headers"])
            response = original(self, conn, method, url, *args, **kwargs)
            call.responded(response.status, response.version, response.headers)
        return response

    return _make_request


def _absolute(pool: Any, url: str) -> str:
    if not url.startswith("/"):
        return url  # to a proxy
    host = f"[{pool.host}]" if ":" in pool.host else pool.host
    port = "" if pool.port is None or (pool.scheme, pool.port) in (("http", 80), ("https", 443)) else f":{pool.port}"
    return f"{pool.scheme}://{host}{port}{url}"


def _resends(retries: Any) -> int:
    return len(getattr(retries, "history", ()))
