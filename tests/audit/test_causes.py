"""Each sentence of the contract about causes, with the smallest system that shows it, and one that must not."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.audit.systems import BEGIN, MILLISECOND, SECOND, Span, table
from tracefill.audit.chains import audit
from tracefill.audit.spans import CLIENT, CONSUMER, INTERNAL, PRODUCER, SERVER

HIGH = 0x4BF92F3577B34DA6 << 64
KAFKA = "opentelemetry.instrumentation.kafka"
REQUESTS = "opentelemetry.instrumentation.requests"
FLASK = "opentelemetry.instrumentation.flask"


def span(trace: int, number: int, parent: int = 0, *, at: float = 0, ms: float = 10, **told: Any) -> Span:
    """A span that starts `at` milliseconds and takes so many; short trace numbers get an upper half."""
    start = BEGIN + round(at * MILLISECOND)
    return Span(HIGH + trace, number, parent, start=start, end=start + round(ms * MILLISECOND), **told)


def server(
    trace: int, number: int, parent: int = 0, *, service: str = "orders", name: str = "POST /orders", **told: Any
) -> Span:
    return span(trace, number, parent, **{"kind": SERVER, "service": service, "name": name, "library": FLASK, **told})


def client(trace: int, number: int, parent: int = 0, *, to: str = "orders", **told: Any) -> Span:
    told = {"service": "web", "name": "POST", "library": REQUESTS, "attributes": {"server.address": to}, **told}
    return span(trace, number, parent, kind=CLIENT, **told)


def producer(trace: int, number: int, parent: int = 0, *, topic: str = "placed", **told: Any) -> Span:
    told = {"service": "orders", "name": f"{topic} send", "library": KAFKA, **told}
    return span(trace, number, parent, kind=PRODUCER, attributes={"messaging.destination.name": topic}, **told)


def consumer(trace: int, number: int, parent: int = 0, *, topic: str = "placed", **told: Any) -> Span:
    told = {"service": "mailer", "name": f"{topic} process", "library": KAFKA, **told}
    return span(trace, number, parent, kind=CONSUMER, attributes={"messaging.destination.name": topic}, **told)


def around(seconds: float = 1000) -> list[Span]:
    """Two spans that keep the edges of the window away from what is between them."""
    told = {"service": "edge", "name": "edge"}
    return [span(10**6, 1, at=-seconds * 1000, **told), span(10**6 + 1, 1, at=seconds * 1000, **told)]


def call(trace: int, at: float = 0, **callee: Any) -> list[Span]:
    """A request to web that calls orders: 3 spans, all of them kept."""
    return [
        server(trace, 1, service="web", name="GET /", at=at, ms=50),
        client(trace, 2, 1, at=at + 5, ms=30),
        server(trace, 3, 2, **{"at": at + 10, "ms": 20, **callee}),
    ]


def lost_call(trace: int, at: float = 0, **callee: Any) -> list[Span]:
    """The same call, torn: orders begins a trace of its own."""
    web, sent, _ = call(trace, at)
    return [web, sent, server(trace + 500_000, 3, **{"at": at + 10, "ms": 20, **callee})]


def found(spans: Iterable[Span], **options: Any) -> list[tuple[Any, ...]]:
    """The findings as (cause, layer, from, to, via, count)."""
    document = audit(table(spans), **options)
    return [tuple(f[word] for word in ("cause", "layer", "from", "to", "via", "count")) for f in document["findings"]]


def chains(spans: Iterable[Span], **options: Any) -> tuple[int, int, int, int]:
    """whole, total, torn off, left out."""
    document = audit(table(spans), **options)
    numbers = document["chains"]
    return numbers["whole"], numbers["total"], numbers["torn_off"], document["window"]["left_out"]


# --- calls and messages that began anew ---


def test_call_that_began_a_new_trace_is_not_propagated_or_anything_else_that_it_may_be() -> None:
    [finding] = audit(table(lost_call(1)))["findings"]
    assert finding["cause"] == "not_propagated"
    assert (finding["layer"], finding["from"], finding["to"], finding["via"]) == (
        "calls",
        "web",
        "orders",
        "POST /orders",
    )
    assert finding["library"] == FLASK
    assert finding["also_possible"] == ["format_mismatch", "not_extracted"]
    assert finding["cure"]["config"] == "tracefill.install(only=['requests'])"
    assert finding["examples"] == [
        {
            "trace_id": f"{HIGH + 500_001:032x}",
            "span_id": f"{3:016x}",
            "near": {"trace_id": f"{HIGH + 1:032x}", "span_id": f"{2:016x}"},
        }
    ]


def test_torn_call_is_one_broken_chain() -> None:
    assert chains(lost_call(1)) == (0, 1, 1, 0)
    assert chains([*lost_call(1), *call(2, at=100)]) == (1, 2, 1, 0)


def test_edge_that_is_kept_at_times_is_not_propagated_at_others() -> None:
    spans = [s for n in range(9) for s in call(n, at=100 * n)] + lost_call(20, at=2000)
    document = audit(table(spans))
    assert [(f["cause"], f["count"], f["also_possible"]) for f in document["findings"]] == [
        ("not_propagated", 1, ["not_extracted"])
    ]
    [edge] = [e for e in document["edges"] if e["to"] == "orders"]
    assert (edge["from"], edge["kept"], edge["total"]) == ("web", 9, 10)
    assert "1 of 10" in document["findings"][0]["evidence"]


def test_caller_that_reaches_nobody_does_not_propagate_to_a_callee_that_continues_others() -> None:
    other = [client(2, 1, service="app", at=100, ms=30), server(2, 2, 1, at=105, ms=20)]
    assert found([*lost_call(1), *other]) == [("not_propagated", "calls", "web", "orders", "POST /orders", 1)]


def test_caller_is_a_service_and_a_library() -> None:
    """web reaches orders with httpx; with requests it reaches nobody."""
    kept = call(2, at=100)
    kept[1].library = "opentelemetry.instrumentation.httpx"
    [finding] = audit(table([*lost_call(1), *kept]))["findings"]
    assert (finding["cause"], finding["also_possible"]) == ("not_propagated", ["not_extracted"])


def test_callee_that_continues_nobody_does_not_extract_if_the_caller_is_continued_elsewhere() -> None:
    elsewhere = [client(2, 1, to="stock", at=100, ms=30), server(2, 2, 1, service="stock", at=105, ms=20)]
    [finding] = audit(table([*lost_call(1), *elsewhere]))["findings"]
    assert (finding["cause"], finding["also_possible"]) == ("not_extracted", ["format_mismatch"])
    assert finding["cure"]["config"] == "tracefill.install(only=['flask'])"


def test_callee_that_several_callers_fail_to_reach_does_not_extract() -> None:
    other = lost_call(2, at=100)
    other[1].service = other[0].service = "app"
    assert found([*lost_call(1), *other]) == [
        ("not_extracted", "calls", "app", "orders", "POST /orders", 1),
        ("not_extracted", "calls", "web", "orders", "POST /orders", 1),
    ]


def test_two_that_work_with_others_only_not_with_each_other_speak_other_formats() -> None:
    spans = [
        *lost_call(1),
        *[client(2, 1, to="stock", at=100, ms=30), server(2, 2, 1, service="stock", at=105, ms=20)],
        *[client(3, 1, service="app", at=200, ms=30), server(3, 2, 1, at=205, ms=20)],
    ]
    [finding] = audit(table(spans))["findings"]
    assert (finding["cause"], finding["cure"]["config"]) == ("format_mismatch", "OTEL_PROPAGATORS=tracefill")


def test_context_of_a_caller_outside_shows_that_the_callee_extracts() -> None:
    outside = server(3, 9, 77, at=300, name="GET /status")
    [finding] = audit(table([*lost_call(1), outside]))["findings"]
    assert (finding["cause"], finding["also_possible"]) == ("not_propagated", ["not_extracted"])


@pytest.mark.parametrize(
    "far",
    [
        pytest.param({"start": BEGIN + SECOND, "end": BEGIN + 2 * SECOND}, id="another time"),
        pytest.param({"service": "stock"}, id="another target"),
        pytest.param({"kind": INTERNAL}, id="no SERVER"),
    ],
)
def test_root_is_nobodys_fault_with(far: dict[str, Any]) -> None:
    web, sent, root = lost_call(1)
    assert found([web, sent, replace(root, **far)]) == []


def test_health_check_during_a_call_that_was_kept_is_nobodys_fault() -> None:
    assert found([*call(1), server(9, 1, name="GET /healthz", at=12, ms=1)]) == []


def test_statement_to_a_database_has_no_far_side() -> None:
    web, sent, far = lost_call(1)
    sent.attributes["db.system"] = "postgresql"
    assert found([web, sent, far]) == []


def test_health_checks_that_seldom_meet_an_unanswered_call_are_a_coincidence() -> None:
    unanswered = [s for n in range(20) for s in call(n, at=10_007 * n)[:2]]
    checks = [server(100 + n, 1, name="GET /healthz", at=500 * n + 3, ms=1) for n in range(400)]
    assert found([*unanswered, *checks]) == []


def test_outer_client_of_two_nested_ones_calls_nobody_itself() -> None:
    """A gRPC CLIENT over an HTTP CLIENT: the inner one is continued; a stranger's request at that time is no proof."""
    web, outer, far = call(1)
    inner = client(1, 4, 2, at=6, ms=28)
    far.parent_id = 4
    assert found([web, outer, inner, far, server(9, 1, at=15, ms=1)]) == []


