"""Generators whose context is their own: of where they were made, whoever runs them, wherever they are closed.

    from tracefill.handoff import generators

    @generators.bind
    def rows(query):
        with tracer.start_as_current_span("rows"):      # held open across the yields
            for row in cursor(query):
                yield row                               # whoever consumes does not see the span; the code above always does

Works on generators and async generators, with every runtime context; `OTEL_PYTHON_CONTEXT=tracefill` does nearly the same for
unchanged code, and without the copy of the context variables that this takes of where the generator is made.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, TypeVar, cast, overload

__all__ = ["BoundAsyncGenerator", "BoundGenerator", "bind"]

Item = TypeVar("Item")


@overload
def bind(generator: Generator[Item, Any, Any]) -> BoundGenerator: ...
@overload
def bind(generator: AsyncGenerator[Item, Any]) -> BoundAsyncGenerator: ...
@overload
def bind(generator: Callable[..., Any]) -> Callable[..., Any]: ...
def bind(generator: Any) -> Any:
    """The generator, bound to the context of now; or the generator function, whose every generator is bound when it is made.

    Raises TypeError for anything else.

    >>> @bind
    ... def count():
    ...     yield from (1, 2)
    >>> list(count())
    [1, 2]
    """
    if inspect.isgenerator(generator):
        return BoundGenerator(generator)
    if inspect.isasyncgen(generator):
        return BoundAsyncGenerator(generator)
    if inspect.isgeneratorfunction(generator) or inspect.isasyncgenfunction(generator):
        return _bound_function(generator)
    raise TypeError(f"generator: expected a generator or a generator function, got {type(generator).__name__}")


def _bound_function(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Any:
        return bind(function(*args, **kwargs))

    return bound


class BoundGenerator(Iterator[Any]):
    """A generator each of whose steps runs in context variables of its own."""

    __slots__ = ("_generator", "_variables")

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator
        self._variables = contextvars.copy_context()

    def __next__(self) -> Any:
        return self._variables.run(next, self._generator)

    def send(self, value: Any) -> Any:
        return self._variables.run(self._generator.send, value)

    def throw(self, *error: Any) -> Any:
        return self._variables.run(self._generator.throw, *error)

    def close(self) -> None:
        self._variables.run(self._generator.close)

    def __del__(self) -> None:
        self.close()


class BoundAsyncGenerator(AsyncIterator[Any]):
    """An async generator each of whose steps runs in context variables of its own."""

    __slots__ = ("__weakref__", "_generator", "_variables")  # event loops keep weak references to their generators

    def __init__(self, generator: AsyncGenerator[Any, Any], variables: contextvars.Context | None = None) -> None:
        self._generator = generator
        self._variables = contextvars.copy_context() if variables is None else variables

    def __anext__(self) -> Awaitable[Any]:
        return self.asend(None)

    async def asend(self, value: Any) -> Any:
        with self._collected_as_bound():
            step = self._generator.asend(value)
        return await _Steps(self._variables, step)

    async def athrow(self, *error: Any) -> Any:
        return await _Steps(self._variables, self._generator.athrow(*error))

    async def aclose(self) -> None:
        await _Steps(self._variables, self._generator.aclose())

    @contextlib.contextmanager
    def _collected_as_bound(self) -> Iterator[None]:
        """The event loop closes a generator that is collected; it notes how in the first step."""
        collect, variables = sys.get_asyncgen_hooks().finalizer, self._variables
        if collect is None:
            yield
            return
        # The event loop asks nothing of it but `aclose()`.
        sys.set_asyncgen_hooks(finalizer=lambda own: collect(cast(Any, BoundAsyncGenerator(own, variables))))
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(finalizer=collect)


class _Steps:
    """What is awaited, run step by step in these context variables."""

    def __init__(self, variables: contextvars.Context, awaited: Awaitable[Any]) -> None:
        self._variables = variables
        self._steps: Any = awaited.__await__()

    def __await__(self) -> _Steps:
        return self

    def __iter__(self) -> _Steps:
        return self

    def __next__(self) -> Any:
        return self._variables.run(next, self._steps)

    def send(self, value: Any) -> Any:
        return self._variables.run(self._steps.send, value)

    def throw(self, *error: Any) -> Any:
        return self._variables.run(self._steps.throw, *error)

    def close(self) -> None:
        self._variables.run(self._steps.close)
