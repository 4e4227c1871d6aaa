"""The core's counters as OpenTelemetry metrics.

| name                 | unit      | attributes     | what it counts                                          |
|----------------------|-----------|----------------|---------------------------------------------------------|
| tracefill.extracted  | {header}  | format         | headers that were read                                  |
| tracefill.missing    | {carrier} |                | carriers without any format that was looked for         |
| tracefill.unread     | {carrier} | format         | of those, carriers with a format that nobody reads      |
| tracefill.malformed  | {header}  | format, reason | headers that could not be read                          |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tracefill import _codec

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

Counted = Iterable[tuple[int, dict[str, Any]]]


def observe(provider: MeterProvider | None = None) -> None:
    """Exports the core's counters of this process from now on, by the given MeterProvider (default: the global one).

    Call it once, after the provider has been set.

    >>> from opentelemetry.sdk.metrics import MeterProvider
    >>> from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    >>> reader = InMemoryMetricReader()
    >>> observe(MeterProvider([reader]))
    >>> import tracefill
    >>> _ = tracefill.extract({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    >>> scope = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
    >>> sorted(metric.name for metric in scope.metrics)[0]
    'tracefill.extracted'
    """
    from opentelemetry.metrics import get_meter

    meter = get_meter("tracefill", meter_provider=provider)
    for name, unit, description, counted in (
        ("extracted", "{header}", "Trace headers that were read", _extracted),
        ("missing", "{carrier}", "Carriers without any format that was looked for", _missing),
        ("unread", "{carrier}", "Carriers with nothing but a format that nobody reads", _unread),
        ("malformed", "{header}", "Trace headers that could not be read", _malformed),
    ):
        meter.create_observable_counter(f"tracefill.{name}", [_callback(counted)], unit, description)


def _callback(counted: Callable[[], Counted]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    from opentelemetry.metrics import Observation

    return lambda _: [Observation(count, attributes) for count, attributes in counted()]


def _extracted() -> Counted:
    return [(count, {"format": name}) for name, count in _codec.counters()["extracted"].items()]


def _missing() -> Counted:
    return [(_codec.counters()["missing"], {})]


def _unread() -> Counted:
    return [(count, {"format": name}) for name, count in _codec.counters()["unread"].items()]


def _malformed() -> Counted:
    malformed = _codec.counters()["malformed"].items()
    return [(count, {"format": name, "reason": reason}) for (name, reason), count in malformed]