def test_target_may_be_told_by_the_operation_alone() -> None:
    spans = [
        client(1, 1, to="10.0.0.7", name="shop.Orders/Place", at=5, ms=30),
        server(2, 3, name="shop.Orders/Place", at=10, ms=20),
    ]
    assert found(spans) == [("not_propagated", "calls", "web", "orders", "shop.Orders/Place", 1)]


def test_target_may_be_learned_from_calls_that_were_kept() -> None:
    kept, lost = call(2, at=100), lost_call(1)
    kept[1].attributes = lost[1].attributes = {"server.address": "10.0.0.7"}
    assert found([*kept, *lost]) == [("not_propagated", "calls", "web", "orders", "POST /orders", 1)]


@pytest.mark.parametrize("host", ["orders.prod.svc.cluster.local", "ORDERS", "orders:8080"])
def test_target_may_be_a_host_name_of_the_service(host: str) -> None:
    web, sent, far = lost_call(1)
    sent.attributes["server.address"] = host
    assert len(found([web, sent, far])) == 1


def test_each_caller_has_one_far_side() -> None:
    assert found([*lost_call(1), server(9, 1, at=11, ms=1)])[0][-1] == 1


def test_calls_that_overlap_are_told_apart() -> None:
    """Two callers at a time: each far side goes to the call that encloses it."""
    spans = [
        client(1, 1, at=0, ms=100),
        client(2, 1, service="app", at=10, ms=30),
        server(3, 1, at=12, ms=20),
        server(4, 1, at=13, ms=80),
    ]
    document = audit(table(spans), examples=None)
    near = {e["trace_id"][-1]: e["near"]["trace_id"][-1] for f in document["findings"] for e in f["examples"]}
    assert near == {"3": "2", "4": "1"}


