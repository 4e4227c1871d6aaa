"""The switchboard behind install(), uninstall() and installed(): what is patched, by whom, how to undo it.

Each module of gateway/, calls/, handoff/, messages/, jobs/ and data/ that has `patch()` and `unpatch()` takes part, under its
own name. It says by `LIBRARIES` which imports it waits for (none: the standard library, patched at once) and by `OPT_IN` that
it has to be asked for by name, because a plain program sees the difference; `OPT_IN = "queues"`: it goes with `queues=True`.
One that starts processes has `same_as_here`, and finds there what switches on in them what is on here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import pkgutil
import sys
import threading
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["Instrumentor", "install", "installed", "uninstall"]

LAYERS = ("gateway", "calls", "handoff", "messages", "jobs", "data")
OPT_INS = ("queues", "subprocess")

_logger = logging.getLogger("tracefill")
_lock = threading.RLock()
_on: dict[str, ModuleType] = {}
_waiting: dict[str, list[tuple[str, ModuleType]]] = {}


def install(
    *, only: Iterable[str] | None = None, skip: Iterable[str] = (), queues: bool = False, subprocess: bool = False
) -> None:
    """Fills the gaps of every library that is there, now or as soon as it is imported.

    `only`, `skip`: names of integrations (`tracefill.installed()` lists those that are on). `queues`: an item taken from a
    queue brings its producer's context. `subprocess`: programs that are started find TRACEPARENT in their environment.
    May be called again, with other names too; raises ValueError for a name that is no integration.

    >>> import tracefill
    >>> tracefill.install(only=["threads"])
    >>> tracefill.installed()
    ['threads']
    >>> tracefill.uninstall()
    """
    available = _integrations()
    opted_in = {name for name, on in (("queues", queues), ("subprocess", subprocess)) if on}
    wanted = _checked(only, available) if only is not None else None
    left_out = _checked(skip, available)
    with _lock:
        for name, module in available.items():
            opt_in = getattr(module, "OPT_IN", False)
            asked = not opted_in.isdisjoint((name, opt_in)) or (name in wanted if wanted is not None else not opt_in)
            if asked and name not in left_out and name not in _on:
                _switch_on(name, module)


def uninstall() -> None:
    """Undoes all that install() did, completely."""
    with _lock:
        _waiting.clear()
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        while _on:
            _, module = _on.popitem()
            module.unpatch()


def installed() -> list[str]:
    """The names of the integrations that are on; those that still wait for their library's import are not."""
    with _lock:
        return sorted(_on)


class Instrumentor:
    """What `opentelemetry-instrument` finds by the entry point `tracefill` of `opentelemetry_instrumentor`: install().

    `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=tracefill` switches it off. A library that is named there gets no spans from
    tracefill either. `TRACEFILL_OPT_IN=queues,subprocess` asks for what install() has to be asked for.

    >>> from tracefill.patches import Instrumentor
    >>> Instrumentor().instrument(only=["threads"])
    >>> Instrumentor().uninstrument()
    """

    def instrument(self, *, only: Iterable[str] | None = None, **_: Any) -> None:
        """Installs; what else an instrumentor is told (tracer_provider, skip_dep_check) has no meaning here."""
        disabled = {name.replace("-", "_") for name in _listed("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS")}
        opted_in = _listed("TRACEFILL_OPT_IN")
        for name in opted_in.difference(OPT_INS):
            _logger.warning(
                "TRACEFILL_OPT_IN names %r, which is not to be had; expected %s", name, " or ".join(OPT_INS)
            )
        install(
            only=only,
            skip=disabled.intersection(_integrations()),
            queues="queues" in opted_in,
            subprocess="subprocess" in opted_in,
        )

    def uninstrument(self, **_: Any) -> None:
        uninstall()

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        """None: tracefill waits for whichever library is imported."""
        return ()


def _listed(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",")} - {""}


class _SameAsHere:
    """Pickles as what is on here, or waits for its library; unpickled in another process, the same is on there."""

    def __reduce__(self) -> tuple[Any, ...]:
        with _lock:
            return _resume, (sorted({*_on, *(name for waiting in _waiting.values() for name, _ in waiting)}),)


def _resume(names: Sequence[str]) -> _SameAsHere:
    try:
        install(only=set(names) & set(_integrations()))
    except Exception:  # the other process has its own work to do, with us or without
        _logger.debug("could not be switched on in this process", exc_info=True)
    return same_as_here


same_as_here = _SameAsHere()


def _integrations() -> dict[str, ModuleType]:
    found: dict[str, ModuleType] = {}
    for layer in LAYERS:
        package = importlib.import_module(f"tracefill.{layer}")
        for entry in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{entry.name}")
            if hasattr(module, "patch") and hasattr(module, "unpatch"):
                found[entry.name] = module
    return found


def _checked(names: Iterable[str], available: dict[str, Any]) -> set[str]:
    if isinstance(names, str):
        raise TypeError(f"expected a list of integration names, got the single str {names!r}; write [{names!r}]")
    asked = set(names)
    unknown = asked - set(available)
    if unknown:
        raise ValueError(
            f"no integration is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(available))}"
        )
    return asked


def _switch_on(name: str, module: ModuleType) -> None:
    libraries: Sequence[str] = getattr(module, "LIBRARIES", ())
    absent = [library for library in libraries if library not in sys.modules]
    is_none_there = bool(libraries) and len(absent) == len(libraries)
    if is_none_there or getattr(module, "EACH", False):
        for library in absent:
            _wait_for(library, name, module)
    if is_none_there:
        return
    if hasattr(module, "same_as_here"):
        vars(module).update(same_as_here=same_as_here)
    try:
        module.patch()
    except Exception:  # a library of a version that we do not know must not keep the program from starting
        _logger.warning("%s could not be switched on and is left as it was", name, exc_info=True)
        module.unpatch()
        _on.pop(name, None)
        return
    _on[name] = module


def _wait_for(library: str, name: str, module: ModuleType) -> None:
    waiting = _waiting.setdefault(library, [])
    if (name, module) not in waiting:
        waiting.append((name, module))
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _imported(library: str) -> None:
    with _lock:
        for name, module in _waiting.pop(library, ()):
            if name not in _on or getattr(module, "EACH", False):
                _switch_on(name, module)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Sees the import of a library that an integration waits for, and patches as soon as the library has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        # The module's own loader is what importlib.resources, pkgutil and inspect ask afterwards.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _imported(module.__name__)


_finder = _AfterImport()
