"""Where a strategies file does not do what it says, and the file that does.

Each check compares a rule as it was meant with what Jaeger makes of it. `corrected` writes the rules as they were
meant, as far as Jaeger can keep them; what it already serves as written stays as it is.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from tracefill.audit.sampling.finding import Finding, number, percent
from tracefill.audit.sampling.samplers import INITIAL_RATE, by_limit, by_ratio, told
from tracefill.audit.sampling.strategies import (
    MOST_PER_SECOND,
    PROBABILISTIC,
    RATE_LIMITING,
    Answer,
    JsonObject,
    Operations,
    OperationStrategy,
    ServiceStrategy,
    Strategies,
    Strategy,
    UnreadableStrategies,
    entries,
    fill_key,
    known_keys,
    nulls,
    serve,
)

# Keys that people write for those that Jaeger has.
_OTHER_WORDS = {
    "param": {"probability", "rate", "value", "parameter", "samplingrate", "ratio", "maxtracespersecond", "limit"},
    "type": {"strategy", "kind", "sampler", "strategytype", "samplertype"},
    "service": {"name", "servicename"},
    "operation": {"name", "operationname", "span", "spanname", "endpoint"},
    "operation_strategies": {"operations", "peroperationstrategies", "peroperation"},
    "service_strategies": {"services", "perservicestrategies"},
    "default_strategy": {"default"},
}
DEFAULT = "default_strategy"
_NOBODY = "\0"  # no service is called so: it gets what every service without a rule gets


class Place(NamedTuple):
    """A rule that is in force: where it stands, for whom, and what Jaeger tells them."""

    path: str
    strategy: Strategy
    service: str | None  # None: the default strategy
    operation: str | None
    answer: Answer


class Fault(NamedTuple):
    """What is wrong with a rule by itself."""

    cause: str
    what: str
    cure: str


class StrategyChecks:
    """One file, what Jaeger serves for it, and the findings, check by check."""

    def __init__(self, strategies: Strategies, default_probability: float) -> None:
        self.strategies = strategies
        self.default_probability = default_probability
        self.served = serve(strategies, default_probability)
        self.fallback = _fallback(strategies, default_probability)

    def findings(self) -> list[Finding]:
        """All of them: first the form of the file, then rule by rule, then what rules do to each other."""
        checks: list[Callable[[], Iterator[Finding]]] = [
            self._nulls,
            self._repeated_keys,
            self._unknown_keys,
            self._repeated_services,
            self._repeated_operations,
            self._unnamed,
            self._rules,
            self._switched_off,
            self._default_missing,
            self._default_operations,
        ]
        return [finding for check in checks for finding in check()]

    # --- the form of the file ---

    def _nulls(self) -> Iterator[Finding]:
        for path in nulls(self.strategies):
            what = f"{path} is null: Jaeger ends when it reads this file, at its start or while it runs"
            yield Finding("null_entry", what, "delete the entry", rule=path, share_dropped=1.0)

    def _repeated_keys(self) -> Iterator[Finding]:
        for path in self.strategies.repeated:
            what = f"{path} is given twice; Jaeger writes the later over the earlier"
            yield Finding("key_repeated", what, "give it once", rule=path)

    def _unknown_keys(self) -> Iterator[Finding]:
        for path, target in _objects(self.strategies):
            for key, meant in misspelt(target).items():
                yield Finding(
                    "key_unknown",
                    f"Jaeger does not know the key {key!r} and passes over it; {meant!r} is not given",
                    f"call it {meant!r}",
                    service=self._respelt.service(path),
                    rule=f"{path}.{key}".lstrip("."),
                    share_dropped=self._dropped_by_spelling(path),
                    config=f'"{meant}": ...',
                )

    @cached_property
    def _respelt(self) -> _Respelt:
        return _Respelt(self.strategies, self.default_probability)

    def _dropped_by_spelling(self, path: str) -> float:
        """The greatest share that any service behind this object loses by its keys."""
        respelt = self._respelt
        services = {respelt.owner[path]} if path in respelt.owner else {*respelt.served.by_service, _NOBODY}
        operation = respelt.operation.get(path)
        return max(
            dropped(rate(respelt.served.answer(name), operation), rate(self.served.answer(name), operation))
            for name in services
        )

    def _repeated_services(self) -> Iterator[Finding]:
        places = defaultdict(list)
        for path, entry in entries(self.strategies):
            if entry is not None and path != DEFAULT and entry.service:
                places[entry.service].append((path, entry))
        for service, rules in places.items():
            if len(rules) > 1:
                what = f"{service!r} has {len(rules)} rules; Jaeger takes the last, with its operations"
                answer = self.served.answer(service)
                yield self._repeated("service_repeated", what, rules, service, None, answer)

    def _repeated_operations(self) -> Iterator[Finding]:
        for path, entry in in_force(self.strategies):
            service, answer = self._owner(path, entry)
            for name, rules in _by_operation(path, entry).items():
                if len(rules) > 1:
                    what = (
                        f"the operation {name!r} has {len(rules)} rules in a list; clients take the last that they get"
                    )
                    yield self._repeated("operation_repeated", what, rules, service, name, answer)

    def _repeated(
        self,
        cause: str,
        what: str,
        rules: list[tuple[str, Any]],
        service: str | None,
        operation: str | None,
        answer: Answer,
    ) -> Finding:
        written = [meant_rate(rule, self.fallback) for _, rule in rules]
        served = rate(answer, operation)
        return Finding(
            cause,
            what,
            "keep one rule",
            service=service,
            operation=operation,
            rule=rules[-1][0],
            share_dropped=dropped(max(written), served),
            evidence={"rules": [path for path, _ in rules], "written": written, "served": served},
        )

    # --- rule by rule ---

    def _owner(self, path: str, entry: ServiceStrategy) -> tuple[str | None, Answer]:
        if path == DEFAULT:
            return None, self.served.default
        return entry.service, self.served.answer(entry.service)

    @cached_property
    def places(self) -> list[Place]:
        """The rules that are in force and named: of several for one name the last."""
        return list(self._places())

    def _places(self) -> Iterator[Place]:
        for path, entry in in_force(self.strategies):
            service, answer = self._owner(path, entry)
            if service == "":
                continue
            yield Place(path, entry, service, None, answer)
            for name, rules in _by_operation(path, entry).items():
                yield Place(*rules[-1], service, name, answer)

    def _unnamed(self) -> Iterator[Finding]:
        for path, target in _objects(self.strategies):
            key = "operation" if isinstance(target, OperationStrategy) else "service"
            is_rule = isinstance(target, Strategy) and path != DEFAULT
            if is_rule and not getattr(target, key) and key not in {*misspelt(target).values()}:
                what = f"{path} names no {key}, so it applies to none"
                yield Finding("unnamed_entry", what, f"name the {key}, or delete the rule", rule=path)

    def _rules(self) -> Iterator[Finding]:
        for place in self.places:
            if fault := self._fault(place.strategy):
                yield self._faulty(place, fault)

    def _faulty(self, place: Place, fault: Fault) -> Finding:
        meant = _meant(place.strategy, self.fallback)
        param = place.strategy.param
        written, served = meant_rate(place.strategy, self.fallback), rate(place.answer, place.operation)
        share: float | None = dropped(written, served)
        if fault.cause == "limit_cut":  # of the traces up to the limit as written, if it is in force at all
            share = 1 - math.trunc(param) / param if place.answer.operations is None else None
        return Finding(
            *fault,
            service=place.service,
            operation=place.operation,
            rule=place.path,
            share_dropped=share,
            evidence={"type": place.strategy.type, "param": number(param), "written": written, "served": served},
            config=None if meant is None else f'"type": "{meant.type}", "param": {number(meant.param)}',
        )

    def _fault(self, rule: Strategy) -> Fault | None:
        """What is wrong with a rule by itself; the first thing that is, unless a key is only spelt wrongly."""
        respelt = {*misspelt(rule).values()}
        if rule.type not in (PROBABILISTIC, RATE_LIMITING):
            return None if "type" in respelt else self._unknown_type(rule)
        if rule.type == RATE_LIMITING and isinstance(rule, OperationStrategy):
            what = "Jaeger has no rate limits for operations: it leaves this rule out and serves the rate of the others"
            return Fault("operation_limit_ignored", what, "give the operation a probability")
        if "param" not in rule.given:
            what = f"a {rule.type} rule without param: Jaeger takes 0, nothing is recorded"
            return None if "param" in respelt else Fault("param_missing", what, "give a param")
        return _bad_probability(rule) if rule.type == PROBABILISTIC else _bad_limit(rule)

    def _unknown_type(self, rule: Strategy) -> Fault:
        what = f"Jaeger does not know the type {rule.type!r}" if rule.type else "a rule without a type"
        served = (
            f": it gets the server's default probability, {number(self.default_probability)}, not the default strategy"
        )
        return Fault("unknown_type", what + served, f"write {PROBABILISTIC!r} or {RATE_LIMITING!r}")

    # --- what rules do to each other ---

    def _switched_off(self) -> Iterator[Finding]:
        for place in self.places:
            entry, answer = place.strategy, place.answer
            limited = isinstance(entry, ServiceStrategy) and answer.per_second is not None and not answer.is_error
            if limited and answer.operations is not None:
                yield self._limit_switched_off(place, answer.operations)

    def _limit_switched_off(self, place: Place, operations: Operations) -> Finding:
        entry, rest = place.strategy, operations.rest
        own = isinstance(entry, ServiceStrategy) and bool(entry.operation_strategies)
        whose = "its own list of operations" if own else "the default strategy's list of operations"
        return Finding(
            "limit_switched_off",
            f"{whose} switches the limit of {number(entry.param)} a second off: clients look at the operations first, "
            f"and all others get {percent(min(rest, 1))}",
            "choose: a probability for all other operations, or the limit and no list"
            + ("" if own else " in the default strategy (write it into the services that need it)"),
            service=place.service,
            rule=f"{place.path if own else DEFAULT}.operation_strategies",
            share_dropped=dropped(meant_rate(entry, self.fallback), rate(place.answer)),
            evidence={
                "max_traces_per_second": number(entry.param),
                "rate_of_other_operations": rest,
                "operations": len(operations.rates),
            },
            config=f'"type": "{PROBABILISTIC}", "param": {number(self.rest(place.answer, own))}',
        )

    def rest(self, answer: Answer, own: bool) -> float:
        """The probability of the operations that no list names, in place of a limit: never less than is served."""
        assert answer.operations is not None
        fallback = self.fallback.param if own and self.fallback.type == PROBABILISTIC else 0.0
        return min(max(answer.operations.rest, fallback), 1.0)

    def _default_missing(self) -> Iterator[Finding]:
        if self.strategies.default_strategy is None:
            served = number(self.default_probability)
            what = f"there is no default strategy: a service that the file does not name records {percent(served)}"
            config = f'"{DEFAULT}": {{"type": "{PROBABILISTIC}", "param": {served}}}'
            evidence = {"served": served}
            cure = "write a default strategy"
            yield Finding("default_missing", what, cure, config=config, evidence=evidence, conflict=False)

    def _default_operations(self) -> Iterator[Finding]:
        """Operations that services never named and of which they record less than of others."""
        operations = self.served.default.operations
        default = dict(operations.rates) if operations else {}
        own = {(place.service, place.operation) for place in self.places}
        rates = {place.service: rate(place.answer) for place in self.places if place.answer.per_second is None}
        for name, served in default.items():
            higher = {service: rate for service, rate in rates.items() if service and rate > max(served, 0)}
            affected = {service: rate for service, rate in higher.items() if (service, name) not in own}
            if affected:
                yield _default_operation(name, served, affected)


def _default_operation(name: str, served: float, affected: Mapping[str, float]) -> Finding:
    highest = max(affected.values())
    return Finding(
        "default_operation_applies",
        f"the default strategy's rule for {name!r} also holds in {_listed(affected)}: "
        f"{percent(max(served, 0))} in place of {percent(highest)}",
        "name the operation in the services that shall record more of it",
        operation=name,
        rule=f"{DEFAULT}.operation_strategies",
        share_dropped=dropped(highest, max(served, 0)),
        evidence={"services": dict(affected), "served": served},
        conflict=False,
    )


def _bad_probability(rule: Strategy) -> Fault | None:
    if 0 <= rule.param <= 1:
        return None
    param = number(rule.param)
    per_cent = f" ({number(param / 100)}, if {param} per cent are meant)" if 1 < param <= 100 else ""
    what = f"{param} is not a probability: clients refuse it and stay at the rate they started with, or take it for "
    return Fault(
        "probability_out_of_range", what + ("1" if param > 0 else "0"), f"write a number from 0 to 1{per_cent}"
    )


def _bad_limit(rule: Strategy) -> Fault | None:
    param, whole = number(rule.param), math.trunc(rule.param)
    if param < 0:
        return Fault("limit_out_of_range", f"{param} a second is not a limit", "write how many traces a second")
    if whole > MOST_PER_SECOND:
        what = f"the page that clients ask has 16 bits for a limit (gRPC has 32): {param:g} a second are too many"
        return Fault("limit_out_of_range", what, f"write {MOST_PER_SECOND} at the most, or the probability 1")
    if whole == param:
        return None
    what = f"Jaeger makes {whole} of {param} traces a second" + ("" if whole else ": nothing is recorded")
    return Fault("limit_cut", what, f"write {min(math.ceil(param), MOST_PER_SECOND)}, or a probability")


def rate(answer: Answer, operation: str | None = None) -> float:
    """The share of traces that a client keeps by an answer; for a limit 1, of the traces within it.

    >>> rate(Answer(probability=0.5)), rate(Answer(per_second=0)), rate(Answer(per_second=5))
    (0.5, 0.0, 1.0)
    """
    return told(answer, operation, by_ratio(INITIAL_RATE)).rate


def dropped(written: float, served: float) -> float:
    """The share of what was written that is not served.

    >>> dropped(0.5, 0.125), dropped(0.1, 1)
    (0.75, 0.0)
    """
    return max(0.0, 1 - served / written) if written else 0.0


# --- what was meant --------------------------------------------------------------------------------------------------


def meant_rate(strategy: Strategy, fallback: Strategy) -> float:
    """The rate that a rule promises; a limit promises all traces within it."""
    meant = _meant(strategy, fallback)
    if meant is None or meant.type == RATE_LIMITING:
        return by_limit(strategy.param if meant is None else meant.param).rate
    return meant.param


def _meant(strategy: Strategy, fallback: Strategy) -> Strategy | None:
    """The rule that Jaeger can keep and that comes closest; None for the limit of an operation, which it cannot."""
    type_ = _meant_type(strategy)
    if type_ is None or "param" not in strategy.given:
        return Strategy(fallback.type, fallback.param)
    if type_ == PROBABILISTIC:
        return Strategy(type_, min(max(strategy.param, 0.0), 1.0))
    if isinstance(strategy, OperationStrategy):
        return None
    return Strategy(type_, float(min(max(math.ceil(strategy.param), 0), MOST_PER_SECOND)))


def _meant_type(strategy: Strategy) -> str | None:
    """The type by its name, or by its param where the name says nothing."""
    name = "".join(filter(str.isalpha, strategy.type)).lower()
    if name.startswith("prob") or name == "const":
        return PROBABILISTIC
    if "rate" in name or "limit" in name:
        return RATE_LIMITING
    if strategy.param <= 0:
        return None
    return PROBABILISTIC if strategy.param <= 1 else RATE_LIMITING


def _fallback(strategies: Strategies, default_probability: float) -> Strategy:
    """The default strategy as it was meant; the server's default without one."""
    server = Strategy(PROBABILISTIC, default_probability)
    default = strategies.default_strategy
    return server if default is None else _meant(default, server) or server


