"""The command ``tracefill sampling``: its arguments, the order of the checks, and the document (see the package)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tracefill._codec import TracefillError
from tracefill.audit import readers
from tracefill.audit.sampling import live, samplers
from tracefill.audit.sampling import service_findings as between
from tracefill.audit.sampling.finding import Finding
from tracefill.audit.sampling.report import render
from tracefill.audit.sampling.seen import Seen, seen_findings
from tracefill.audit.sampling.strategies import DEFAULT_PROBABILITY, Answer, Served, Strategies, nulls, read, serve
from tracefill.audit.sampling.strategy_findings import StrategyChecks, corrected, in_force

SCHEMA = "tracefill.sampling/1"

EXAMPLE = """\
examples:
  tracefill sampling strategies.json
  tracefill sampling strategies.json --agent web=parentbased_traceidratio:0.1 \\
      --agent orders=always_on --call web=orders --fix corrected.json
  tracefill sampling strategies.json --url http://collector:5778 \\
      --spans spans.jsonl

TYPE is a value of OTEL_TRACES_SAMPLER (always_on, parentbased_traceidratio,
jaeger_remote, ...), consistent or parentbased_consistent, or one of Jaeger's
client: const, probabilistic, ratelimiting, remote. A service without --agent is
taken to ask Jaeger and to follow its caller. Without --call and --spans every
service may be called by every other one.

exit code: 0 no conflict, 1 conflicts found, 2 something could not be read"""


class NotUnderstood(TracefillError):
    """Something that was given cannot be read; the message says what and why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``tracefill sampling``."""
    parser.description = "Where sampling strategies and samplers drop spans in silence, and the cure."
    parser.epilog = EXAMPLE
    parser.add_argument("strategies", metavar="STRATEGIES", type=Path, help="Jaeger's strategies file (JSON)")
    parser.add_argument(
        "--agent", action="append", default=[], metavar="SERVICE=TYPE[:PARAM]", help="the sampler of a service"
    )
    parser.add_argument("--agents", type=Path, metavar="FILE", help="the same, a line each; # begins a comment")
    parser.add_argument("--call", action="append", default=[], metavar="FROM=TO", help="one service calls another")
    parser.add_argument(
        "--spans", action="append", default=[], metavar="SOURCE", help="exported spans, as `tracefill audit` reads them"
    )
    parser.add_argument("--url", help="a live collector's sampling port, to compare with the file")
    parser.add_argument(
        "--default-probability",
        type=_probability,
        metavar="P",
        help=f"the server's default_sampling_probability (default: {DEFAULT_PROBABILITY}, as Jaeger's; all-in-one: 1)",
    )
    parser.add_argument("--fix", type=Path, metavar="FILE", help="write the corrected strategies")
    parser.add_argument("--json", action="store_true", help=f"print the document ({SCHEMA})")


def _probability(text: str) -> float:
    probability = samplers.number_in(text)
    if probability is None or not 0 <= probability <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return probability


def run(arguments: argparse.Namespace) -> int:
    """Prints what was found; 0 without conflicts, 1 with, 2 when something could not be read."""
    try:
        report = _report(arguments)
        if arguments.fix is not None:
            text = json.dumps(report.corrected, indent=2, ensure_ascii=False)
            arguments.fix.write_text(text + "\n", encoding="utf-8")
    except (TracefillError, readers.SourceError, OSError) as error:
        print(f"tracefill sampling: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report.document(), indent=2))
    else:
        _print(report, Console(highlight=False), arguments.fix)
    return 1 if report.conflicts else 0


# --- what goes in ----------------------------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> Report:
    try:
        strategies = read(arguments.strategies)
    except TracefillError as error:
        raise NotUnderstood(f"{arguments.strategies}: Jaeger would not take this file: {error}") from None
    return examine(
        strategies,
        name=str(arguments.strategies),
        agents=_agents([*_lines(arguments.agents), *arguments.agent]),
        calls=[_pair(call, "FROM=TO") for call in arguments.call],
        seen=_seen(arguments.spans),
        url=arguments.url,
        default_probability=arguments.default_probability,
    )


def _seen(sources: list[str]) -> Seen | None:
    if not sources:
        return None
    spans = readers.read(sources)
    if not len(spans):
        raise NotUnderstood(f"{', '.join(sources)}: no spans in it")
    return Seen(spans)


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line for line in lines if line]


def _agents(settings: Iterable[str]) -> dict[str, samplers.Sampler]:
    """The samplers by service; of two for one service the later."""
    pairs = (_pair(setting, "SERVICE=TYPE[:PARAM]") for setting in settings)
    return {service: samplers.sampler(setting) for service, setting in pairs}


def _pair(text: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise NotUnderstood(f"expected {form}, found {text!r}")
    return left, right


# --- the judgement ---------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """Everything that was found out about one strategies file and the services around it."""

    name: str
    default_probability: float
    served: Served
    ends: bool  # whether Jaeger's process ends with this file
    known: dict[str, between.Service]
    calls: dict[str, set[str]]
    chains: list[dict[str, Any]]
    findings: list[Finding]
    corrected: dict[str, Any]
    url: str | None
    spans: int | None

    @property
    def conflicts(self) -> int:
        """How many findings are conflicts."""
        return sum(finding.conflict for finding in self.findings)

    def page(self, answer: Answer) -> dict[str, Any] | None:
        """What Jaeger's page says; None where there is no page."""
        return None if self.ends else answer.http

    def document(self) -> dict[str, Any]:
        """The document of ``--json``."""
        pages = {name: self.page(self.served.answer(name)) for name in [*self.served.by_service, *self.known]}
        return {
            "schema": SCHEMA,
            "input": {
                "strategies": self.name,
                "default_sampling_probability": self.default_probability,
                "url": self.url,
                "spans": self.spans,
                "calls_known": bool(self.calls),
            },
            "served": {"services": pages, "others": self.page(self.served.default)},
            "services": [_service_entry(service) for service in self.known.values()],
            "calls": [
                {"from": caller, "to": callee} for caller, callees in self.calls.items() for callee in sorted(callees)
            ],
            "chains": self.chains,
            "findings": [finding.to_json() for finding in self.findings],
            "conflicts": self.conflicts,
            "corrected": self.corrected,
        }


