"""Where the samplers of services contradict the strategies file, and each other along the calls.

A trace begins at a service; what that service's rule keeps is handed down by every sampler that follows its caller, and
decided anew by every one that does not. So each service has *arrivals*: the sets of traces that its callers have kept.
Without known calls every service may be anybody's caller; what is found then is what would happen where one calls
the other.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, NamedTuple

from tracefill.audit.sampling import samplers
from tracefill.audit.sampling.finding import Finding, number, percent
from tracefill.audit.sampling.samplers import Kept, Sampler, both, common, told
from tracefill.audit.sampling.strategies import Answer, Served
from tracefill.audit.sampling.strategy_findings import dropped

KNOWN_SAMPLERS = [
    f"{prefix}{name}"
    for prefix in ("", samplers.PARENT_BASED)
    for name in ("always_on", "always_off", "traceidratio", "jaeger_remote", "consistent")
]

Calls = Mapping[str, Set[str]]


class Rule(NamedTuple):
    """What a service keeps of the traces that begin with an operation (None: with any other)."""

    operation: str | None
    kept: Kept


@dataclass(frozen=True)
class Service:
    """A service, its sampler, and the rules by which it decides where nobody has decided before."""

    name: str
    sampler: Sampler
    given: bool  # whether somebody told the sampler, or it is taken to ask Jaeger
    rules: tuple[Rule, ...]

    @property
    def setting(self) -> str:
        return f"--agent {self.name}={self.sampler.setting}" if self.given else f"{self.sampler.setting} (assumed)"


OTHERS = "any other service"
ASSUMED = samplers.sampler("parentbased_jaeger_remote")


def services(names: Iterable[str], agents: Mapping[str, Sampler], served: Served) -> dict[str, Service]:
    """The services by name, those without a setting taken to ask Jaeger and to follow their callers."""
    found = {}
    for name in names:
        sampler = agents.get(name, ASSUMED)
        rules = _remote_rules(served.answer(name), sampler.kept) if sampler.remote else (Rule(None, sampler.kept),)
        found[name] = Service(name, sampler, name in agents, rules)
    return found


def _remote_rules(answer: Answer, initial: Kept) -> tuple[Rule, ...]:
    operations = dict(answer.operations.rates) if answer.operations is not None else {}
    return tuple(Rule(name, told(answer, name, initial)) for name in (None, *operations))


# --- settings --------------------------------------------------------------------------------------------------------


def setting_findings(known: Mapping[str, Service]) -> Iterator[Finding]:
    """Settings that an SDK does not understand."""
    for service in known.values():
        if fault := service.sampler.fault:
            yield Finding(
                fault.cause,
                fault.text,
                _cure_of_setting(service.sampler),
                service=service.name,
                rule=service.setting,
                share_dropped=0.0,
                evidence={"setting": service.sampler.setting, "recorded": service.sampler.kept.rate},
                conflict=fault.cause != "argument_missing",
            )
    remote = [service.name for service in known.values() if service.given and service.sampler.remote]
    if remote:
        what = f"{', '.join(remote)}: where this is Python, the SDK has no jaeger_remote; it records every trace"
        cure = "check that a package provides the sampler there, or write the rate into parentbased_traceidratio"
        evidence = {"services": remote}
        yield Finding("remote_in_python", what, cure, rule="--agent", evidence=evidence, conflict=False)


def _cure_of_setting(sampler: Sampler) -> str:
    name, _, argument = sampler.setting.partition(":")
    if sampler.fault is not None and sampler.fault.cause == "sampler_unknown":
        close = difflib.get_close_matches(name.strip().lower(), KNOWN_SAMPLERS, 1)
        return f"is {close[0]} meant?" if close else f"one of {', '.join(KNOWN_SAMPLERS)}"
    share = samplers.number_in(argument)
    per_cent = f" ({number(share / 100)}, if {number(share)} per cent are meant)" if share and 1 < share <= 100 else ""
    return f"OTEL_TRACES_SAMPLER_ARG: a number from 0 to 1{per_cent}"


def strategy_findings(known: Mapping[str, Service], file: Served, named: Set[str], default: bool) -> Iterator[Finding]:
    """Services that the file has a rule for (one of their `named` own, or the `default`) and that never ask for it."""
    for service in known.values():
        if service.sampler.remote or not service.given or not (default or service.name in named):
            continue
        rules = _remote_rules(file.answer(service.name), samplers.by_ratio(samplers.INITIAL_RATE))
        worst = max(rules, key=lambda rule: dropped_limit(rule.kept, service.sampler.kept))
        share = dropped_limit(worst.kept, service.sampler.kept)
        differ = any(rule.kept != service.sampler.kept for rule in rules)
        whose = "its rule" if service.name in named else "the default strategy"
        yield Finding(
            "strategy_not_asked",
            f"{service.name} decides by {service.sampler.setting} and never asks Jaeger: {whose} in the file, "
            f"{_spoken(worst.kept)}, has no effect; it records {_spoken(service.sampler.kept)}",
            "let the service ask Jaeger (Python's SDK cannot), or give its own sampler the rate of the rule",
            service=service.name,
            operation=worst.operation,
            rule=service.setting,
            share_dropped=share,
            evidence={"strategy": told_rate(worst.kept), "sampler": told_rate(service.sampler.kept)},
            config=_own_rate(rules[0].kept),
            conflict=share > 0 or (differ and service.name in named),
        )


def _own_rate(kept: Kept) -> str | None:
    if kept.per_second is not None:
        return None
    return f"OTEL_TRACES_SAMPLER=parentbased_traceidratio OTEL_TRACES_SAMPLER_ARG={number(kept.rate)}"


def dropped_limit(written: Kept, served: Kept) -> float:
    """The share of what one decision keeps that the other drops, by their rates or by their limits alone."""
    if written.per_second and served.per_second is not None:
        return dropped(written.per_second, max(served.per_second, 0))
    return dropped(written.rate, served.rate)


def _spoken(kept: Kept) -> str:
    return percent(kept.rate) if kept.per_second is None else f"{number(kept.per_second)} a second"


def told_rate(kept: Kept) -> dict[str, Any]:
    """What a decision keeps, as the document says it."""
    return {"rate": kept.rate} if kept.per_second is None else {"max_traces_per_second": number(kept.per_second)}


# --- along the calls -------------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """Traces that began at a root, by one of its rules, as a caller has kept them when it makes its call."""

    root: str
    rule: Rule
    caller: str
    kept: Kept


def roots_of(known: Mapping[str, Service], calls: Calls, begin: Set[str]) -> list[str]:
    """The services where traces begin: those that were seen to, else those that nobody calls."""
    called = {callee for callees in calls.values() for callee in callees}
    return [name for name in known if name in begin or (not begin and name in calls and name not in called)]


def arrivals(known: Mapping[str, Service], calls: Calls, roots: Iterable[str]) -> dict[str, list[Arrival]]:
    """What comes to each service over the calls, from each root."""
    found: dict[str, list[Arrival]] = defaultdict(list)
    for root in roots:
        for rule in _distinct(known[root].rules):
            for caller, callee, kept in _walk(known, calls, root, rule.kept):
                found[callee].append(Arrival(root, rule, caller, kept))
    return found


def _distinct(rules: Iterable[Rule]) -> list[Rule]:
    """One rule for each set of traces that is kept, the first."""
    return list({rule.kept: rule for rule in reversed([*rules])}.values())[::-1]


def _walk(known: Mapping[str, Service], calls: Calls, root: str, kept: Kept) -> Iterator[tuple[str, str, Kept]]:
    """Each call that a trace can make, and what its caller has kept."""
    waiting, seen = [(root, kept)], {(root, kept)}
    while waiting:
        caller, kept = waiting.pop()
        for callee in sorted(calls.get(caller, ())):
            yield caller, callee, kept
            for decided in _decided(known[callee], kept):
                if (callee, decided) not in seen:
                    seen.add((callee, decided))
                    waiting.append((callee, decided))


def _decided(service: Service, kept: Kept) -> list[Kept]:
    return [kept] if service.sampler.parent_based else [rule.kept for rule in service.rules]


class PossibleCallers:
    """What would come to a service if each other one called it, and those that get the answer `others`: of callers
    that keep the same traces, one."""

    def __init__(self, known: Mapping[str, Service], others: Answer | None) -> None:
        rules = [] if others is None else [(OTHERS, rule) for rule in _remote_rules(others, ASSUMED.kept)]
        rules += [(service.name, rule) for service in known.values() for rule in service.rules]
        self._by_kept: dict[Kept, dict[str, Rule]] = defaultdict(dict)
        for name, rule in rules:
            if len(self._by_kept[rule.kept]) < 2:  # one to be shown, and another in case that is the callee
                self._by_kept[rule.kept].setdefault(name, rule)

    def arrivals(self, callee: str) -> Iterator[Arrival]:
        """The arrivals at a service."""
        for kept, callers in self._by_kept.items():
            for name, rule in callers.items():
                if name != callee:
                    yield Arrival(name, rule, name, kept)
                    break


def decision_findings(
    known: Mapping[str, Service], arriving: Callable[[str], Iterable[Arrival]], seen: bool
) -> Iterator[Finding]:
    """Services that decide anew about what their callers have decided; `seen`: whether the calls are known."""
    deciding = [service for service in known.values() if not service.sampler.parent_based]
    for service in deciding:
        for rule in service.rules:
            meetings = [_meeting(arrival, rule) for arrival in arriving(service.name)]
            if at_odds := [meeting for meeting in meetings if meeting.disagree]:
                yield _decision_finding(service, rule, at_odds, seen)


class Meeting(NamedTuple):
    """Two decisions about the same traces: which share of them both keep, and what each loses by the other."""

    arrival: Arrival
    shared: float | None
    lost: float | None  # of what the caller keeps
    torn: float | None  # of what the callee keeps

    @property
    def disagree(self) -> bool:
        return self.lost is None or self.torn is None or max(self.lost, self.torn) > 1e-9


def _meeting(arrival: Arrival, rule: Rule) -> Meeting:
    return Meeting(arrival, *_shares(arrival.kept, rule.kept))


@lru_cache  # many services have the same few rules
def _shares(caller: Kept, callee: Kept) -> tuple[float | None, float | None, float | None]:
    shared = both(caller, callee)
    return shared, samplers.lost(caller, shared), samplers.lost(callee, shared)


def _decision_finding(service: Service, rule: Rule, meetings: list[Meeting], seen: bool) -> Finding:
    worst = max(meetings, key=lambda m: (m.lost is None, m.lost or 0, m.torn or 0))
    arrival = worst.arrival
    independent = worst.shared is None or worst.shared < min(arrival.kept.rate, rule.kept.rate) - 1e-9
    return Finding(
        "independent_decisions" if independent else "not_parent_based",
        _decision_text(service, rule, worst, seen),
        f"let {service.name} follow its caller",
        service=service.name,
        operation=rule.operation,
        caller=arrival.caller,
        rule=service.setting,
        share_dropped=worst.lost,
        evidence={
            "caller": told_rate(arrival.kept),
            "callee": told_rate(rule.kept),
            "both": worst.shared,
            "share_torn": worst.torn,
            "calls_known": seen,
            "callers": sorted({meeting.arrival.caller for meeting in meetings}),
        },
        config=f"OTEL_TRACES_SAMPLER={_following(service.sampler)}",
    )


def _following(sampler: Sampler) -> str:
    return f"{samplers.PARENT_BASED}{sampler.setting.partition(':')[0].strip().lower()}"


def _decision_text(service: Service, rule: Rule, worst: Meeting, seen: bool) -> str:
    caller = worst.arrival.caller
    text = f"{service.name} does not follow its caller ({service.sampler.setting}): "
    if not seen:
        text += f"where {caller} calls it, "
    if worst.lost is None or worst.torn is None:
        return text + f"a limit decides what it keeps of {caller}'s traces, whatever {caller} decided"
    parts = []
    if worst.lost > 1e-9:
        parts.append(f"it drops {percent(worst.lost)} of the traces that {caller} records")
    if worst.torn > 1e-9:
        parts.append(f"{percent(worst.torn)} of the traces that it records lack {caller}'s spans")
    if worst.shared:
        parts.append(f"{percent(worst.shared)} of all are recorded by both")
    return text + ", ".join(parts)


def root_findings(
    known: Mapping[str, Service], arriving: Mapping[str, list[Arrival]], roots: list[str], named: Set[str]
) -> Iterator[Finding]:
    """What the rules of the roots do to the services behind them, those `named` in the file among them. For known
    calls only."""
    yield from _nothing_recorded(known, arriving, roots)
    behind = {name: incoming for name, incoming in arriving.items() if name not in roots}
    yield from _decided_upstream(known, behind, named)
    yield from _unequal_roots(known, arriving)


def _nothing_recorded(
    known: Mapping[str, Service], arriving: Mapping[str, list[Arrival]], roots: list[str]
) -> Iterator[Finding]:
    for root in roots:
        behind = sorted({name for name, incoming in arriving.items() if any(a.root == root for a in incoming)} - {root})
        for rule in known[root].rules:
            if rule.kept.rate == 0 and rule.operation is None and behind:
                yield Finding(
                    "nothing_recorded",
                    f"traces begin at {root}, and {known[root].sampler.setting} records none of them: "
                    f"whoever follows it records nothing either ({', '.join(behind)})",
                    f"give {root} a rate, or let it begin no traces",
                    service=root,
                    rule=known[root].setting,
                    share_dropped=1.0,
                    evidence={"behind": behind, "rate": 0},
                )


def _decided_upstream(
    known: Mapping[str, Service], behind: Mapping[str, list[Arrival]], named: Set[str]
) -> Iterator[Finding]:
    for name, incoming in behind.items():
        service, rule = known[name], known[name].rules[0]
        has_rule = name in named if service.sampler.remote else service.sampler.has_rate
        worst = max(incoming, key=lambda arrival: dropped_limit(rule.kept, arrival.kept))
        if not service.sampler.parent_based or not has_rule or all(a.kept == rule.kept for a in incoming):
            continue
        share = dropped_limit(rule.kept, worst.kept)
        yield Finding(
            "decided_upstream",
            f"{name} begins no trace, so its own rule ({_spoken(rule.kept)}) is never asked: "
            f"{worst.root} decides, and keeps {_spoken(worst.kept)}",
            f"write the rate into the rule of {worst.root}",
            service=name,
            caller=worst.root,
            rule=service.setting,
            share_dropped=share,
            evidence={"rule": told_rate(rule.kept), "arrives": told_rate(worst.kept)},
            conflict=share > 0,
        )


def _unequal_roots(known: Mapping[str, Service], arriving: Mapping[str, list[Arrival]]) -> Iterator[Finding]:
    behind: dict[tuple[tuple[str, float], ...], list[str]] = defaultdict(list)
    for name, incoming in arriving.items():
        rates = {
            a.root: a.rule.kept.rate for a in incoming if a.rule.operation is None and a.rule.kept.per_second is None
        }
        if known[name].sampler.parent_based and len(set(rates.values())) > 1:
            behind[tuple(sorted(rates.items()))].append(name)
    for rates_of_roots, names in behind.items():
        rates = dict(rates_of_roots)
        low, high = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
        yield Finding(
            "unequal_roots",
            f"traces come to {', '.join(sorted(names))} from {low} at {percent(rates[low])} and from {high} at "
            f"{percent(rates[high])}: what is recorded there depends on where a trace began",
            "give the roots one rate, or weigh what you count by the rate of the root",
            service=sorted(names)[0],
            rule=known[low].setting,
            share_dropped=dropped(rates[high], rates[low]),
            evidence={"rates": rates, "services": sorted(names)},
        )


def chains(known: Mapping[str, Service], calls: Calls, roots: Iterable[str]) -> list[dict[str, Any]]:
    """For each root and rule: the share of its traces that it records, and that every service behind it records too."""
    return [
        {"from": root, "operation": rule.operation, **_behind(known, calls, root, rule.kept)}
        for root in roots
        for rule in _distinct(known[root].rules)
    ]


def _behind(known: Mapping[str, Service], calls: Calls, root: str, kept: Kept) -> dict[str, Any]:
    reached = {callee for _, callee, _ in _walk(known, calls, root, kept)}
    return {
        "services": sorted(reached | {root}),
        "recorded": kept.rate if kept.per_second is None else None,
        "whole": _whole([known[name] for name in reached], kept),
    }


def _whole(reached: Iterable[Service], kept: Kept) -> float | None:
    """The share that every service keeps, by its rule for operations that no list names; None where a limit decides."""
    decisions = {kept, *(service.rules[0].kept for service in reached if not service.sampler.parent_based)}
    if any(decision.rate == 0 for decision in decisions):
        return 0.0
    if any(decision.per_second is not None for decision in decisions):
        return None
    return Kept(reduce(common, (decision.ids for decision in decisions))).rate


# --- names -----------------------------------------------------------------------------------------------------------


def nearly(name: str) -> str:
    """What a name is without case, spaces and separators; two names that are nearly alike are meant to be one.

    >>> nearly("Order-Service "), nearly("order_service")
    ('orderservice', 'orderservice')
    """
    return "".join(filter(str.isalnum, name)).casefold()


def near_names(written: Iterable[str], real: Set[str]) -> dict[str, str]:
    """Names that nobody has but for case and separators, and the one real name that each was meant to be."""
    written = list(written)
    missing = real - set(written)
    by_letters = defaultdict(list)
    for name in sorted(missing):
        by_letters[nearly(name)].append(name)
    near = {name: by_letters.get(nearly(name), []) for name in written if name not in real}
    return {name: candidates[0] for name, candidates in near.items() if len(candidates) == 1 and nearly(name)}


def name_findings(near: Mapping[str, str], known: Mapping[str, Service], file: Served) -> Iterator[Finding]:
    """Rules for a service that writes its name a little differently."""
    for written, real in near.items():
        rule, gets = (_remote_rules(file.answer(name), ASSUMED.kept)[0].kept for name in (written, real))
        yield Finding(
            "name_differs",
            f"the file has a rule for {written!r}, the service is called {real!r}: it gets {_spoken(gets)} "
            f"and not {_spoken(rule)}",
            "write the name as the service does (service.name)",
            service=real,
            rule=f"service {written!r}",
            share_dropped=dropped_limit(rule, gets),
            evidence={"written": told_rate(rule), "served": told_rate(gets)},
            config=f'"service": "{real}"',
        )


def operation_name_findings(service: Service, named: Set[str], seen: Set[str]) -> Iterator[Finding]:
    """Operations `named` in a service's rule that no trace of the service begins with; nothing where it begins none."""
    rates = {rule.operation: rule.kept.rate for rule in service.rules}
    near = near_names(named, seen)
    for written, real in near.items():
        rate, rest = rates.get(written, rates[None]), rates[None]
        yield Finding(
            "name_differs",
            f"{service.name} has a rule for {written!r}, its spans are called {real!r}: "
            f"they get {percent(rest)} and not {percent(rate)}",
            "write the name as the spans have it when they start",
            service=service.name,
            operation=real,
            rule=f"operation {written!r}",
            share_dropped=dropped(rate, rest),
            evidence={"written": rate, "served": rest},
            config=f'"operation": "{real}"',
        )
    unseen = sorted(named - seen - near.keys())
    if seen and unseen:
        what = f"no trace begins at {service.name} with {', '.join(map(repr, unseen))}"
        cure = "delete the rules, or write the names as the spans have them when they start"
        evidence = {"operations": unseen}
        yield Finding("never_seen", what, cure, service=service.name, evidence=evidence, conflict=False)