def misspelt(target: Any) -> dict[str, str]:
    """The keys of an object that Jaeger does not know, and the ones that were meant and are not given."""
    missing = [key for key in known_keys(target) if key not in target.given]
    found: dict[str, str] = {}
    for key, value in target.others.items():
        meant = _resembling(key, missing)
        if meant and meant not in found.values() and _fits(type(target)(), meant, value):
            found[key] = meant
    return found


def _fits(target: Any, key: str, value: Any) -> bool:
    """Whether a key can have this value; a comment may well resemble a key."""
    try:
        fill_key(target, key, value, "")
    except UnreadableStrategies:
        return False
    return value is not None


def _resembling(key: str, missing: list[str]) -> str | None:
    letters = {_letters(name): name for name in missing}
    close = difflib.get_close_matches(_letters(key), letters, 1, cutoff=0.8)
    if close:
        return letters[close[0]]
    return next((name for name in missing if _letters(key) in _OTHER_WORDS[name]), None)


def _letters(key: str) -> str:
    return "".join(filter(str.isalnum, key)).lower()


# --- the corrected file ----------------------------------------------------------------------------------------------


def corrected(strategies: Strategies, default_probability: float) -> dict[str, Any]:
    """The file that does what this one was meant to do, as JSON.

    >>> from tracefill.audit.sampling.strategies import parse
    >>> file = parse('{"service_strategies": [{"service": "a", "type": "ratelimiting", "param": 0.9}]}')
    >>> corrected(file, 0.001)
    {'service_strategies': [{'service': 'a', 'type': 'ratelimiting', 'param': 1}]}
    """
    checks = StrategyChecks(_Respelt(strategies, default_probability).strategies, default_probability)
    strategies = checks.strategies
    file = _plain_others(strategies)
    if strategies.default_strategy is not None:
        file[DEFAULT] = _corrected_service(checks, strategies.default_strategy, checks.served.default)
    kept = [entry for path, entry in in_force(strategies) if path != DEFAULT and entry.service]
    file["service_strategies"] = [
        {"service": entry.service} | _corrected_service(checks, entry, checks.served.answer(entry.service))
        for entry in kept
    ]
    return file


