"""Contrib's instrumentation of a library, whose work ours does in its name.

Contrib ends its span before the handler runs, appends to the caller's headers and falls over those of strangers. Where both
are switched on, in whichever order, ours calls the library past contrib's wrappers, with the tracer and the hooks that
contrib was given: one span for each crossing, one header, and it is contrib's.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tracefill.sdk_spans import starter
from tracefill.spans import Tracer
from tracefill.wrapping import Patches, contrib_active

__all__ = ["Contrib"]


class Contrib:
    """Contrib's instrumentor of one library. `default`: the tracer where it is off."""

    def __init__(self, module: str, instrumentor: str, default: Tracer) -> None:
        self._module = module
        self._logger = logging.getLogger(f"{module}.utils")
        self._instrumentor = instrumentor
        self._default = default
        self._given: dict[str, Any] = {}
        self._displaced: dict[tuple[Any, str], Any] = {}
        self._theirs: _Theirs | None = None

    @property
    def active(self) -> bool:
        return contrib_active(self._module, self._instrumentor)

    @property
    def leads(self) -> bool:
        """True when spans are to look like its own: it is switched on, and we were given what it was given."""
        return bool(self._given) and self.active

    @property
    def tracer(self) -> Tracer:
        """Contrib's while it is switched on, else ours."""
        given = self._given.get("tracer")
        if given is None or not self.active:
            return self._default
        if self._theirs is None or self._theirs.given is not given:
            self._theirs = _Theirs(given)
        return self._theirs

    def call_hook(self, name: str, *arguments: Any) -> None:
        """Calls the hook of this name that the user gave contrib, if he did and contrib is on; what it raises is logged as there."""
        hook = self._hook(name)
        if hook is not None:
            try:
                hook(*arguments)
            except Exception as error:
                self._logger.exception(error)

    async def await_hook(self, name: str, *arguments: Any) -> None:
        """The same for a hook that is a coroutine function."""
        hook = self._hook(name)
        if hook is not None:
            try:
                await hook(*arguments)
            except Exception as error:
                self._logger.exception(error)

    def _hook(self, name: str) -> Any:
        hook = self._given.get(name)
        return hook if hook is not None and self.active else None

    def takes_part(self, **given: Any) -> None:
        """What contrib was given, where it does not hide it in a wrapper."""
        self._given |= given

    def beneath(self, function: Any) -> Any:
        """What contrib's wrapper calls; the function itself where it is not contrib's."""
        while _is_contribs(function):
            self._given |= inspect.getclosurevars(function._self_wrapper).nonlocals
            function = function.__wrapped__
        return function

    def step_over(self, owner: Any, *names: str) -> None:
        """Contrib was switched on after us: takes its wrappers off ours. Called whenever a client is made."""
        for name in names:
            top = vars(owner).get(name)
            if _is_contribs(top):
                setattr(owner, name, self.beneath(top))
                self._displaced[owner, name] = top

    def watch(self, patches: Patches, clients: Mapping[Any, Sequence[str]]) -> None:
        """Takes contrib's wrappers off ours as soon as it is switched on; nothing where its module is not imported."""
        instrumentor = getattr(sys.modules.get(self._module), self._instrumentor, None)
        if instrumentor is not None:
            patches.wrap(instrumentor, "_instrument", partial(self._stepping_over, clients))

    def _stepping_over(self, clients: Mapping[Any, Sequence[str]], original: Any) -> Any:
        def _instrument(instrumentor: Any, **given: Any) -> Any:
            result = original(instrumentor, **given)
            for client, names in clients.items():
                self.step_over(client, *names)
            return result

        return _instrument

    def just_came(self, owner: Any, name: str) -> bool:
        """True in the one call that contrib's wrapper makes of ours: it was switched on after us, and no client was made since."""
        if self._module not in sys.modules or not _is_contribs(vars(owner).get(name)):
            return False
        self.step_over(owner, name)
        return True

    def put_back(self) -> None:
        """After our own were undone: contrib's wrappers, where it still counts on them."""
        for (owner, name), top in self._displaced.items():
            if self.active:
                top.__wrapped__ = vars(owner)[name]
                setattr(owner, name, top)
        self._displaced.clear()


def _is_contribs(function: Any) -> bool:
    wrapper = getattr(function, "_self_wrapper", None)
    return wrapper is not None and str(getattr(wrapper, "__module__", "")).startswith("opentelemetry.instrumentation.")


class _Theirs(Tracer):
    """The tracer that contrib was given."""

    __slots__ = ("given",)

    def __init__(self, given: Any) -> None:
        super().__init__("contrib")
        self.given = given
        self._start = starter(given)

    def meet(self, provider: object) -> bool:
        """Stays contrib's, whatever the global provider is; its sampler is asked for each span, as contrib does."""
        self._provider = provider
        return False