def test_lost_calls_are_found_however_the_callees_clock_is_off() -> None:
    """Nothing kept tells about that clock: what was lost fits at one offset only."""
    dice = random.Random(5)
    at = [dice.uniform(0, 600_000) for _ in range(40)]
    spans = [s for n, when in enumerate(at) for s in lost_call(n, at=when)]
    for late in spans[2::3]:
        late.start += 7 * SECOND
        late.end += 7 * SECOND
    assert found(spans) == [("not_propagated", "calls", "web", "orders", "POST /orders", 40)]


def test_lost_calls_are_found_by_the_clock_that_kept_calls_tell() -> None:
    spans = [s for n in range(9) for s in call(n, at=1000 * n)] + lost_call(20, at=20_000)
    for late in (s for s in spans if s.service == "orders"):
        late.start -= 3 * SECOND
        late.end -= 3 * SECOND
    assert ("not_propagated", "calls", "web", "orders", "POST /orders", 1) in found(spans)


def test_message_that_began_a_new_trace_is_lost_however_long_it_waited() -> None:
    spans = [producer(1, 1), consumer(2, 1, at=600_000)]
    assert found(spans) == [("not_propagated", "messages", "orders", "mailer", "placed", 1)]


def test_message_is_not_received_before_it_is_sent() -> None:
    kept = [s for n in range(9) for s in (producer(n, 1, at=n * 1000), consumer(n, 2, 1, at=n * 1000 + 15))]
    assert found([*kept, producer(20, 1, at=90_000), consumer(21, 1, at=20_000)]) == []


def test_topic_that_strangers_write_is_nobodys_fault() -> None:
    assert found([consumer(n, 1, at=100 * n) for n in range(20)]) == []
    assert chains([consumer(n, 1, at=100 * n) for n in range(20)]) == (20, 20, 0, 0)


def test_topic_that_strangers_write_too_is_nobodys_fault() -> None:
    kept = [s for n in range(9) for s in (producer(n, 1, at=n * 1000), consumer(n, 2, 1, at=n * 1000 + 15))]
    assert found([*kept, *(consumer(50 + n, 1, at=n * 1000 + 500) for n in range(9))]) == []


def test_message_has_a_far_side_in_each_service_that_reads_it() -> None:
    spans = [producer(1, 1), consumer(1, 2, 1, at=20), consumer(3, 1, at=30, service="billing")]
    assert found(spans) == [("not_extracted", "messages", "orders", "billing", "placed", 1)]


