"""The pool: what was given back is used again, and never shows what it held before."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import pytest
from opentelemetry import baggage, context, trace

import tracefill
from tracefill import Snapshot, SnapshotPool, SnapshotReleased
from tracefill.formats import B3, TRACECONTEXT

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def at(traceparent: str) -> context.Context:
    return tracefill.extract({"traceparent": traceparent})


def test_a_snapshot_of_now_has_the_numbers_of_the_current_span(spans: object) -> None:
    with trace.get_tracer("t").start_as_current_span("s") as span, tracefill.snapshot() as s:
        held = span.get_span_context()
        assert (s.trace_id, s.span_id, s.flags) == (held.trace_id, held.span_id, held.trace_flags)
        assert s.decision == "accept"
        assert s.context is context.get_current()


def test_a_snapshot_outside_of_any_span_is_not_valid() -> None:
    with tracefill.snapshot() as s:
        assert (s.trace_id, s.span_id, s.is_valid, s.decision, s.trace_state) == (0, 0, False, "defer", None)


def test_use_after_release_raises() -> None:
    s = tracefill.snapshot()
    s.release()
    assert s.released
    assert repr(s) == "<Snapshot released>"
    for use in (
        lambda: s.trace_id,
        lambda: s.tags,
        lambda: s.context,
        s.attach,
        s.to_json,
        s.to_bytes,
        s.__enter__,
        lambda: s.run(print),
        lambda: s == s,
        lambda: hash(s),
        lambda: pickle.dumps(s),
        lambda: TRACECONTEXT.encode(s),
    ):
        with pytest.raises(SnapshotReleased, match="released"):
            use()


def test_releasing_twice_raises() -> None:
    pool = SnapshotPool(4)
    s = pool.acquire()
    s.release()
    with pytest.raises(SnapshotReleased):
        s.release()
    assert pool.stats().idle == 1


def test_with_releases_and_a_release_inside_is_no_second_one() -> None:
    pool = SnapshotPool(4)
    with pool.acquire() as s:
        s.release()
    with pytest.raises(ZeroDivisionError), pool.acquire():
        raise ZeroDivisionError
    assert pool.stats().in_use == 0


def test_stats_tell_hits_misses_and_overflows() -> None:
    pool = SnapshotPool(2)
    held = [pool.acquire() for _ in range(3)]
    assert pool.stats()._asdict() == {"capacity": 2, "idle": 0, "in_use": 3, "hits": 0, "misses": 3, "overflows": 0}
    for s in held:
        s.release()
    del s
    held.clear()
    assert pool.stats()[1:] == (2, 0, 0, 3, 1)
    held = [pool.acquire() for _ in range(3)]
    assert (pool.stats().hits, pool.stats()["misses"]) == (2, 4)


def test_a_dropped_snapshot_returns_by_itself() -> None:
    pool = SnapshotPool(4)
    s = pool.acquire()
    assert pool.stats().in_use == 1
    del s
    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


def test_a_reference_that_was_kept_never_shows_another_trace() -> None:
    kept = []
    for _ in range(50):
        s = tracefill.snapshot(at(TRACEPARENT))
        kept.append((s, s.trace_id))
        s.release()
        with tracefill.snapshot(at(OTHER)) as other:
            assert all(other is not old for old, _ in kept)
            assert other.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    for old, _ in kept:
        with pytest.raises(SnapshotReleased):
            _ = old.trace_id


def test_nothing_of_the_previous_trace_shows_through() -> None:
    pool = SnapshotPool(1)
    full = Snapshot(
        1, 2, parent_id=3, decision="debug", trace_state="a=1", request_id="r", tags={"k": "v"}, baggage={"b": "c"}
    )
    s = pool.acquire(full.to_context())
    assert (s.decision, s.request_id, s.tags, s.baggage, s.trace_state) == (
        "debug",
        "r",
        {"k": "v"},
        {"b": "c"},
        {"a": "1"},
    )
    s.release()
    del s
    again = pool.acquire(context.Context())
    assert pool.stats().hits == 1
    assert (again.trace_id, again.span_id, again.parent_id, again.flags, again.decision) == (0, 0, None, 0, "defer")
    assert (again.trace_state, again.request_id, again.tags, again.baggage) == (None, None, {}, {})


def test_extracted_contexts_that_somebody_holds_are_never_filled_again() -> None:
    first = at(TRACEPARENT)
    span = trace.get_current_span(at(TRACEPARENT))
    for _ in range(100):
        at(OTHER)
    assert trace.get_current_span(first).get_span_context().span_id == 0x00F067AA0BA902B7
    assert span.get_span_context().span_id == 0x00F067AA0BA902B7


def test_a_weakly_held_span_is_not_filled_again() -> None:
    import weakref

    reference = weakref.ref(trace.get_current_span(at(TRACEPARENT)))
    for _ in range(100):
        at(OTHER)
    span = reference()
    assert span is None or span.get_span_context().span_id == 0x00F067AA0BA902B7


def test_attributes_that_a_user_sets_on_a_span_do_not_travel() -> None:
    trace.get_current_span(at(TRACEPARENT)).mark = 1  # type: ignore[attr-defined]
    for _ in range(100):
        assert not hasattr(trace.get_current_span(at(OTHER)), "mark")


@pytest.mark.parametrize("form", ["json", "pickle"])
def test_every_form_round_trips(form: str) -> None:
    s = Snapshot(
        1 << 127,
        5,
        parent_id=7,
        flags=3,
        decision="debug",
        trace_state="a=1,b= 2",
        request_id="r",
        tags={"k": "ü"},
        baggage={"b": "c d"},
    )
    back = Snapshot.from_json(s.to_json()) if form == "json" else pickle.loads(pickle.dumps(s))
    assert back == s
    assert (back.trace_id, back.parent_id, back.decision, back.tags, back.baggage) == (
        1 << 127,
        7,
        "debug",
        {"k": "ü"},
        {"b": "c d"},
    )
    assert back.trace_state.to_header() == "a=1,b= 2"


def test_29_bytes_round_trip_ids_and_flags() -> None:
    s = TRACECONTEXT.decode(TRACEPARENT)
    assert s is not None
    assert s.to_bytes() == bytes.fromhex("00004bf92f3577b34da6a3ce929d0e0e47360100f067aa0ba902b70201")
    assert Snapshot.from_bytes(s.to_bytes()) == s


@pytest.mark.parametrize(
    "bad", ["", "{", "[]", "null", '{"t":1,"s":2}', '{"t":"4bf92f3577b34da6a3ce929d0e0e4736","s":"00F067AA0BA902B7"}',
            '{"t":"00000000000000000000000000000000","s":"0000000000000000"}', "[" * 100_000, b"\xff", '{"t":"4","s":"4"}'],
)  # fmt: skip
def test_json_from_a_stranger_gives_none(bad: str | bytes) -> None:
    assert Snapshot.from_json(bad) is None


@pytest.mark.parametrize("bad", [b"", b"\0" * 29, b"\1" * 29, b"\0" * 28])
def test_bytes_from_a_stranger_give_none(bad: bytes) -> None:
    assert Snapshot.from_bytes(bad) is None


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        ({"trace_id": -1}, r"2\*\*128"), ({"trace_id": 1 << 128}, r"2\*\*128"), ({"trace_id": "4b"}, "int"),
        ({"span_id": 1 << 64}, r"2\*\*64"), ({"decision": "yes"}, "defer, deny, accept, debug"), ({"flags": 256}, "255"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_cure(arguments: dict, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        Snapshot(**arguments)


def test_attach_gives_the_token_of_opentelemetry() -> None:
    with tracefill.snapshot(at(TRACEPARENT)) as s:
        token = s.attach()
        assert trace.get_current_span().get_span_context().span_id == s.span_id
        context.detach(token)
    assert not trace.get_current_span().get_span_context().is_valid


def test_run_restores_whatever_the_function_left_behind() -> None:
    s = TRACECONTEXT.decode(TRACEPARENT)
    assert s is not None
    before = context.get_current()
    assert s.run(lambda a, b: (context.attach(at(OTHER)), a + b)[1], 1, b=2) == 3
    assert context.get_current() is before
    with pytest.raises(ZeroDivisionError):
        s.run(lambda: 1 / 0)
    assert context.get_current() is before


def test_bind_carries_the_context_into_threads_and_go_starts_one() -> None:
    seen = []
    token = context.attach(baggage.set_baggage("k", "v", at(TRACEPARENT)))
    bound = tracefill.bind(
        lambda *a: seen.append((trace.get_current_span().get_span_context().span_id, baggage.get_baggage("k"), a))
    )
    started = tracefill.go(lambda: seen.append(trace.get_current_span().get_span_context().span_id))
    context.detach(token)
    started.join()
    for i in range(2):
        thread = threading.Thread(target=bound, args=(i,))
        thread.start()
        thread.join()
    assert seen == [0x00F067AA0BA902B7, (0x00F067AA0BA902B7, "v", (0,)), (0x00F067AA0BA902B7, "v", (1,))]


def test_bind_names_its_mistakes() -> None:
    with pytest.raises(TypeError, match="callable"):
        tracefill.bind(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Snapshot"):
        tracefill.bind(print, "x")  # type: ignore[arg-type]


def test_in_use_is_back_at_zero_when_the_bound_callables_are_gone() -> None:
    gc.collect()
    before = tracefill.snapshots.stats().in_use
    calls = [tracefill.bind(print) for _ in range(10)]
    assert tracefill.snapshots.stats().in_use == before + 10
    del calls
    assert tracefill.snapshots.stats().in_use == before


def test_steady_state_allocates_nothing() -> None:
    ctx = at(TRACEPARENT)
    pool = SnapshotPool(8)

    def turn() -> None:
        for _ in range(1000):
            pool.acquire(ctx).release()

    turn()
    misses = pool.stats().misses
    tracemalloc.start()
    turn()
    before = tracemalloc.get_traced_memory()[0]
    turn()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert pool.stats().misses == misses
    assert grown < 1000


def test_a_snapshot_takes_64_bytes() -> None:
    # An object's head takes 16 bytes, and 32 where there is no GIL.
    assert sys.getsizeof(Snapshot()) <= 64 - 16 + object.__basicsize__


def test_threads_share_a_pool_without_losing_count() -> None:
    pool = SnapshotPool(16)

    def work() -> None:
        for _ in range(2000):
            with pool.acquire() as s:
                s.trace_id  # noqa: B018

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = pool.stats()
    assert stats.in_use == 0
    assert stats.hits + stats.misses == 16_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    held = tracefill.snapshot()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = tracefill.snapshots.stats().in_use
        s = tracefill.snapshot()
        during = tracefill.snapshots.stats().in_use
        s.release()
        held.release()
        os.write(write, bytes([before, during, tracefill.snapshots.stats().in_use]))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 3) == bytes([0, 1, 0])
    assert not held.released


def test_a_leak_report_names_the_place() -> None:
    code = (
        "import tracefill\nfrom tracefill.snapshots import leaks\n"
        "s = tracefill.snapshot()\nprint(leaks())\ns.release()\nprint(leaks())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRACEFILL_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["['<string>:3']", "[]"]


def test_b3_parent_is_kept() -> None:
    s = B3.decode("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90")
    assert s is not None
    assert s.parent_id == 0x05E3AC9A4F6E3B90
