"""The edge of a WSGI application: request ids in and out, whoever makes the server span."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.context import Context

from tracefill import tags
from tracefill.context import extract, scope
from tracefill.edge import makers, root_ids
from tracefill.edge.adoption import is_adopted
from tracefill.edge.arrivals import KEY, Arrival, caller, further_in
from tracefill.edge.bodies import covered

__all__ = ["Edge", "Environ", "StartResponse", "WSGIApplication", "as_environ", "path_of"]

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApplication = Callable[[Environ, StartResponse], Iterable[bytes]]


class Edge:
    """The application, behind a gateway: request ids are kept, put on record, passed on and sent back.

    `spanned`, the application with a server span around it, is called where nobody within `app` makes one. `reached` is False
    where a program may have called the application by itself, and not a server. `others` are looked for where they are not
    given.
    """

    def __init__(
        self,
        app: WSGIApplication,
        spanned: WSGIApplication | None = None,
        *,
        reached: bool = True,
        others: tuple[makers.Maker, ...] | None = None,
    ) -> None:
        self.app = app
        self.spanned = spanned or app
        self._reached = reached
        self._others = others

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        base, served = (None, False) if self._reached else caller()
        if self._others is None:
            self._others = makers.others(self.app)
        others = any(makes_span() for makes_span in self._others) and not self._shuns(environ)
        # Within an open span, others make none of their own for a server.
        if KEY in environ or served or (others and base is not None):
            return self.app(environ, start_response)
        environ, arrival = self._meet(environ, base, others)
        return self._serve(environ, start_response, arrival, others)

    def _shuns(self, environ: Environ) -> bool:
        shuns = getattr(self.spanned, "shuns", None)
        return shuns is not None and bool(shuns(environ))

    def _meet(self, environ: Environ, base: Context | None, others: bool) -> tuple[Environ, Arrival]:
        """Who the request is, and the environ that the application is to see."""
        arrival = further_in(extract(environ, base), environ.get("HTTP_X_REQUEST_ID"))
        if tags.declared():
            arrival.bring_tags(environ, path_of(environ))
        if others and "HTTP_TRACEPARENT" not in environ:
            environ.update(as_environ(arrival.written()))
        return environ, arrival

    def _serve(
        self, environ: Environ, start_response: StartResponse, arrival: Arrival, others: bool
    ) -> Iterable[bytes]:
        def answering(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, _answered(headers, arrival), *rest)

        def over(_: BaseException | None) -> None:
            arrival.over()

        try:
            with scope(arrival.for_others(is_adopted()) if others else arrival.context):
                body = (self.app if others else self.spanned)(arrival.within(environ), answering)
        except BaseException:
            arrival.over()
            raise
        finally:
            if others:
                root_ids.forget()
        return body if arrival.begun else covered(body, environ, arrival.inside, over)


def path_of(environ: Environ) -> str:
    """The path, without percent codes."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def as_environ(headers: dict[str, str]) -> Environ:
    """HTTP headers under the names that WSGI gives them."""
    return {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}


def _answered(headers: list[tuple[str, str]], arrival: Arrival) -> list[tuple[str, str]]:
    try:
        present = {name.lower() for name, _ in headers}
    except (AttributeError, TypeError, ValueError):
        return headers  # not as PEP 3333 has them: the server says so
    return [*headers, *(line for line in arrival.answers().items() if line[0] not in present)]