def test_exchange_and_queue_are_one_target_where_messages_were_seen_to_pass() -> None:
    kept = [producer(1, 1, topic="exchange"), consumer(1, 2, 1, topic="queue", at=20)]
    lost = [producer(2, 1, topic="exchange", at=100), consumer(3, 1, topic="queue", at=120)]
    assert found([*kept, *lost]) == [("not_propagated", "messages", "orders", "mailer", "queue", 1)]


def test_topic_may_be_told_by_the_names_alone() -> None:
    spans = [producer(1, 1), consumer(2, 1, at=20)]
    for one in spans:
        one.attributes = {}
    assert found(spans) == [("not_propagated", "messages", "orders", "mailer", "placed process", 1)]


def test_consumer_that_links_to_its_message_begins_a_chain_of_its_own() -> None:
    spans = [producer(1, 1), consumer(2, 1, at=20, links=[(HIGH + 1, 1)])]
    assert found(spans) == []
    assert chains(spans) == (2, 2, 0, 0)


def test_link_to_a_span_that_is_not_there_is_no_link() -> None:
    assert found([producer(1, 1), consumer(2, 1, at=20, links=[(HIGH + 1, 99)])])[0][0] == "not_propagated"


def test_batch_has_an_edge_for_each_of_its_links() -> None:
    messages = [producer(n, 1, at=n) for n in range(1, 4)]
    batch = consumer(9, 1, at=20, links=[(HIGH + n, 1) for n in range(1, 4)])
    [edge] = audit(table([*messages, batch]))["edges"]
    assert (edge["from"], edge["to"], edge["via"], edge["layer"]) == ("orders", "mailer", "placed", "messages")
    assert (edge["kept"], edge["total"]) == (3, 3)


def test_task_queue_is_of_the_jobs_layer() -> None:
    celery = "opentelemetry.instrumentation.celery"
    spans = [
        producer(1, 1, name="apply_async/mail", topic="celery", library=celery),
        consumer(2, 1, name="run/mail", topic="celery", library=celery, at=20),
    ]
    assert found(spans) == [("not_propagated", "jobs", "orders", "mailer", "celery", 1)]


# --- trace ids cut to 64 bits ---


def truncated(trace: int, number: int, parent: int, **told: Any) -> Span:
    one = server(0, number, parent, **told)
    one.trace_id = trace
    return one


def test_trace_id_cut_to_its_lower_half_is_truncated_where_the_parent_is_under_the_whole_one() -> None:
    web, sent, _ = call(1)
    spans = [web, sent, truncated(1, 3, 2, at=10, ms=20), truncated(1, 4, 3, at=12, service="stock", kind=INTERNAL)]
    assert found(spans) == [("id_truncated", "calls", "web", "orders", "POST /orders", 1)]
    assert chains(spans) == (0, 1, 1, 0)
    [finding] = audit(table(spans))["findings"]
    assert finding["examples"][0]["trace_id"] == f"{1:032x}"


def test_each_place_where_the_id_is_cut_counts() -> None:
    web, sent, _ = call(1)
    again = client(1, 12, 1, at=36, ms=10)
    spans = [web, sent, again, truncated(1, 3, 2, at=10, ms=20), truncated(1, 13, 12, at=38, ms=5)]
    assert found(spans)[0][-1] == 2
    assert chains(spans) == (0, 1, 1, 0)


def test_system_with_short_trace_ids_is_whole() -> None:
    spans = call(1)
    for one in spans:
        one.trace_id = 1
    assert found(spans) == []


# --- hand-offs ---


def test_root_inside_a_request_lost_its_hand_off() -> None:
    spans = [server(1, 1, ms=100), span(2, 1, name="render", service="orders", at=50)]
    assert found(spans) == [("handoff_lost", "handoff", "orders", "orders", "render", 1)]
    assert chains(spans) == (0, 1, 1, 0)


def test_statement_inside_a_request_is_of_the_data_layer() -> None:
    select = client(2, 1, service="orders", name="SELECT", at=50, attributes={"db.system": "sqlite"})
    assert found([server(1, 1, ms=100), select]) == [("handoff_lost", "data", "orders", "orders", "SELECT", 1)]


def test_hand_off_is_lost_at_times() -> None:
    kept = [s for n in range(9) for s in (server(n, 1, at=200 * n, ms=100), render(n, 2, 1, at=200 * n + 50))]
    document = audit(table([*kept, server(20, 1, at=9000, ms=100), render(21, 1, at=9050)]))
    [finding] = document["findings"]
    assert (finding["cause"], finding["count"]) == ("handoff_lost", 1)
    assert "1 of 10 runs of render" in finding["evidence"]
    assert finding["cure"]["config"].startswith("tracefill.install(")