class _Respelt:
    """The file with its keys as they were meant."""

    def __init__(self, strategies: Strategies, default_probability: float) -> None:
        self.strategies = copy.deepcopy(strategies)
        while any([_respell(path, target) for path, target in _objects(self.strategies)]):
            pass  # what has just been moved to its place may itself hold such keys
        self.served = serve(self.strategies, default_probability)
        self.owner: dict[str, str] = {DEFAULT: _NOBODY}
        self.operation: dict[str, str] = {}
        for path, target in _objects(self.strategies):
            if isinstance(target, ServiceStrategy) and path != DEFAULT:
                self.owner[path] = target.service
            elif isinstance(target, OperationStrategy):
                self.owner[path] = self.owner[path.rpartition(".")[0]]
                self.operation[path] = target.operation

    def service(self, path: str) -> str | None:
        """The service that an object is about; None for the default strategy and the whole file."""
        owner = self.owner.get(path, _NOBODY)
        return None if owner == _NOBODY else owner


def _respell(path: str, target: Any) -> bool:
    """Move the values of misspelt keys to those that were meant; whether there was any."""
    wrong = misspelt(target)
    for key, meant in wrong.items():
        fill_key(target, meant, target.others.pop(key), path)
    return bool(wrong)


def _corrected_service(checks: StrategyChecks, entry: ServiceStrategy, answer: Answer) -> dict[str, Any]:
    rule = _meant(entry, checks.fallback)
    assert rule is not None
    operations = _corrected_operations(checks, entry)
    if rule.type == RATE_LIMITING and (operations or _operations_of_default(checks)) and answer.operations is not None:
        rule = Strategy(PROBABILISTIC, checks.rest(answer, bool(entry.operation_strategies)))
    found = _plain_others(entry) | {"type": rule.type, "param": number(rule.param)}
    return found | ({"operation_strategies": operations} if "operation_strategies" in entry.given else {})