def _service_entry(service: between.Service) -> dict[str, Any]:
    return {
        "service": service.name,
        "sampler": service.sampler.setting,
        "given": service.given,
        "parent_based": service.sampler.parent_based,
        "rules": [{"operation": rule.operation, **between.told_rate(rule.kept)} for rule in service.rules],
    }


def examine(
    strategies: Strategies,
    *,
    name: str = "strategies.json",
    agents: Mapping[str, samplers.Sampler] | None = None,
    calls: Iterable[tuple[str, str]] = (),
    seen: Seen | None = None,
    url: str | None = None,
    default_probability: float | None = None,
) -> Report:
    """The report on a file and, as far as they are given, on samplers, calls, spans and a live collector.

    Raises LiveError where the collector does not answer.
    """
    agents = agents or {}
    named = {entry.service for path, entry in in_force(strategies) if path != "default_strategy"}
    graph = _graph(calls, seen)
    outside = {*agents, *graph, *(callee for callees in graph.values() for callee in callees)}
    outside |= seen.services if seen is not None else set()
    near = between.near_names(named - {""}, outside)
    names = sorted((named | outside) - near.keys() - {""})
    compared: list[Finding] = []
    probability = DEFAULT_PROBABILITY if default_probability is None else default_probability
    if url is not None:
        probability, compared = live.compare(strategies, live.asked(url, names), probability)
    served = serve(strategies, probability)
    known = between.services(names, agents, served)
    roots = between.roots_of(known, graph, seen.roots if seen is not None else set())
    return Report(
        name=name,
        default_probability=probability,
        served=served,
        ends=any(nulls(strategies)),
        known=known,
        calls=graph,
        chains=between.chains(known, graph, roots),
        findings=[
            *StrategyChecks(strategies, probability).findings(),
            *between.setting_findings(known),
            *between.name_findings(near, known, served),
            *between.strategy_findings(known, served, named, strategies.default_strategy is not None),
            *_findings_of_calls(known, graph, roots, named, served if strategies.default_strategy else None),
            *compared,
            *(_findings_of_spans(seen, known, named - near.keys(), strategies) if seen is not None else ()),
        ],
        corrected=_renamed(corrected(strategies, probability), near, seen),
        url=url,
        spans=None if seen is None else seen.count,
    )


def _renamed(file: dict[str, Any], near: Mapping[str, str], seen: Seen | None) -> dict[str, Any]:
    """The file with the names of services, and of the operations that were seen, as they really are."""
    for entry in file["service_strategies"]:
        entry["service"] = near.get(entry["service"], entry["service"])
        operations = {operation["operation"]: operation for operation in entry.get("operation_strategies", ())}
        real = between.near_names(operations, seen.operations(entry["service"]) if seen is not None else set())
        for name, operation in operations.items():
            operation["operation"] = real.get(name, name)
    return file


def _graph(calls: Iterable[tuple[str, str]], seen: Seen | None) -> dict[str, set[str]]:
    graph = {} if seen is None else {caller: set(callees) for caller, callees in seen.calls.items()}
    for caller, callee in calls:
        graph.setdefault(caller, set()).add(callee)
    return graph


def _findings_of_calls(
    known: dict[str, between.Service], graph: between.Calls, roots: list[str], named: set[str], served: Served | None
) -> Iterator[Finding]:
    if not graph:
        possible = between.PossibleCallers(known, served.default if served else None)
        yield from between.decision_findings(known, possible.arrivals, seen=False)
        return
    arriving = between.arrivals(known, graph, roots)
    yield from between.decision_findings(known, lambda name: arriving.get(name, ()), seen=True)
    yield from between.root_findings(known, arriving, roots, named)


def _findings_of_spans(
    seen: Seen, known: dict[str, between.Service], named: set[str], strategies: Strategies
) -> Iterator[Finding]:
    yield from seen_findings(seen, known)
    for _, entry in in_force(strategies):
        if entry.service in named & seen.services:
            own = {operation.operation for operation in entry.operation_strategies if operation is not None}
            yield from between.operation_name_findings(known[entry.service], own, seen.operations(entry.service))
    unseen = sorted(named - seen.services - {""})
    if unseen:
        what = f"the spans show no service called {', '.join(unseen)}"
        cure = "delete the rules, or write the names as the services do (service.name)"
        yield Finding("never_seen", what, cure, evidence={"services": unseen}, conflict=False)


def _print(report: Report, console: Console, fixed: Path | None) -> None:
    render(report.document(), report.findings, console)
    if fixed is not None:
        console.print(Text(f"\ncorrected strategies written to {fixed}"), soft_wrap=True)
    elif any(finding.config and finding.conflict for finding in report.findings):
        console.print("\n--fix FILE writes the corrected strategies")