def render(trace: int, number: int, parent: int = 0, **told: Any) -> Span:
    return span(trace, number, parent, **{"name": "render", "service": "orders", **told})


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(render(2, 1, at=500), id="outside the request"),
        pytest.param(render(2, 1, at=50, instance="2"), id="in another process"),
        pytest.param(render(2, 1, at=50, links=[(HIGH + 1, 1)]), id="with a link to it"),
    ],
)
def test_root_is_nobodys_fault(job: Span) -> None:
    assert found([server(1, 1, ms=100), job]) == []


def test_scheduled_job_that_meets_a_request_now_and_then_is_nobodys_fault() -> None:
    requests = [server(n, 1, at=1000 * n, ms=300) for n in range(100)]
    jobs = [render(1000 + n, 1, at=777 * n) for n in range(100)]
    assert found([*requests, *jobs]) == []


def test_scheduled_job_in_a_process_that_is_always_busy_is_nobodys_fault() -> None:
    requests = [server(n, 1, name=f"GET /{n % 7}", at=100 * n, ms=390) for n in range(1000)]
    jobs = [render(5000 + n, 1, at=3777 * n + 900) for n in range(25)]
    assert found([*requests, *jobs]) == []


def test_hand_off_of_one_operation_is_found_in_a_process_that_is_always_busy() -> None:
    requests = [server(n, 1, name=f"GET /{n % 7}", at=100 * n, ms=390) for n in range(1000)]
    lost = [render(5000 + n, 1, at=100 * n + 200) for n in range(0, 1000, 35)]
    assert found([*requests, *lost]) == [("handoff_lost", "handoff", "orders", "orders", "render", 29)]


def test_overlapping_requests_each_lost_their_own() -> None:
    requests = [server(n, 1, at=10 * n, ms=100) for n in range(5)]
    assert chains([*requests, *(render(100 + n, 1, at=10 * n + 60) for n in range(5))]) == (0, 5, 5, 0)


# --- scopes that are over too soon ---


def test_root_right_after_a_consumer_without_children_shows_a_scope_too_short() -> None:
    spans = [consumer(1, 1, ms=1), span(2, 1, name="handle", service="mailer", at=1.2)]
    [finding] = audit(table(spans))["findings"]
    assert (finding["cause"], finding["layer"], finding["via"]) == ("scope_too_short", "messages", "placed")
    assert (finding["from"], finding["to"], finding["count"]) == ("mailer", "mailer", 1)
    assert finding["examples"][0]["near"]["trace_id"] == f"{HIGH + 1:032x}"
    assert chains(spans) == (0, 1, 1, 0)


def test_second_root_of_the_loop_body_belongs_to_the_same_consumer() -> None:
    spans = [
        consumer(1, 1, ms=1),
        span(2, 1, name="check", service="mailer", at=1.2, ms=500),
        span(3, 1, name="store", service="mailer", at=501.5),
    ]
    assert found(spans) == [
        ("scope_too_short", "messages", "mailer", "mailer", "placed", 2),
    ]
    assert chains(spans) == (0, 1, 2, 0)


@pytest.mark.parametrize(
    ("more", "root"),
    [
        pytest.param([span(1, 2, 1, service="mailer", name="handle")], {"at": 1.2}, id="the consumer has a child"),
        pytest.param([], {"at": 5000}, id="much later"),
        pytest.param([], {"at": 1.2, "instance": "2"}, id="in another process"),
    ],
)
def test_root_after_a_consumer_is_nobodys_fault_if(more: list[Span], root: dict[str, Any]) -> None:
    assert found([consumer(1, 1, ms=1), *more, span(2, 1, name="work", service="mailer", **root)]) == []


# --- missing parents ---


def missing(share_of: int, every: int, *, total: int = 100) -> list[Span]:
    """Calls, of which every n-th lacks its parent, up to the first `share_of`."""
    spans = [s for n in range(total) for s in call(n, at=1000 * n)]
    lost = [n for n in range(total) if n % every == 0][:share_of]
    return [s for s in spans if not (s.kind == CLIENT and s.trace_id - HIGH in lost)] + around()


def test_remote_parents_missing_in_a_steady_share_are_sampled_out() -> None:
    [finding] = audit(table(missing(20, 5)))["findings"]
    assert (finding["cause"], finding["count"], finding["also_possible"]) == ("sampled_out", 20, ["not_exported"])
    assert (finding["layer"], finding["from"], finding["to"]) == ("calls", "web", "orders")
    assert "20 of 100" in finding["evidence"]


