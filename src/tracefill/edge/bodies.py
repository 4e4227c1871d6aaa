"""WSGI response bodies: read in the context of their request, whoever reads them, and over exactly once.

A server calls the application, reads the body later and closes it at last (PEP 3333), by any thread. So nothing stays attached
between: each step enters the context and leaves it again, and what the body has attached by itself waits for its next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import GeneratorType
from typing import Any

from opentelemetry.context import Context

from tracefill.context import current, scope

__all__ = ["Body", "Over", "covered"]

Over = Callable[[BaseException | None], None]


def covered(body: Iterable[bytes], environ: dict[str, Any], context: Context, over: Over) -> Iterable[bytes]:
    """What to hand to the server for this body, so that `over` is called when it is done with it.

    A list runs none of the application's code any more, and says to the server how long it is: it goes out as it is. So does
    a file that the server knows how to send, but for its `close`.
    """
    kind = type(body)
    if kind is list or kind is tuple:
        over(None)
        return body
    wrapper = environ.get("wsgi.file_wrapper")
    wrapped = Body(body, context, over)
    if isinstance(wrapper, type) and isinstance(body, wrapper) and hasattr(body, "__dict__"):
        vars(body)["close"] = wrapped.close
        return body
    return wrapped


class Body:
    """Passes for the body that it holds. `over(error)` is called once: when the body is closed, has failed or was dropped."""

    def __init__(self, body: Iterable[bytes], context: Context, over: Over) -> None:
        self._body = body
        self._close = getattr(body, "close", None)
        self._context = context
        self._over: Over | None = over
        self._steps: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with scope(self._context):
            try:
                if self._steps is None:
                    self._steps = iter(self._body)
                return next(self._steps)
            except StopIteration:
                if self._close is None or isinstance(self._body, GeneratorType):
                    self._end()  # nothing of the application's is left to run in close()
                raise
            except BaseException as error:
                self._end(error)
                raise
            finally:
                self._context = current()

    def close(self) -> None:
        try:
            if self._close is not None:
                with scope(self._context):
                    self._close()
        except BaseException as error:
            self._end(error)
            raise
        self._end()

    def _end(self, error: BaseException | None = None) -> None:
        over, self._over = self._over, None
        if over is not None:
            over(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def __del__(self) -> None:
        if "_over" in self.__dict__:
            self._end()