def _operations_of_default(checks: StrategyChecks) -> list[dict[str, Any]]:
    default = checks.strategies.default_strategy
    return _corrected_operations(checks, default) if default is not None else []


def _corrected_operations(checks: StrategyChecks, entry: ServiceStrategy) -> list[dict[str, Any]]:
    """The last rule of each name, without those that Jaeger leaves out anyway."""
    last: dict[str, dict[str, Any]] = {}
    for operation in entry.operation_strategies:
        rule = None if operation is None else _meant(operation, checks.fallback)
        if operation is None or not operation.operation or rule is None or rule.type != PROBABILISTIC:
            continue
        name = {"operation": operation.operation, "type": rule.type, "param": number(rule.param)}
        last[operation.operation] = _plain_others(operation) | name
    return list(last.values())


def _plain_others(target: Strategy | Strategies) -> dict[str, Any]:
    return {key: _plain(value) for key, value in target.others.items()}


def _plain(value: Any) -> Any:
    """JSON as it was read, with objects as dicts and whole numbers whole."""
    if isinstance(value, JsonObject):
        return {key: _plain(item) for key, item in value}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return number(value) if isinstance(value, float) else value


# --- walking through the file ----------------------------------------------------------------------------------------


def in_force(strategies: Strategies) -> Iterator[tuple[str, ServiceStrategy]]:
    """The rules that Jaeger takes: the default and the last one of each service, with their paths."""
    last = {entry.service: path for path, entry in entries(strategies) if entry and path != DEFAULT}
    for path, entry in entries(strategies):
        if entry is not None and (path == DEFAULT or last[entry.service] == path):
            yield path, entry


def _by_operation(path: str, entry: ServiceStrategy) -> dict[str, list[tuple[str, OperationStrategy]]]:
    """The rules for the operations of a service, with their paths, in lists of those with one name."""
    rules = defaultdict(list)
    for index, operation in enumerate(entry.operation_strategies):
        if operation is not None and operation.operation:
            rules[operation.operation].append((f"{path}.operation_strategies[{index}]", operation))
    return rules


def _objects(strategies: Strategies) -> Iterator[tuple[str, Any]]:
    """Every object of the file that Jaeger reads, with its path."""
    yield "", strategies
    for path, entry in entries(strategies):
        if entry is not None:
            yield path, entry
            named = enumerate(entry.operation_strategies)
            yield from ((f"{path}.operation_strategies[{index}]", operation) for index, operation in named if operation)


def _listed(names: Mapping[str, Any], most: int = 3) -> str:
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