@pytest.mark.parametrize(
    ("count", "every", "total"),
    [
        pytest.param(10, 10, 100, id="less than a fifth"),
        pytest.param(4, 5, 20, id="less than five"),
        pytest.param(25, 1, 100, id="in a burst"),
    ],
)
def test_remote_parents_missing_otherwise_are_not_exported(count: int, every: int, total: int) -> None:
    spans = missing(count, every, total=total)
    [finding] = audit(table(spans))["findings"]
    assert (finding["cause"], finding["count"], finding["also_possible"]) == ("not_exported", count, ["sampled_out"])
    near = finding["examples"][0]["near"]
    assert (near["span_id"], near["trace_id"]) == (f"{2:016x}", finding["examples"][0]["trace_id"])
    assert chains(spans) == (total - count + 2, total + 2, 0, 0)


def test_parents_missing_inside_a_process_are_not_exported_however_many() -> None:
    spans = [
        s for n in range(50) for s in (server(n, 1, at=100 * n, ms=50), render(n, 2, 1 if n % 2 else 7, at=100 * n + 5))
    ]
    assert found([*spans, *around()]) == [("not_exported", "handoff", "orders", "orders", "render", 25)]


def test_missing_parent_counts_once_however_many_children_it_has() -> None:
    children = [render(1, 10 + n, 7, at=500 + 10 * n) for n in range(4)]
    children[2].start -= 400 * MILLISECOND
    document = audit(table([*children, render(5, 1, at=2000), *around()]))
    assert [f["count"] for f in document["findings"]] == [1]
    assert document["findings"][0]["examples"][0]["span_id"] == f"{12:016x}"


def test_from_is_who_usually_calls_of_those_in_the_trace() -> None:
    def called_by(service: str, trace: int) -> list[Span]:
        return [client(trace, 1, service=service, at=trace, ms=30), server(trace, 2, 1, at=trace + 5, ms=20)]

    usual = [s for n in range(9) for s in called_by("web", n)] + [s for n in range(20, 24) for s in called_by("app", n)]
    torn = [span(40, 1, service="app", name="work", at=50, ms=100), server(40, 5, 4, at=60)]
    assert found([*usual, *torn, *around()]) == [("not_exported", "calls", "app", "orders", "POST /orders", 1)]
    torn[0].service = "elsewhere"
    assert found([*usual, *torn, *around()]) == [("not_exported", "calls", "web", "orders", "POST /orders", 1)]


def test_caller_outside_is_never_accused() -> None:
    spans = [server(n, 2, 77, at=100 * n) for n in range(9)]
    document = audit(table([*spans, *around()]))
    assert document["findings"] == []
    assert document["chains"] == {"whole": 11, "total": 11, "share": 1.0, "torn_off": 0, "begun_outside": 9}


def test_caller_outside_of_an_operation_that_is_called_inside_too_is_missed() -> None:
    spans = [*call(1), server(2, 2, 77, at=100), *around()]
    assert [f[0] for f in found(spans)] == ["not_exported"]


@pytest.mark.parametrize("option", ["POST /orders", "orders:POST /orders", "orders:*", "POST *"])
def test_operation_named_outside_is_called_by_strangers(option: str) -> None:
    spans = [*call(1), server(2, 2, 77, at=100), *around()]
    document = audit(table(spans), outside=[option])
    assert (document["findings"], document["chains"]["begun_outside"]) == ([], 1)


def test_operation_named_outside_does_not_lose_its_callers() -> None:
    assert found(lost_call(1), outside=["POST /orders"]) == []
    assert len(found(lost_call(1), outside=["POST /stock"])) == 1


def test_doubtful_entries_name_the_option() -> None:
    spans = [*call(1), server(2, 2, 77, at=100), *around()]
    assert audit(table(spans))["doubtful_entries"] == [
        {"service": "orders", "operation": "POST /orders", "count": 1, "outside": "orders:POST /orders"}
    ]
    assert audit(table(spans), outside=["orders:POST /orders"])["doubtful_entries"] == []


def test_missing_parent_near_the_edge_is_put_down_to_the_window() -> None:
    """A window of 2000 s has edges of 30 s."""
    for at, left_out in ((-1000_000 + 29_999, 1), (-1000_000 + 30_000, 0), (969_000, 0), (971_000, 1)):
        spans = [render(1, 2, 7, at=at), *around()]
        assert (audit(table(spans))["window"]["left_out"], len(found(spans))) == (left_out, 1 - left_out)
    assert chains([render(1, 2, 7, at=-1000_000 + 29_999), *around()]) == (2, 2, 0, 1)


