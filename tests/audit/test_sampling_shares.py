"""Every share that is claimed happens: services with the SDK's real samplers call each other, and what they record is
counted."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace._sampling_experimental import (
    composable_parent_threshold,
    composable_traceid_ratio_based,
    composite_sampler,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tracefill.audit.sampling.command import Report, examine
from tracefill.audit.sampling.samplers import sampler
from tracefill.audit.sampling.strategies import effective, parse

TRACES = 3000
ROOTS: dict[str, Callable[[float], Sampler]] = {
    "always_on": lambda _: ALWAYS_ON,
    "always_off": lambda _: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "consistent": lambda rate: composite_sampler(composable_traceid_ratio_based(rate)),
}


def sdk_sampler(setting: str) -> Sampler:
    """The SDK's own sampler of a setting."""
    name, _, argument = setting.partition(":")
    rate = float(argument or 1)
    if name == "parentbased_consistent":
        return composite_sampler(composable_parent_threshold(composable_traceid_ratio_based(rate)))
    if name.startswith("parentbased_"):
        return ParentBased(ROOTS[name.removeprefix("parentbased_")](rate))
    return ROOTS[name](rate)


class RunningService:
    """A service of its own: a provider with a sampler, and the traces it has exported."""

    def __init__(self, own_sampler: Sampler) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=own_sampler)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._tracer = provider.get_tracer("shares")

    def handle(self, headers: Mapping[str, str], operation: str = "GET /") -> dict[str, str]:
        """One request in, the headers of the next one out."""
        context = TraceContextTextMapPropagator().extract(headers, Context())
        onward: dict[str, str] = {}
        with self._tracer.start_as_current_span(operation, context):
            TraceContextTextMapPropagator().inject(onward)
        return onward

    @property
    def traces(self) -> set[int]:
        return {span.context.trace_id for span in self._exporter.get_finished_spans()}


def recorded(settings: Sequence[str], traces: int = TRACES) -> list[set[int]]:
    """The traces that each service of a chain records when requests go through all of them."""
    chain = [RunningService(sdk_sampler(setting)) for setting in settings]
    for _ in range(traces):
        headers: dict[str, str] = {}
        for service in chain:
            headers = service.handle(headers)
    return [service.traces for service in chain]


def assert_share(claimed: float, hits: int, of: int) -> None:
    """Whether a share was claimed that the count bears out: within five standard deviations."""
    assert of, "nothing to count"
    spread = 5 * math.sqrt(max(claimed * (1 - claimed), 1 / of) / of)
    assert abs(hits / of - claimed) <= spread, f"claimed {claimed}, counted {hits} of {of}"


def chain_report(settings: Sequence[str]) -> Report:
    names = [f"s{index}" for index in range(len(settings))]
    agents = {name: sampler(setting) for name, setting in zip(names, settings, strict=True)}
    return examine(parse("{}"), agents=agents, calls=itertools.pairwise(names))


SETTINGS = [
    "always_on",
    "traceidratio:0.5",
    "traceidratio:0.2",
    "consistent:0.5",
    "consistent:0.2",
    "parentbased_traceidratio:0.3",
    "parentbased_consistent:0.3",
    "parentbased_always_off",
]


@pytest.mark.parametrize("callee", SETTINGS)
@pytest.mark.parametrize("caller", SETTINGS)
def test_two_services_lose_what_is_said(caller: str, callee: str) -> None:
    first, second = recorded([caller, callee])
    report = chain_report([caller, callee])
    assert_share(report.chains[0]["recorded"], len(first), TRACES)
    assert_share(report.chains[0]["whole"], len(first & second), TRACES)
    decisions = [f for f in report.findings if f.cause in ("not_parent_based", "independent_decisions")]
    assert bool(decisions) == (first != second)
    for finding in decisions:
        assert_share(finding.evidence["both"], len(first & second), TRACES)
        if first:
            assert_share(finding.share_dropped, len(first - second), len(first))
        if second:
            assert_share(finding.evidence["share_torn"], len(second - first), len(second))


@pytest.mark.parametrize("settings", list(itertools.product(SETTINGS[1:7:2], SETTINGS[:6:2], SETTINGS[1:8:3])), ids=str)
def test_three_services_in_a_row_are_whole_as_often_as_is_said(settings: tuple[str, ...]) -> None:
    traces = recorded(settings, 2000)
    assert_share(chain_report(settings).chains[0]["whole"], len(set.intersection(*traces)), 2000)


def test_ten_per_cent_of_each_kind_leave_one_per_cent_whole() -> None:
    settings = ["traceidratio:0.1", "consistent:0.1"]
    first, second = recorded(settings, 30_000)
    report = chain_report(settings)
    whole = report.chains[0]["whole"]
    assert 0.009 < whole < 0.011
    assert_share(whole, len(first & second), 30_000)
    assert [finding.cause for finding in report.findings if finding.conflict] == ["independent_decisions"]


def test_ten_per_cent_of_one_kind_stay_ten_per_cent() -> None:
    settings = ["traceidratio:0.1", "traceidratio:0.1"]
    first, second = recorded(settings)
    assert first == second
    assert chain_report(settings).conflicts == 0


# --- what a file drops -----------------------------------------------------------------------------------------------


