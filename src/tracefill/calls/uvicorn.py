"""uvicorn (0.20 and later): see `tracefill.calls.asgi`.

It also sends the spans off before the process goes: uvicorn ends by the signal that stopped it, and nothing that is
registered with `atexit` runs then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from opentelemetry import trace

from tracefill.calls.asgi_spans import serving
from tracefill.edge.entrances import wrap_attribute
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("uvicorn.server",)

_FLUSH_TIMEOUT_MS = 5_000

_patches = Patches()


def patch() -> None:
    from uvicorn.config import Config
    from uvicorn.server import Server

    wrap_attribute(_patches, Config, "loaded_app", _served)
    _patches.wrap(Server, "shutdown", _shutdown)


def unpatch() -> None:
    _patches.undo()
    serving.stop()


def _served(config: Any, app: Any) -> Any:
    # While it is loading uvicorn looks at the application itself, to see of which version of ASGI it is.
    return serving.served(app) if config.loaded else app


def _shutdown(original: Any) -> Callable[..., Any]:
    async def shutdown(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            await original(self, *args, **kwargs)
        finally:
            flush = getattr(trace.get_tracer_provider(), "force_flush", None)
            if flush is not None:
                await asyncio.get_running_loop().run_in_executor(None, flush, _FLUSH_TIMEOUT_MS)

    return shutdown