def test_edge_is_a_twentieth_of_a_short_window() -> None:
    window = audit(table([*around(50)]))["window"]
    assert window["edge_seconds"] == pytest.approx(100.01 / 20)
    assert window["start_unix_nano"] == str(BEGIN - 50 * SECOND)
    assert window["end_unix_nano"] == str(BEGIN + 50 * SECOND + 10 * MILLISECOND)


def test_edge_of_zero_leaves_nothing_out() -> None:
    spans = [*call(1), server(2, 2, 77), *call(3, at=100)]
    assert chains(spans) == (2, 2, 0, 1)
    assert chains(spans, edge_seconds=0) == (2, 3, 0, 0)


def test_chain_with_another_fault_is_not_left_out() -> None:
    spans = [render(1, 2, 7, at=-999_000), render(1, 3, 3, at=5), *around()]
    assert chains(spans) == (2, 3, 0, 0)


def test_parent_that_was_open_when_its_process_fell_silent_is_unfinished() -> None:
    alive = [s for n in range(40) for s in call(n, at=10_000 * n)]
    crashed = [render(100, 2, 1, at=50_000, instance="2", service="orders"), render(99, 1, at=40_000, instance="2")]
    assert found([*alive, *crashed, *around()]) == [("unfinished", "handoff", "orders", "orders", "render", 1)]


def test_parent_in_a_process_that_went_on_is_not_unfinished() -> None:
    alive = [s for n in range(40) for s in call(n, at=10_000 * n)]
    assert found([*alive, render(100, 2, 7, at=50_000), *around()])[0][0] == "not_exported"


def test_caller_that_fell_silent_left_its_call_unfinished() -> None:
    alive = [s for n in range(40) for s in call(n, at=10_000 * n)]
    crashed = call(100, at=55_000)
    for one in crashed[:2]:
        one.instance = "2"
    before = [span(100, 8, 1, service="web", name="auth", at=55_002, ms=2, instance="2")]
    spans = [*alive, *before, crashed[2], *around()]
    assert sorted(found(spans)) == [
        ("unfinished", "calls", "web", "orders", "POST /orders", 1),
        ("unfinished", "handoff", "web", "web", "auth", 1),
    ]


def test_parent_whose_children_go_on_to_the_windows_end_is_unfinished() -> None:
    events = [span(1, 10 + n, 1, service="web", name="event", at=900_000 + 5000 * n, ms=4000) for n in range(21)]
    others = [span(50 + n, 1, service="web", name="other", at=1000 * n, ms=5) for n in range(999)]
    assert found([*events, *others, *around(1004)]) == [("unfinished", "handoff", "web", "web", "event", 1)]


# --- traces that are no trees ---


def test_two_spans_with_one_id_name_the_later() -> None:
    spans = [
        server(1, 1, ms=100),
        render(1, 2, 1, at=10),
        render(1, 2, 1, at=20, name="store"),
        render(1, 2, 1, at=30, name="log"),
    ]
    assert found(spans) == [
        ("duplicate_id", "handoff", "orders", "orders", "log", 1),
        ("duplicate_id", "handoff", "orders", "orders", "store", 1),
    ]
    assert chains(spans) == (0, 1, 0, 0)


def test_same_id_in_two_traces_is_no_duplicate() -> None:
    assert found([render(1, 2), render(2, 2, at=100)]) == []


def test_several_roots_are_all_but_the_earliest() -> None:
    spans = [server(1, 1, ms=100), render(1, 2, at=10), render(1, 3, at=20)]
    assert found(spans) == [("several_roots", "handoff", "orders", "orders", "render", 2)]
    assert chains(spans) == (0, 1, 0, 0)


def test_callers_outside_may_call_twice_in_one_trace() -> None:
    spans = [server(1, 2, 77, at=0), server(1, 3, 78, at=100), *around()]
    assert found(spans) == []
    assert audit(table(spans))["chains"]["begun_outside"] == 1


def test_gateway_that_began_twice_is_of_the_gateway_layer() -> None:
    spans = [server(1, 1, ms=100, service="web"), server(1, 2, at=1, ms=90, service="web", name="inner")]
    assert found(spans) == [("several_roots", "gateway", "web", "web", "inner", 1)]


def test_span_that_is_its_own_parent_is_a_cycle() -> None:
    spans = [server(1, 1, ms=100), render(1, 2, 2, at=10)]
    assert found(spans) == [("cycle", "handoff", "orders", "orders", "render", 1)]
    assert chains(spans) == (0, 1, 0, 0)


