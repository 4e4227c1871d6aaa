"""What is instrumented, by whom, and what is not.

Contrib's instrumentors and our integrations are found among what this process has imported; a library counts as used
when a module other than libraries holds something of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from types import ModuleType
from typing import Any

import tracefill
from tracefill.audit.doctor.finding import Finding

# Integrations of calls/ that send requests; the others there are of servers, and `request.py` sees what those do.
CLIENTS = ("aiohttp_client", "grpc", "httpx", "pycurl", "requests", "urllib3")
LAYERS = ("messages", "jobs", "data")
OTHER_TRACERS = ("ddtrace", "newrelic", "elasticapm", "sentry_sdk", "skywalking")


def instrumentors() -> dict[str, Any]:
    """Contrib's instrumentors that are switched on in this process, by the name of their package."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("opentelemetry.instrumentation.") and module is not None:
            for kind in list(vars(module).values()):
                # Not isinstance(): a module may hold lazy objects, such as Django's settings, which it would wake.
                instance = vars(kind).get("_instance") if issubclass(type(kind), type) else None
                if getattr(instance, "_is_instrumented_by_opentelemetry", False):
                    found[kind.__module__.split(".")[2]] = instance
    return dict(sorted(found.items()))


def available() -> dict[str, ModuleType]:
    """Our integrations by name, on or off."""
    return tracefill.patches._integrations()


def waiting() -> list[str]:
    """Our integrations that wait for the import of their library."""
    names = {name for waiting in tracefill.patches._waiting.values() for name, _ in waiting}
    return sorted(names - set(tracefill.installed()))


def findings() -> Iterator[Finding]:
    """What is not instrumented, twice, or no longer."""
    active = instrumentors()
    yield from _not_covered(active)
    yield from _lost_patches()
    yield from _untested()
    for name in OTHER_TRACERS:
        if name in sys.modules:
            yield Finding(
                "other_tracer",
                f"{name} is loaded beside OpenTelemetry: it may wrap the same functions and write headers of its own",
                "switch its tracing off, or OpenTelemetry's",
                note=True,
            )


# --- what nothing carries the context over ---


def _not_covered(active: dict[str, Any]) -> Iterator[Finding]:
    on = set(tracefill.installed())
    theirs = {one for instrumentor in active.values() for one in _libraries_of(instrumentor)}
    for name, module in available().items():
        libraries = {library.split(".")[0] for library in _waits_for(module)}
        if name in on or getattr(module, "OPT_IN", False) or not libraries or not _is_looked_at(name, module):
            continue
        users = sorted({user for library in module.LIBRARIES for user in _users(library, _is_shared(library))})
        if users and not libraries & theirs and name not in active:
            layer = module.__name__.split(".")[1]
            yield Finding(
                "library_not_covered",
                f"{', '.join(users[:3])} uses {', '.join(sorted(libraries))}, and nothing carries the context over it",
                "switch on tracefill's integration (or contrib's instrumentor)",
                f"tracefill.install(only=[{name!r}])",
                {"integration": name, "layer": layer, "used_by": users},
            )
    if "threads" not in on and "threading" not in active and not on:
        yield Finding(
            "handoff_not_covered",
            "nothing carries the context into threads, timers and executors",
            "switch tracefill's integrations on",
            "tracefill.install()",
            note=True,
        )


def _is_looked_at(name: str, module: ModuleType) -> bool:
    return name in CLIENTS or module.__name__.split(".")[1] in LAYERS


def _is_shared(library: str) -> bool:
    """Whether the package is in use by its other half, aiohttp's server: who holds the package need not mean this one."""
    others = {one for name, module in available().items() if name not in CLIENTS for one in _waits_for(module)}
    return any(one != library and one.split(".")[0] == library.split(".")[0] and one in sys.modules for one in others)


def _waits_for(module: ModuleType) -> tuple[str, ...]:
    return tuple(getattr(module, "LIBRARIES", ()))


