"""What is found in a file and between services, that nothing else is, and that the corrected file has none of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from opentelemetry.sdk.trace.sampling import _get_from_env_or_default

from tests.audit.sampling_files import files
from tracefill.audit.sampling.command import Report, examine
from tracefill.audit.sampling.finding import CAUSES, Finding
from tracefill.audit.sampling.samplers import sampler
from tracefill.audit.sampling.strategies import effective, parse, serve

HALF = {"type": "probabilistic", "param": 0.5}
FIVE = {"type": "ratelimiting", "param": 5}
HEALTH = [{"operation": "/health", "type": "probabilistic", "param": 0.125}]


def look(default: Any = HALF, *services: dict[str, Any], **more: Any) -> Report:
    document = {"default_strategy": default} if default is not None else {}
    return examine(parse(json.dumps(document | {"service_strategies": services})), **more)


def agents(**settings_: str) -> dict[str, Any]:
    return {"agents": {name: sampler(setting) for name, setting in settings_.items()}}


def found(report: Report) -> list[tuple[str, str | None, str | None, float | None]]:
    """Cause, service, operation and rounded share of what is wrong."""
    return [
        (f.cause, f.service, f.operation, None if f.share_dropped is None else round(f.share_dropped, 4))
        for f in report.findings
        if f.conflict
    ]


def notes(report: Report) -> list[tuple[str, str | None]]:
    return [(finding.cause, finding.service) for finding in report.findings if not finding.conflict]


def the(report: Report, cause: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.cause == cause]
    return finding


# --- a file alone ----------------------------------------------------------------------------------------------------

IN_A_FILE: dict[str, tuple[dict[str, Any], tuple[str, str | None, str | None, float | None]]] = {
    "typo": ({"type": "probabilitic", "param": 0.5}, ("unknown_type", "a", None, 0.998)),
    "another_case": ({"type": "Probabilistic", "param": 0.5}, ("unknown_type", "a", None, 0.998)),
    "rate_limiting_with_a_line": ({"type": "rate_limiting", "param": 5}, ("unknown_type", "a", None, 0.999)),
    "no_type_and_no_param": ({}, ("unknown_type", "a", None, 0.998)),
    "no_param": ({"type": "probabilistic"}, ("param_missing", "a", None, 1.0)),
    "null_param": ({"type": "probabilistic", "param": None}, ("param_missing", "a", None, 1.0)),
    "less_than_one_a_second": ({"type": "ratelimiting", "param": 0.9}, ("limit_cut", "a", None, 1.0)),
    "a_fraction_a_second": ({"type": "ratelimiting", "param": 2.7}, ("limit_cut", "a", None, 0.2593)),
    "just_too_many": ({"type": "ratelimiting", "param": 32768}, ("limit_out_of_range", "a", None, 0.999)),
    "negative_limit": ({"type": "ratelimiting", "param": -1}, ("limit_out_of_range", "a", None, 0.0)),
    "per_cent": ({"type": "probabilistic", "param": 50}, ("probability_out_of_range", "a", None, 0.999)),
    "negative_probability": ({"type": "probabilistic", "param": -0.1}, ("probability_out_of_range", "a", None, 0.0)),
    "list_and_limit": ({**FIVE, "operation_strategies": HEALTH}, ("limit_switched_off", "a", None, 0.999)),
    "limit_of_an_operation": (
        {**HALF, "operation_strategies": [{"operation": "op", **FIVE}]},
        ("operation_limit_ignored", "a", "op", 0.5),
    ),
    "operation_without_type": (
        {**HALF, "operation_strategies": [{"operation": "op", "param": 1}]},
        ("unknown_type", "a", "op", 0.999),
    ),
    "operation_twice": (
        {**HALF, "operation_strategies": [{"operation": "op", **HALF}, *({**HEALTH[0], "operation": "op"},)]},
        ("operation_repeated", "a", "op", 0.75),
    ),
    "operation_without_name": ({**HALF, "operation_strategies": [HALF]}, ("unnamed_entry", None, None, None)),
    "key_with_an_s": ({"type": "probabilistic", "params": 0.5}, ("key_unknown", "a", None, 1.0)),
    "key_in_camel_case": ({**HALF, "operationStrategies": HEALTH}, ("key_unknown", "a", None, 0.0)),
}


@pytest.mark.parametrize(("rule", "expected"), IN_A_FILE.values(), ids=IN_A_FILE)
def test_a_rule_that_does_not_do_what_it_says_is_found(rule: dict[str, Any], expected: tuple[Any, ...]) -> None:
    report = look(HALF, {"service": "a", **rule}, {"service": "b", **FIVE})
    assert found(report) == [expected]
    assert found(examine(parse(json.dumps(report.corrected)))) == []


def test_the_default_strategy_is_checked_like_a_service() -> None:
    assert found(look({"type": "ratelimiting", "param": 0.5})) == [("limit_cut", None, None, 1.0)]
    assert found(look({"param": 0.25})) == [("unknown_type", None, None, 0.996)]


def test_of_a_service_that_is_listed_twice_the_last_wins() -> None:
    report = look(HALF, {"service": "a", **HALF}, {"service": "a", "type": "probabilistic", "param": 0.125})
    assert found(report) == [("service_repeated", "a", None, 0.75)]
    assert report.corrected["service_strategies"] == [{"service": "a", "type": "probabilistic", "param": 0.125}]


def test_a_faulty_rule_that_is_not_in_force_is_not_accused_twice() -> None:
    assert [f[0] for f in found(look(HALF, {"service": "a", "type": "x"}, {"service": "a", **HALF}))] == [
        "service_repeated"
    ]


def test_the_default_strategys_list_switches_every_limit_off() -> None:
    report = look({**HALF, "operation_strategies": HEALTH}, {"service": "a", **FIVE}, {"service": "b", **FIVE})
    assert found(report) == [("limit_switched_off", name, None, 0.5) for name in "ab"]
    assert found(examine(parse(json.dumps(report.corrected)))) == []


def test_a_limit_that_is_switched_off_is_not_said_to_drop_by_its_fraction() -> None:
    report = look({**HALF, "operation_strategies": HEALTH}, {"service": "a", "type": "ratelimiting", "param": 2.7})
    assert ("limit_cut", "a", None, None) in found(report)


def test_a_null_in_a_list_is_found_and_nothing_is_served() -> None:
    report = examine(parse('{"service_strategies": [null, {"service": "a", "type": "probabilistic", "param": 1}]}'))
    assert the(report, "null_entry").rule == "service_strategies[0]"
    assert report.document()["served"] == {"services": {"a": None}, "others": None}
    assert report.corrected == {"service_strategies": [{"service": "a", "type": "probabilistic", "param": 1}]}


def test_a_key_that_is_given_twice_is_found() -> None:
    report = examine(parse('{"default_strategy": {"type": "probabilistic", "param": 1, "param": 0.5}}'))
    assert the(report, "key_repeated").rule == "default_strategy.param"


def test_a_comment_is_no_misspelt_key() -> None:
    service = {"service": "a", **HALF, "_comment": "half", "owner": "team", "limit": "none", "Types": ["x"]}
    report = look(HALF, service)
    assert found(report) == []
    assert report.corrected["service_strategies"] == [service]


def test_whole_lists_under_another_key_are_found_and_moved() -> None:
    report = examine(
        parse(json.dumps({"default": HALF, "services": [{"name": "a", "type": "probabilistic", "rate": 0.25}]}))
    )
    assert [(cause, share) for cause, _, _, share in found(report)] == [("key_unknown", 0.998)] * 2
    assert report.corrected == {
        "default_strategy": HALF,
        "service_strategies": [{"service": "a", "type": "probabilistic", "param": 0.25}],
    }


CLEAN = [
    {"default_strategy": HALF},
    {"default_strategy": {**HALF, "operation_strategies": HEALTH}, "service_strategies": [{"service": "a", **HALF}]},
    {"default_strategy": FIVE, "service_strategies": [{"service": "a", **FIVE}, {"service": "b", **HALF}]},
    {"service_strategies": [{"service": "a", "type": "probabilistic", "param": 0}]},
    {"service_strategies": [{"service": "a", "type": "ratelimiting", "param": 0}]},
    {"service_strategies": [{"service": "a", "type": "ratelimiting", "param": 32767}]},
    {"service_strategies": [{"service": "a", **HALF, "operation_strategies": [*HEALTH, {"operation": "x", **HALF}]}]},
    {"DEFAULT_STRATEGY": HALF, "Service_Strategies": []},
]


@pytest.mark.parametrize("document", CLEAN, ids=json.dumps)
def test_nothing_is_accused_in_a_clean_file(document: dict[str, Any]) -> None:
    report = examine(parse(json.dumps(document)))
    assert found(report) == []
    served = [effective(parse(json.dumps(each)), name) for each in (document, report.corrected) for name in ("a", "z")]
    assert served[:2] == served[2:]


def test_notes_say_what_is_easily_overlooked() -> None:
    assert notes(look(None)) == [("default_missing", None)]
    report = look({**HALF, "operation_strategies": HEALTH}, {"service": "a", **HALF})
    assert notes(report) == [("default_operation_applies", None)]
    assert the(report, "default_operation_applies").evidence["services"] == {"a": 0.5}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=files())
@example('{"default_strategy": {"type": "ratelimiting", "param": 3, "operation_strategies": [{"operation": "x"}]}}')
@example('{"default_strategy": {"operations": [{"name": "x", "param": 1}]}, "service_strategies": [{"name": "a"}]}')
def test_the_corrected_file_has_no_conflicts_and_stays_as_it_is(text: str) -> None:
    corrected = examine(parse(text)).corrected
    again = examine(parse(json.dumps(corrected)))
    assert found(again) == []
    assert again.corrected == corrected


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=files())
def test_the_corrected_file_leaves_alone_what_is_served_as_written(text: str) -> None:
    strategies = parse(text)
    report = examine(strategies)
    accused = {finding.service for finding in report.findings if finding.conflict}
    if None in accused:
        return  # the default strategy is everybody's
    after = serve(parse(json.dumps(report.corrected)))
    for service, answer in report.served.by_service.items():
        if service and service not in accused:
            assert after.answer(service) == answer


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=files())
def test_every_finding_of_any_file_can_be_told(text: str) -> None:
    document = examine(parse(text)).document()
    json.dumps(document, allow_nan=False)
    for finding in document["findings"]:
        assert finding["cause"] in CAUSES
        assert finding["what"]
        assert finding["cure"]["text"]
        assert finding["share_dropped"] is None or 0 <= finding["share_dropped"] <= 1


# --- services --------------------------------------------------------------------------------------------------------


def test_a_service_that_never_asks_jaeger_makes_its_rule_void() -> None:
    report = look(HALF, {"service": "a", **HALF}, **agents(a="parentbased_traceidratio:0.1"))
    assert found(report) == [("strategy_not_asked", "a", None, 0.8)]


def test_a_service_that_records_more_than_its_rule_is_a_conflict_too() -> None:
    report = look(HALF, {"service": "a", **HALF}, **agents(a="parentbased_always_on"))
    assert found(report) == [("strategy_not_asked", "a", None, 0.0)]


def test_a_service_that_records_more_than_the_default_is_a_note() -> None:
    assert notes(look(HALF, **agents(a="parentbased_always_on"))) == [("strategy_not_asked", "a")]
    assert found(look(HALF, **agents(a="parentbased_always_off"))) == [("strategy_not_asked", "a", None, 1.0)]


def test_a_service_that_asks_jaeger_is_no_conflict() -> None:
    report = look(
        HALF, {"service": "a", **HALF}, **agents(a="parentbased_jaeger_remote:endpoint=http://collector:5778")
    )
    assert found(report) == []
    assert notes(report) == [("remote_in_python", None)]


FAULTS = {
    "unknown": ("parent_based_traceidratio:0.1", "sampler_unknown", "parentbased_traceidratio"),
    "empty": (":0.1", "sampler_unknown", "always_on"),
    "per_cent": ("traceidratio:10", "argument_invalid", "0.1, if 10 per cent are meant"),
    "no_number": ("parentbased_traceidratio:ten", "argument_invalid", "from 0 to 1"),
    "not_a_number": ("traceidratio:nan", "argument_invalid", "from 0 to 1"),
    "negative": ("traceidratio:-0.1", "argument_invalid", "from 0 to 1"),
    "without_end": ("ratelimiting:inf", "argument_invalid", "from 0 to 1"),
    "missing": ("traceidratio", "argument_missing", "from 0 to 1"),
}


@pytest.mark.parametrize(("setting", "cause", "cure"), FAULTS.values(), ids=FAULTS)
def test_a_setting_that_no_sdk_understands_is_found(setting: str, cause: str, cure: str) -> None:
    finding = the(look(None, **agents(a=setting)), cause)
    assert (finding.service, finding.evidence["recorded"]) == ("a", 1.0)
    assert cure in finding.cure


@pytest.mark.parametrize("setting", ["traceidratio:10", "traceidratio:nan", "traceidratio:x", "other", "traceidratio"])
def test_what_a_faulty_setting_keeps_is_what_the_sdk_keeps(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, argument = setting.partition(":")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    decides = _get_from_env_or_default()
    assert decides.should_sample(None, 2**64 - 1, "GET /").decision.is_sampled()
    assert sampler(setting).kept.rate == 1.0
    assert sampler(setting).parent_based == decides.get_description().startswith("ParentBased")


def test_a_name_in_another_case_is_found_and_corrected() -> None:
    report = look(
        HALF, {"service": "Order-Service", "type": "probabilistic", "param": 1}, **agents(order_service="remote")
    )
    assert found(report) == [("name_differs", "order_service", None, 0.5)]
    assert report.corrected["service_strategies"][0]["service"] == "order_service"


def test_names_that_differ_by_more_than_their_writing_are_two_services() -> None:
    report = look(
        HALF, {"service": "orders-v1", "type": "probabilistic", "param": 1}, **agents(**{"orders-v2": "remote"})
    )
    assert found(report) == []


def test_a_default_operation_of_no_rule_is_not_called_missing() -> None:
    assert found(look(None, **agents(a="parentbased_jaeger_remote"))) == []


# --- calls -----------------------------------------------------------------------------------------------------------

CALL = {"calls": [("web", "orders")]}


def test_services_that_follow_their_callers_are_clean() -> None:
    assert found(look(None, **agents(web="parentbased_traceidratio:0.1", orders="parentbased_always_on"), **CALL)) == []
    assert found(look(None, **agents(web="traceidratio:0.1", orders="parentbased_always_on"), **CALL)) == []
    assert found(look(HALF, **CALL)) == []


def test_a_lower_rate_below_a_higher_one_drops_spans() -> None:
    report = look(None, **agents(web="parentbased_traceidratio:0.5", orders="traceidratio:0.1"), **CALL)
    assert found(report) == [("not_parent_based", "orders", None, 0.8)]
    assert the(report, "not_parent_based").config == "OTEL_TRACES_SAMPLER=parentbased_traceidratio"


def test_always_on_below_a_ratio_records_torn_traces() -> None:
    report = look(None, **agents(web="parentbased_traceidratio:0.1", orders="always_on"), **CALL)
    finding = the(report, "not_parent_based")
    assert (finding.share_dropped, finding.evidence["share_torn"]) == (0, 0.9)


def test_an_edge_that_records_nothing_silences_everyone_behind_it() -> None:
    report = look(None, **agents(web="parentbased_always_off"), calls=[("web", "orders"), ("orders", "mailer")])
    finding = the(report, "nothing_recorded")
    assert (finding.service, finding.share_dropped, finding.evidence["behind"]) == ("web", 1.0, ["mailer", "orders"])


def test_a_rule_for_a_service_behind_the_edge_is_never_asked() -> None:
    rules = [{"service": "web", "type": "probabilistic", "param": 0.25}, {"service": "orders", **HALF}]
    report = look(HALF, *rules, **CALL)
    assert found(report) == [("decided_upstream", "orders", None, 0.5)]
    assert the(report, "decided_upstream").caller == "web"


def test_a_rule_behind_the_edge_that_is_lower_only_misleads() -> None:
    rules = [{"service": "web", **HALF}, {"service": "orders", "type": "probabilistic", "param": 0.25}]
    assert ("decided_upstream", "orders") in notes(look(HALF, *rules, **CALL))


def test_two_roots_at_different_rates_meet_in_one_service() -> None:
    rates = agents(web="parentbased_traceidratio:0.5", batch="parentbased_traceidratio:0.1")
    report = look(None, **rates, calls=[("web", "orders"), ("batch", "orders"), ("orders", "mailer")])
    finding = the(report, "unequal_roots")
    assert finding.evidence == {"rates": {"web": 0.5, "batch": 0.1}, "services": ["mailer", "orders"]}
    assert finding.share_dropped == pytest.approx(0.8)


def test_two_roots_at_one_rate_are_clean() -> None:
    rates = agents(web="parentbased_traceidratio:0.5", batch="traceidratio:0.5")
    assert found(look(None, **rates, calls=[("web", "orders"), ("batch", "orders")])) == []


def test_a_limit_that_does_not_follow_its_caller_depends_on_the_traffic() -> None:
    report = look(HALF, {"service": "orders", **FIVE}, **agents(orders="jaeger_remote"), **CALL)
    finding = the(report, "independent_decisions")
    assert (finding.service, finding.share_dropped) == ("orders", None)


def test_without_known_calls_anybody_may_call() -> None:
    report = look(None, **agents(web="parentbased_traceidratio:0.5", orders="traceidratio:0.1"))
    finding = the(report, "not_parent_based")
    assert (finding.caller, finding.evidence["calls_known"]) == ("web", False)
    others = look(HALF, **agents(orders="jaeger_remote"))
    assert found(others) == []
    assert the(look(HALF, **agents(orders="always_on")), "not_parent_based").caller == "any other service"


def test_what_a_service_decides_for_itself_is_what_comes_to_those_behind_it() -> None:
    rates = agents(web="traceidratio:0.5", orders="traceidratio:0.125", mailer="traceidratio:0.25", sms="remote")
    report = look(None, **rates, calls=[("web", "orders"), ("orders", "sms"), ("sms", "mailer")])
    mailer = [finding for finding in report.findings if finding.service == "mailer" and finding.conflict]
    (finding,) = mailer
    assert (finding.caller, finding.share_dropped, finding.evidence["share_torn"]) == ("sms", 0, 0.5)


def test_services_that_call_in_a_ring_are_walked_once() -> None:
    rates = agents(web="traceidratio:0.5", orders="traceidratio:0.25")
    report = look(None, **rates, calls=[("edge", "web"), ("web", "orders"), ("orders", "web")])
    assert {finding.service for finding in report.findings if finding.conflict} == {"web", "orders"}
