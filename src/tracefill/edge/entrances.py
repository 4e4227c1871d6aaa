"""How applications that exist already are given their edge: where a server keeps them, or where they are called.

Nothing is written into objects of the program: the edges are kept here, and go when the objects go.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from tracefill.edge import makers
from tracefill.wrapping import Patches

__all__ = ["ServerAttribute", "Serving", "wrap_attribute"]

_ABSENT = object()


class Serving:
    """Gives applications of one kind (WSGI, ASGI) the edge and the server span of that kind.

    `edge(app, spanned, reached)` and `middleware(app, library=name)` are the kind's own classes.
    """

    def __init__(self, edge: Any, middleware: Any) -> None:
        self._edge = edge
        self._middleware = middleware
        self._made: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
        self._gateways: weakref.WeakSet[Any] = weakref.WeakSet()

    def served(self, app: Any) -> Any:
        """The application as a server is to see it; one that has a Gateway keeps that, with the span inside of it."""
        gateway = next((layer for layer in makers.layers(app) if isinstance(layer, self._edge)), None)
        if gateway is None:
            return self._edge(app, self._spanned(app, app))
        if gateway.spanned is gateway.app:
            gateway.spanned = self._spanned(gateway.app, gateway.app)
            self._gateways.add(gateway)
        return app

    def entered(self, app: Any, entry: Callable[..., Any]) -> Any:
        """The application of a framework, called by whomever: `entry(app, ...)` with the edge around it."""
        made = self._made.setdefault(app, {})  # by entry: FastAPI's calls that of Starlette, which it inherits
        found = made.get(entry)
        if found is None:
            held, seen = weakref.ref(app), weakref.proxy(app)

            def call(*arguments: Any) -> Any:
                return entry(held(), *arguments)

            found = self._edge(call, self._spanned(call, seen), reached=False, others=makers.others(seen))
            made[entry] = found
        return found

    def stop(self) -> None:
        """Gateways are what they were before."""
        for gateway in self._gateways:
            gateway.spanned = gateway.app
        self._gateways.clear()
        self._made.clear()

    def _spanned(self, call: Any, app: Any) -> Any:
        return call if makers.has_middleware(app) else self._middleware(call, library=makers.framework(app))


class ServerAttribute:
    """`patch()` and `unpatch()` of a server that keeps its application in an attribute."""

    def __init__(self, serving: Serving, module: str, server: str, attribute: str) -> None:
        self._serving = serving
        self._module, self._server, self._attribute = module, server, attribute
        self._patches = Patches()

    def patch(self) -> None:
        server = getattr(sys.modules[self._module], self._server)
        wrap_attribute(self._patches, server, self._attribute, lambda _, app: self._serving.served(app))

    def unpatch(self) -> None:
        self._patches.undo()
        self._serving.stop()


def wrap_attribute(patches: Patches, owner: type, name: str, wrapper: Callable[[Any, Any], Any]) -> None:
    """From now on `holder.name` is `wrapper(holder, value)`, for each instance of `owner`: also those that exist already."""
    made: weakref.WeakKeyDictionary[Any, tuple[Any, Any]] = weakref.WeakKeyDictionary()
    default = vars(owner).get(name, _ABSENT)

    def read(holder: Any) -> Any:
        value = vars(holder).get(name, default)
        if value is _ABSENT:
            raise AttributeError(f"{type(holder).__name__!r} object has no attribute {name!r}")
        if value is None:
            return None
        known = made.get(holder)
        if known is not None and known[0] is value:
            return known[1]
        wrapped = wrapper(holder, value)
        if wrapped is not value:  # else it may be another time
            made[holder] = (value, wrapped)
        return wrapped

    def write(holder: Any, value: Any) -> None:
        vars(holder)[name] = value

    def delete(holder: Any) -> None:
        del vars(holder)[name]

    patches.replace(owner, name, property(read, write, delete))