def _users(library: str, is_shared: bool) -> Iterator[str]:
    """Modules that hold something of a library (of its very module, where its package is shared), other than itself,
    instrumentations and libraries we know."""
    whole = library if is_shared else library.split(".")[0]
    if library not in sys.modules:
        return
    for name, module in list(sys.modules.items()):
        if module is None or name.split(".")[0] in {library.split(".")[0], *_not_users()}:
            continue
        if any(_is_of(value, whole) for value in list(vars(module).values())):
            yield name


def _is_of(value: object, library: str) -> bool:
    try:
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    except Exception:  # a lazy object, such as Django's settings, that nobody can wake here
        return False
    return isinstance(name, str) and (name == library or name.startswith(f"{library}."))


@lru_cache(maxsize=1)
def _not_users() -> frozenset[str]:
    known = {library.split(".")[0] for module in available().values() for library in _waits_for(module)}
    return frozenset({"opentelemetry", "tracefill", *known, *_dependencies(known), *sys.stdlib_module_names})


def _dependencies(libraries: set[str]) -> set[str]:
    """What those libraries are made of: urllib3's user is requests, and the application none of it."""
    distributions, packages = _distributions(), set()
    needed = {need for name in libraries for one in distributions.get(name, ()) for need in _needs(one)}
    for package, ones in distributions.items():
        if needed & set(ones):
            packages.add(package)
    return packages


@lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    """The distributions that each importable package comes from."""
    return {package: [_canonical(one) for one in ones] for package, ones in packages_distributions().items()}


def _needs(distribution: str) -> set[str]:
    lines = [line for line in requires(distribution) or () if "extra ==" not in line]
    return {_canonical(re.split(r"[^\w.-]", line)[0]) for line in lines}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _libraries_of(instrumentor: Any) -> set[str]:
    """The packages that an instrumentor of contrib is for."""
    names = {_canonical(re.split(r"[^\w.-]", line)[0]) for line in instrumentor.instrumentation_dependencies()}
    return {package for package, ones in _distributions().items() if names & set(ones)}


# --- patches of ours ---


def _lost_patches() -> Iterator[Finding]:
    for name in tracefill.installed():
        patches = getattr(available()[name], "_patches", None)
        lost = [
            f"{getattr(owner, '__module__', '')}.{getattr(owner, '__qualname__', owner)}.{attribute}".lstrip(".")
            for owner, attribute, _, value in getattr(patches, "_done", ())
            if hasattr(owner, "__dict__") and not _holds(vars(owner).get(attribute), value)
        ]
        if lost:
            yield Finding(
                "patch_lost",
                f"{name}: somebody has replaced {', '.join(lost)} after install(), without calling what was there",
                "call install() after whoever does that (monkey patching comes first)",
                "tracefill.uninstall(); tracefill.install()",
                {"integration": name, "replaced": lost},
            )


def _holds(current: Any, value: Any) -> bool:
    """Whether ours is what is there, or below a wrapper that is."""
    inner = getattr(value, "__func__", value)
    while current is not None:
        if current is value or getattr(current, "__func__", current) is inner:
            return True
        current = getattr(current, "__wrapped__", None)
    return False


# --- versions ---


def _untested() -> Iterator[Finding]:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return
    for line in requires("tracefill") or ():
        requirement = Requirement(line)
        found = _version(requirement.name) if _extra(line) in available() else None
        if found is None or not any(package in sys.modules for package in _packages(requirement.name)):
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                "library_untested",
                f"{requirement.name} is {found}; tracefill's tests run with {requirement.specifier}",
                "install a version that is tested",
                f"pip install '{requirement.name}{requirement.specifier}'",
                note=True,
            )


def _extra(line: str) -> str | None:
    found = re.search(r"""extra == ['"]([\w-]+)['"]""", line)
    return found[1].replace("-", "_") if found else None


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _packages(distribution: str) -> list[str]:
    return [package for package, ones in _distributions().items() if _canonical(distribution) in ones]