def test_circle_of_many_counts_once_and_what_hangs_on_it_is_not_accused() -> None:
    circle = [render(1, 1 + n, 1 + (n + 1) % 150, at=n) for n in range(150)]
    tail = [render(1, 200 + n, 200 + n - 1 if n else 5, at=200 + n) for n in range(50)]
    assert found([*circle, *tail, render(2, 1, 2), render(2, 2, 1)]) == [
        ("cycle", "handoff", "orders", "orders", "render", 2)
    ]


def test_very_long_chain_is_no_cycle() -> None:
    assert found([render(1, 1 + n, n, at=n, ms=10_000 - n) for n in range(3000)]) == []


# --- whole, but wrong in time ---


def run(number: int, seconds: float, **told: Any) -> Span:
    return render(1, number, 1, at=seconds * 1000, **{"name": "poll", "attributes": {"thread.id": number}, **told})


def test_runs_long_after_their_parent_are_glued() -> None:
    spans = [server(1, 1, ms=10), *(run(10 + n, 10 + 21 * n) for n in range(4))]
    [finding] = audit(table(spans))["findings"]
    assert (finding["cause"], finding["breaks"], finding["layer"], finding["count"]) == ("glued", False, "jobs", 3)
    assert (finding["from"], finding["to"], finding["via"]) == ("orders", "orders", "poll")
    assert chains(spans) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([run(2, 40), run(3, 80)], id="two runs"),
        pytest.param([run(2, 10), run(3, 20), run(4, 29)], id="soon after"),
        pytest.param([run(2, 40), run(3, 80), run(4, 99, name="other")], id="of two names"),
        pytest.param([run(2, 40), run(3, 80), run(4, 99, instance="2")], id="in another process"),
    ],
)
def test_runs_are_not_glued_if(runs: list[Span]) -> None:
    assert found([server(1, 1, ms=10), *runs]) == []


def test_child_that_begins_after_its_parent_on_the_same_thread_shows_a_premature_end() -> None:
    thread = {"thread.id": 7}
    spans = [server(1, 1, ms=10, attributes=thread), render(1, 2, 1, at=11, attributes=thread)]
    assert found(spans) == [("premature_end", "handoff", "orders", "orders", "render", 1)]
    assert chains(spans) == (1, 1, 0, 0)


def test_child_that_a_client_waits_for_shows_a_premature_end() -> None:
    spans = [*call(1), render(1, 4, 3, at=31, ms=3)]
    assert found(spans) == [("premature_end", "handoff", "orders", "orders", "render", 1)]


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(render(1, 4, 3, at=31, ms=50), id="the CLIENT does not wait until it ends"),
        pytest.param(render(1, 4, 3, at=29, ms=3), id="it begins in time"),
        pytest.param(render(1, 4, 3, at=31, ms=3, instance="2"), id="it is in another process"),
        pytest.param(render(1, 4, 1, at=51, ms=3, service="web"), id="nobody waits"),
    ],
)
def test_end_is_not_premature_if(late: Span) -> None:
    assert found([*call(1), late]) == []


def test_work_on_another_thread_may_outlast_its_parent() -> None:
    spans = call(1)
    spans[2].attributes = {"thread.id": 1}
    assert found([*spans, render(1, 4, 3, at=31, ms=3, attributes={"thread.id": 2})]) == []


def test_server_outside_of_its_client_shows_a_clock_skew() -> None:
    early, late = call(1, at=0), call(2, at=1000)
    early[2].start -= 20 * MILLISECOND
    late[2].start, late[2].end = late[2].start + 100 * MILLISECOND, late[2].end + 100 * MILLISECOND
    spans = [*early, *late, *call(3, at=2000)]
    assert found(spans) == [("clock_skew", "calls", "web", "orders", "POST /orders", 2)]
    assert chains(spans) == (3, 3, 0, 0)


def test_span_exported_twice_counts_once() -> None:
    spans = call(1)
    spans += [replace(spans[2]), replace(spans[2])]
    document = audit(table(spans))
    assert (document["input"]["spans"], document["input"]["duplicate_spans"]) == (3, 2)
    [finding] = document["findings"]
    assert (finding["cause"], finding["from"], finding["to"], finding["count"]) == (
        "exported_twice",
        "web",
        "orders",
        2,
    )
    assert document["chains"]["whole"] == 1


def test_entry_exported_twice_is_of_the_gateway_layer() -> None:
    assert found([server(1, 1), server(1, 1)]) == [("exported_twice", "gateway", "orders", "orders", "POST /orders", 1)]
