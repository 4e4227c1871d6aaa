"""What exported spans show: services with the SDK's samplers call each other and export, and the export is read."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tests.audit.test_sampling_shares import sdk_sampler
from tracefill.audit import readers
from tracefill.audit.sampling.command import Report, examine
from tracefill.audit.sampling.finding import Finding
from tracefill.audit.sampling.samplers import sampler
from tracefill.audit.sampling.seen import Seen, bound_between, drawn
from tracefill.audit.sampling.strategies import parse

REQUESTS = 600


class Shop:
    """Services that call each other and export into one file."""

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self._path = path
        self._file = path.open("w")
        self._tracers = {name: self._tracer(name, setting) for name, setting in settings.items()}

    def _tracer(self, name: str, setting: str) -> trace.Tracer:
        provider = TracerProvider(sampler=sdk_sampler(setting), resource=Resource({"service.name": name}))
        provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(stream=self._file)))
        return provider.get_tracer("shop")

    def request(self, *services: str, operation: str = "GET /", lost: bool = False) -> None:
        """A request that goes through the services; `lost`: the last one's headers never arrive anywhere."""
        headers: dict[str, str] = {}
        for index, service in enumerate(services):
            context = TraceContextTextMapPropagator().extract(headers, Context())
            tracer = self._tracers[service]
            with tracer.start_as_current_span(operation, context, SpanKind.SERVER):
                if index + 1 < len(services) or lost:
                    attributes = {"server.address": "orders"}
                    with tracer.start_as_current_span("call", kind=SpanKind.CLIENT, attributes=attributes):
                        TraceContextTextMapPropagator().inject(headers)

    def seen(self) -> Seen:
        self._file.close()
        return Seen(readers.read([str(self._path)]))


def report_of(
    seen: Seen, strategies: str = '{"default_strategy": {"type": "probabilistic", "param": 1}}', **agents: str
) -> Report:
    return examine(parse(strategies), seen=seen, agents={name: sampler(setting) for name, setting in agents.items()})


def of_spans(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.cause.startswith("seen_")]


