"""The variables that name plug-ins, and the releases of OpenTelemetry's parts.

OpenTelemetry itself cannot be asked: with an unknown propagator its import fails, with an unknown sampler it logs a line
and takes another.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

from tracefill.audit.doctor.finding import Finding

_SDK_SAMPLERS = ("always_on", "always_off", "traceidratio")
_NOTHING = {"none", ""}

# variable, group of entry points, cause, what stands in for one that is not there
_PLUGINS = (
    ("OTEL_PROPAGATORS", "opentelemetry_propagator", "propagator_unknown", "importing opentelemetry.propagate fails"),
    ("OTEL_PYTHON_CONTEXT", "opentelemetry_context", "context_unknown", "OpenTelemetry falls back to its own"),
    (
        "OTEL_PYTHON_ID_GENERATOR",
        "opentelemetry_id_generator",
        "id_generator_unknown",
        "OpenTelemetry's configuration fails",
    ),
    (
        "OTEL_TRACES_EXPORTER",
        "opentelemetry_traces_exporter",
        "exporter_unknown",
        "OpenTelemetry's configuration fails",
    ),
)


def findings() -> Iterator[Finding]:
    """What is wrong with the variables and the releases."""
    for variable, group, cause, otherwise in _PLUGINS:
        if unknown := _unknown(variable, group):
            names = sorted(entry_points(group=group).names)
            yield Finding(
                cause,
                f"{variable} names {', '.join(unknown)}, which is not installed: {otherwise}",
                f"one of {', '.join(names)}",
                f"{variable}={_CURES.get(variable, names[0] if names else '')}",
                {"unknown": unknown, "installed": names},
            )
    yield from _sampler()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield Finding(
            "sdk_disabled", "OTEL_SDK_DISABLED=true: no span is made", "take it away", "unset OTEL_SDK_DISABLED"
        )
    yield from _releases()


_CURES = {"OTEL_PROPAGATORS": "tracefill", "OTEL_PYTHON_CONTEXT": "tracefill", "OTEL_PYTHON_ID_GENERATOR": "tracefill"}


def forget_unknown_propagators() -> None:
    """Takes a variable away that would keep OpenTelemetry from being imported: it has been found, and there is more to see."""
    if _unknown("OTEL_PROPAGATORS", "opentelemetry_propagator"):
        del os.environ["OTEL_PROPAGATORS"]


def _unknown(variable: str, group: str) -> list[str]:
    named = [name.strip() for name in os.environ.get(variable, "").split(",")]
    if variable == "OTEL_PROPAGATORS" and "none" in [name.lower() for name in named]:
        return []  # whatever else it names
    return [name for name in named if name.lower() not in _NOTHING and not entry_points(group=group, name=name)]


def _sampler() -> Iterator[Finding]:
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    base = name.removeprefix("parentbased_")
    if name and base not in _SDK_SAMPLERS and not entry_points(group="opentelemetry_traces_sampler", name=name):
        yield Finding(
            "sampler_unknown",
            f"no sampler is called {name}: OpenTelemetry takes parentbased_always_on",
            f"one of {', '.join(_SDK_SAMPLERS)}, with parentbased_ in front where there are callers",
            "OTEL_TRACES_SAMPLER=parentbased_always_on",
        )
    argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "")
    if base == "traceidratio" and argument and not _is_share(argument):
        yield Finding(
            "sampler_argument",
            f"OTEL_TRACES_SAMPLER_ARG is {argument!r}, no number from 0 to 1: OpenTelemetry takes 1.0",
            "the share of traces to record, such as 0.1",
            "OTEL_TRACES_SAMPLER_ARG=0.1",
        )


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1 and math.isfinite(float(text))
    except ValueError:
        return False


def releases() -> dict[str, str]:
    """The installed releases of the parts that have to fit together."""
    names = (
        "tracefill",
        "opentelemetry-api",
        "opentelemetry-sdk",
        "opentelemetry-instrumentation",
        "opentelemetry-semantic-conventions",
    )
    return {name: found for name in names if (found := _version(name))}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _releases() -> Iterator[Finding]:
    found = releases()
    api, sdk = found.get("opentelemetry-api"), found.get("opentelemetry-sdk")
    if sdk is None:
        yield Finding(
            "sdk_missing",
            "opentelemetry-sdk is not installed: every span is a no-op",
            "install it",
            "pip install 'tracefill[sdk]'",
        )
    elif api and api.split(".")[:2] != sdk.split(".")[:2]:
        yield Finding(
            "versions_differ",
            f"opentelemetry-api is {api}, opentelemetry-sdk {sdk}: they are made for each other's release",
            "install the same release of both",
            f"pip install opentelemetry-api=={sdk} opentelemetry-sdk=={sdk}",
        )