class Limiter(Sampler):
    """So many traces a second, by a clock that the test moves: credit grows with time, each trace costs one."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self.credit = 0.0

    def pass_time(self, seconds: float) -> None:
        self.credit = min(self.credit + seconds * self.per_second, max(self.per_second, 1.0))

    def should_sample(self, *_: object, **__: object) -> SamplingResult:
        if self.credit < 1 - 1e-9:
            return SamplingResult(Decision.DROP)
        self.credit -= 1
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "Limiter"


class Client(Sampler):
    """Decides by a sampling page as Go's and Java's clients do: operations first, and no probability that is none."""

    def __init__(self, page: dict[str, Any] | None, initial: float = 0.001) -> None:
        rates: dict[str, float] = {}
        self.limiter: Limiter | None = None
        page = page or {}
        rest = page.get("probabilisticSampling", {}).get("samplingRate", initial)
        if "operationSampling" in page:
            operations = page["operationSampling"]
            rest = operations["defaultSamplingProbability"]
            for rate in operations["perOperationStrategies"]:
                rates[rate["operation"]] = rate["probabilisticSampling"]["samplingRate"]
        elif "rateLimitingSampling" in page:
            self.limiter = Limiter(page["rateLimitingSampling"]["maxTracesPerSecond"])
        self.rest: Sampler = self.limiter or TraceIdRatioBased(rest if 0 <= rest <= 1 else initial)
        self.rates = {name: TraceIdRatioBased(rate) for name, rate in rates.items()}

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *more: Any, **named: Any) -> SamplingResult:
        return self.rates.get(name, self.rest).should_sample(parent_context, trace_id, name, *more, **named)

    def get_description(self) -> str:
        return "Client"


def rule(type_: str, param: float, **more: Any) -> dict[str, Any]:
    return {"type": type_, "param": param, **more}


HEALTH = [{"operation": "/health", "type": "probabilistic", "param": 0.25}]
# What is written about the service "orders", the finding, and what its author means it to record (of "GET /" or the
# operation named). A limit is meant for a service that stays within it: then it means everything.
DROPPING: dict[str, tuple[str, dict[str, Any], Sampler]] = {
    "type_with_a_typo": ("unknown_type", rule("probablistic", 0.5), TraceIdRatioBased(0.5)),
    "type_left_out": ("unknown_type", {"param": 0.5}, TraceIdRatioBased(0.5)),
    "param_left_out": ("param_missing", {"type": "probabilistic"}, TraceIdRatioBased(0.8)),
    "param_called_probability": ("key_unknown", {"type": "probabilistic", "probability": 0.5}, TraceIdRatioBased(0.5)),
    "per_cent": ("probability_out_of_range", rule("probabilistic", 50), ALWAYS_ON),
    "too_many_a_second": ("limit_out_of_range", rule("ratelimiting", 40000), ALWAYS_ON),
    "limit_and_own_list": (
        "limit_switched_off",
        rule("ratelimiting", 9000, operation_strategies=HEALTH),
        ALWAYS_ON,
    ),
    "limit_of_an_operation": (
        "operation_limit_ignored",
        rule(
            "probabilistic", 0.25, operation_strategies=[{"operation": "GET /", "type": "ratelimiting", "param": 9000}]
        ),
        ALWAYS_ON,
    ),
    "operation_without_a_type": (
        "unknown_type",
        rule("probabilistic", 0.5, operation_strategies=[{"operation": "GET /", "param": 0.75}]),
        TraceIdRatioBased(0.75),
    ),
    "operation_twice": (
        "operation_repeated",
        rule(
            "probabilistic",
            0.5,
            operation_strategies=[
                rule("probabilistic", 0.75, operation="GET /"),
                rule("probabilistic", 0.25, operation="GET /"),
            ],
        ),
        TraceIdRatioBased(0.75),
    ),
}


@pytest.mark.parametrize(("cause", "written", "meant"), DROPPING.values(), ids=DROPPING)
def test_a_file_drops_the_share_that_is_said(cause: str, written: dict[str, Any], meant: Sampler) -> None:
    strategies = parse(
        json.dumps(
            {
                "default_strategy": {"type": "probabilistic", "param": 0.8},
                "service_strategies": [{"service": "orders", **written}],
            }
        )
    )
    (finding,) = [f for f in examine(strategies).findings if f.conflict]
    assert (finding.cause, finding.service) == (cause, "orders")
    promised, got = RunningService(meant), RunningService(Client(effective(strategies, "orders")))
    for _ in range(TRACES):
        promised.handle({})
        got.handle({})
    assert finding.share_dropped is not None
    assert_share(1 - finding.share_dropped, int(len(got.traces) / len(promised.traces) * TRACES), TRACES)


@pytest.mark.parametrize("per_second", [0.9, 1.5, 2.7, 9.99])
def test_a_limit_that_is_cut_drops_the_share_that_is_said(per_second: float) -> None:
    strategies = parse(json.dumps({"service_strategies": [{"service": "a", **rule("ratelimiting", per_second)}]}))
    (finding,) = [f for f in examine(strategies).findings if f.conflict]
    assert finding.cause == "limit_cut"
    client, written = Client(effective(strategies, "a")), Limiter(per_second)
    assert client.limiter is not None
    kept = {client.limiter: 0, written: 0}
    for _ in range(100_000):  # far more than the limit allows, so that no credit is lost at the brim
        for limiter in kept:
            limiter.pass_time(1 / (30 * per_second))
            kept[limiter] += limiter.should_sample().decision is Decision.RECORD_AND_SAMPLE
    dropped = 1 - kept[client.limiter] / kept[written]
    assert finding.share_dropped == pytest.approx(dropped, abs=0.01)