def test_calls_and_roots_are_seen(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": "always_on", "orders": "parentbased_always_on", "cron": "always_on"})
    shop.request("web", "orders")
    shop.request("cron", "orders", operation="nightly")
    seen = shop.seen()
    assert (seen.services, seen.roots) == ({"web", "orders", "cron"}, {"web", "cron"})
    assert seen.calls == {"web": {"orders"}, "cron": {"orders"}}
    assert (seen.operations("cron"), seen.operations("orders")) == ({"nightly"}, set())


@pytest.mark.parametrize("kind", ["traceidratio", "consistent"])
def test_a_rate_that_nobody_wrote_down_shows_in_the_ids(tmp_path: Path, kind: str) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": f"parentbased_{kind}:0.25", "orders": "parentbased_always_on"})
    for _ in range(REQUESTS):
        shop.request("web", "orders")
    (finding,) = of_spans(report_of(shop.seen()))
    assert (finding.cause, finding.service) == ("seen_other_rate", "web")
    assert finding.evidence["rate_seen"] == pytest.approx(0.25, rel=0.1)
    assert finding.share_dropped == pytest.approx(0.75, rel=0.05)


DROPPING = [("traceidratio", "always_on"), ("consistent", "parentbased_traceidratio:0.8")]


@pytest.mark.parametrize(("kind", "caller"), DROPPING)
def test_a_service_that_drops_what_its_caller_records_shows_in_the_ids(tmp_path: Path, kind: str, caller: str) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": caller, "orders": f"{kind}:0.5"})
    for _ in range(REQUESTS):
        shop.request("web", "orders")
    report = report_of(shop.seen(), web=caller, orders="parentbased_always_on")
    (finding,) = [finding for finding in of_spans(report) if finding.cause == "seen_own_decision"]
    assert (finding.service, finding.caller) == ("orders", "web")
    assert finding.share_dropped == pytest.approx(0.5, abs=0.12)
    assert finding.share_dropped == finding.evidence["without"] / finding.evidence["calls"]
    assert finding.evidence["rate_seen"] == pytest.approx(0.5, abs=0.05)


def test_a_service_that_records_what_its_caller_drops_shows_in_the_ids(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": "parentbased_traceidratio:0.3", "orders": "always_on"})
    for _ in range(REQUESTS):
        shop.request("web", "orders")
    report = report_of(shop.seen(), web="parentbased_traceidratio:0.3")
    (finding,) = of_spans(report)
    assert (finding.cause, finding.service, finding.caller) == ("seen_torn", "orders", "web")
    assert finding.evidence["share_torn"] == pytest.approx(0.7, abs=0.1)
    assert finding.evidence["rate_seen"] == pytest.approx(0.3, abs=0.05)


def test_nothing_is_accused_where_everybody_follows_a_sampled_root(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": "parentbased_traceidratio:0.3", "orders": "parentbased_always_on"})
    for _ in range(REQUESTS):
        shop.request("web", "orders")
    report = report_of(shop.seen(), web="parentbased_traceidratio:0.3", orders="parentbased_always_on")
    assert of_spans(report) == []


def test_losses_that_do_not_sort_by_id_are_not_put_down_to_a_sampler(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": "always_on", "orders": "parentbased_always_on"})
    for _ in range(REQUESTS):
        if random.random() < 0.5:
            shop.request("web", "orders")
        else:
            shop.request("web", lost=True)
    assert of_spans(report_of(shop.seen(), web="always_on")) == []


def test_rules_of_operations_are_judged_one_by_one(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": "parentbased_traceidratio:0.5"})
    for _ in range(REQUESTS):
        shop.request("web", operation="GET /")
        shop.request("web", operation="POST /pay")
    pay = {"operation": "POST /pay", "type": "probabilistic", "param": 1}
    rule = {"service": "web", "type": "probabilistic", "param": 0.5, "operation_strategies": [pay]}
    report = report_of(shop.seen(), json.dumps({"service_strategies": [rule]}))
    (finding,) = of_spans(report)
    assert (finding.cause, finding.operation) == ("seen_other_rate", "POST /pay")
    assert finding.share_dropped == pytest.approx(0.5, abs=0.05)


def test_names_in_the_file_are_held_against_those_in_the_spans(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "spans.jsonl", {"web": "always_on"})
    shop.request("web", operation="GET /pay")
    pay = {"operation": "get /pay", "type": "probabilistic", "param": 1}
    old = {"operation": "/old", "type": "probabilistic", "param": 1}
    rules = [{"service": "web", "type": "probabilistic", "param": 0.5, "operation_strategies": [pay, old]}]
    rules.append({"service": "gone", "type": "probabilistic", "param": 0.5})
    everybodys = {"type": "probabilistic", "param": 0.5, "operation_strategies": [{**old, "operation": "/health"}]}
    strategies = {"default_strategy": everybodys, "service_strategies": rules}
    report = report_of(shop.seen(), json.dumps(strategies))
    (differs,) = [finding for finding in report.findings if finding.cause == "name_differs"]
    assert (differs.service, differs.operation, differs.share_dropped) == ("web", "GET /pay", 0.5)
    corrected = report.corrected["service_strategies"][0]["operation_strategies"]
    assert [operation["operation"] for operation in corrected] == ["GET /pay", "/old"]
    unseen = [finding.evidence for finding in report.findings if finding.cause == "never_seen"]
    assert unseen == [{"operations": ["/old"]}, {"services": ["gone"]}]


def ids(count: int, low: float = 0, high: float = 1) -> np.ndarray:
    return np.array([int(random.uniform(low, high) * 2**64) for _ in range(count)], np.uint64)


def test_few_ids_are_no_pattern() -> None:
    assert drawn(ids(10, high=0.001)) is None
    assert bound_between(ids(10, high=0.5), ids(100, low=0.5)) is None
    assert drawn(ids(0)) is None


def test_many_ids_everywhere_are_no_pattern() -> None:
    for _ in range(200):
        assert drawn(ids(100)) is None
        assert bound_between(ids(50), ids(50)) is None


def test_a_few_strays_do_not_hide_a_bound() -> None:
    found = bound_between(ids(500, high=0.5), np.concatenate([ids(490, low=0.5), ids(10, high=0.4)]))
    assert found is not None
    assert found.rate == pytest.approx(0.5, abs=0.02)
