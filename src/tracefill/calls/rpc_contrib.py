"""Contrib's gRPC client interceptors, which leave their work to ours while install() is on.

Contrib's own lose repeated metadata keys, send a streamed request only when its first answer is read, keep their span current
between the answers, and hand out generators that can be neither cancelled nor asked for a status. Its filters and hooks are kept.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context

from tracefill.calls.rpc_spans import CONTRIB, is_on
from tracefill.context import current, scope
from tracefill.wrapping import Patches

__all__ = ["PACKAGE", "step_aside", "step_back"]

PACKAGE = "opentelemetry.instrumentation.grpc"

_patches = Patches()


def step_aside() -> None:
    """From now on contrib's interceptors do nothing, if there are any."""
    if PACKAGE in sys.modules and not _patches.active:
        client = importlib.import_module(f"{PACKAGE}._client").OpenTelemetryClientInterceptor
        aio_client = importlib.import_module(f"{PACKAGE}._aio_client")._BaseAioClientInterceptor
        _patches.wrap(client, "intercept_unary", _intercept)
        _patches.wrap(client, "intercept_stream", _intercept)
        _patches.wrap(aio_client, "tracing_skipped", _tracing_skipped)


def step_back() -> None:
    """They do their own work again."""
    _patches.undo()


def _intercept(original: Any) -> Callable[..., Any]:
    def intercept(self: Any, request: Any, metadata: Any, client_info: Any, invoker: Any) -> Any:
        if not is_on():
            return original(self, request, metadata, client_info, invoker)
        with scope(_known_to_ours(current(), self, client_info)):
            return invoker(request, metadata)

    return intercept


def _known_to_ours(context: Context, interceptor: Any, client_info: Any) -> Context:
    left_out = interceptor._filter is not None and not interceptor._filter(client_info)
    return Context({**context, CONTRIB: None if left_out else interceptor})


def _tracing_skipped(original: Any) -> Callable[..., bool]:
    def tracing_skipped(self: Any, client_call_details: Any) -> bool:
        return is_on() or bool(original(self, client_call_details))

    return tracing_skipped
