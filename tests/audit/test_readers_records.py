"""What is a record and what is damaged, what is skipped and what is merely odd: the contract's section on input."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from tests.audit.systems import BEGIN, SERVER, Span, table
from tests.audit.test_readers_formats import content
from tests.audit.written import framed, jaeger, otlp_json, otlp_proto, zipkin
from tracefill.audit.chains import audit
from tracefill.audit.readers import otlp_json as reader
from tracefill.audit.readers import read
from tracefill.audit.readers.batch import SpanBatch
from tracefill.audit.spans import Input, Spans

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
SPAN = 0x00F067AA0BA902B7

Json = dict[str, Any]


def span(number: int = 0, **changes: Any) -> Span:
    return Span(trace_id=TRACE, span_id=SPAN + number, name=f"GET /{number}", kind=SERVER, **changes)


def line(*spans: Span) -> str:
    return json.dumps(otlp_json(spans or [span()]))


def read_text(tmp_path: Path, text: str | bytes, name: str = "spans") -> Spans:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return read([str(path)])


def damage(found: Input) -> list[tuple[int, str]]:
    assert found.damaged_records == len(found.damaged)
    return [(one.record, one.reason) for one in found.damaged]


# --- damaged records ---

WHOLE = line()
DAMAGED_LINES = {
    "truncated": (WHOLE[:300], "not JSON: unexpected end at column 301"),
    "truncated_in_a_string": ('{"resourceSpans": [{"res', "not JSON: unexpected end at column 25"),
    "truncated_in_a_word": ('{"resourceSpans": nul', "not JSON: unexpected end at column 22"),
    "bare_nan": (WHOLE.replace('"status": {}', '"status": NaN'), "not JSON: bare NaN"),
    "bare_infinity": (WHOLE[:-1] + ', "x": [-Infinity]}', "not JSON: bare -Infinity"),
    "two_documents": (WHOLE + WHOLE, f"not JSON: something follows the document at column {len(WHOLE) + 1}"),
    "two_documents_apart": ("{} {}", "not JSON: something follows the document at column 4"),
    "a_list": ("[1, 2]", "a list where an object belongs"),
    "a_list_of_documents": (f"[{WHOLE}]", "a list where an object belongs"),
    "a_string": ('"a string"', "a string where an object belongs"),
    "a_number": ("7", "a number where an object belongs"),
    "null": ("null", "null where an object belongs"),
    "a_word": ("nothing", "not JSON: expecting value at column 1"),
    "control_characters": ("\x00\x01", "not JSON: expecting value at column 1"),
    "a_comma_too_much": ('{"resourceSpans": [],}', "not JSON: "),
    "a_raw_control_character_in_a_string": ('{"x": "\x01"}', "not JSON: invalid control character at column 8"),
    "nested_without_end": (
        '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "not JSON that anybody wrote: nested too deeply",
    ),
    "a_number_without_end": ('{"x": ' + "9" * 5000 + "}", ""),
    "a_string_for_a_resource": ('{"resourceSpans": ["x"]}', "a string where an object belongs"),
    "an_object_for_a_list": ('{"resourceSpans": {}}', "an object where a list belongs: resourceSpans"),
    "a_list_for_a_span": ('{"resourceSpans": [{"scopeSpans": [{"spans": [[]]}]}]}', "a list where an object belongs"),
}


@pytest.mark.parametrize(("damaged", "reason"), DAMAGED_LINES.values(), ids=DAMAGED_LINES)
def test_a_damaged_line_is_counted_once_named_by_its_number_and_skipped(
    damaged: str, reason: str, tmp_path: Path
) -> None:
    found = read_text(tmp_path, f"{line(span(1))}\n{damaged}\n{line(span(2))}\n")
    if not reason:  # JSON sets no limit to numbers: Python does
        assert len(found) == 2
        return
    ((number, words),) = damage(found.input)
    assert (number, len(found)) == (2, 2)
    assert words.startswith(reason)


def test_a_line_that_is_not_utf8_is_damaged_even_where_nobody_looks(tmp_path: Path) -> None:
    bad = line().encode().replace(b'"status": {}', b'"status": {"message": "\xff"}')
    found = read_text(tmp_path, line(span(1)).encode() + b"\n" + bad)
    assert len(found) == 1
    assert damage(found.input) == [(2, f"not UTF-8: byte 0xff at column {bad.index(0xFF) + 1}")]


def test_a_line_cut_inside_a_character_ends_unexpectedly(tmp_path: Path) -> None:
    found = read_text(tmp_path, '{"resourceSpans": [], "x": "é'.encode()[:-1])
    assert damage(found.input) == [(1, "not JSON: unexpected end at column 30")]


def test_a_first_line_may_be_the_damaged_one(tmp_path: Path) -> None:
    found = read_text(tmp_path, f"[1, 2\n{line()}\n")
    assert (len(found), [number for number, _ in damage(found.input)]) == (1, [1])


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    assert len(read_text(tmp_path, line(span(1)) + "\n" + line(span(2)))) == 2


def test_lines_may_end_as_on_windows_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    found = read_text(tmp_path, f"\ufeff{line(span(1))}\r\n{line(span(2))}\r\n\r\n")
    assert (len(found), damage(found.input)) == (2, [])


def test_blank_lines_are_no_damage_but_are_numbered(tmp_path: Path) -> None:
    found = read_text(tmp_path, f"\n{line()}\n  \t\n\r\n{{\n")
    assert (len(found), [number for number, _ in damage(found.input)]) == (1, [5])


def test_unknown_fields_are_ignored_whatever_they_hold(tmp_path: Path) -> None:
    told = otlp_json([span()])
    for owner in (told, told["resourceSpans"][0], told["resourceSpans"][0]["scopeSpans"][0]["spans"][0]):
        owner |= {"new": [{"a": 1.5e300}, None, True], "resource_spans": "?", "events": 7, "status": [], "x\u2028": "é"}
    found = read_text(tmp_path, json.dumps(told, ensure_ascii=False))
    assert content(found) == content(table([span()]))


def test_other_signals_are_neither_damaged_nor_skipped(tmp_path: Path) -> None:
    others = '{"resourceMetrics":[{"scopeMetrics":[]}]}\n{"resourceLogs":[{}]}\n{}\n{"resourceSpans":null}\n{"resourceSpans":[]}\n'
    found = read_text(tmp_path, others + line())
    assert (len(found), found.input) == (1, Input())


def test_an_empty_file_has_no_spans(tmp_path: Path) -> None:
    found = read_text(tmp_path, b"")
    assert (len(found), found.input) == (0, Input())


def test_a_file_of_garbage_names_only_so_much_of_it(tmp_path: Path) -> None:
    found = read_text(tmp_path, "x\n" * 10_100)
    assert (found.input.damaged_records, len(found.input.damaged)) == (10_100, 10_000)


def test_damage_is_named_by_file(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"{line()}\n{{")
    found = read([str(tmp_path)])
    assert [(one.file, one.record) for one in found.input.damaged] == [(str(tmp_path / name), 2) for name in "ab"]


# --- damage in other formats ---


def _jaeger_traces(count: int) -> list[Json]:
    traces: list[Json] = jaeger([Span(trace_id=TRACE + number, span_id=SPAN) for number in range(count)])["data"]
    return traces


@pytest.mark.parametrize(
    "bad", ["[]", '"x"', "null", "3", '{"spans": NaN}', '{"spans": "x"}', '{"spans": [1]}', "{}{}", '{"a":"\xff"}', ""]
)
def test_a_damaged_trace_of_jaeger_costs_itself(bad: str, tmp_path: Path) -> None:
    first, second = (json.dumps(trace) for trace in _jaeger_traces(2))
    found = read_text(tmp_path, f'{{"data": [{first}, {bad}, {second}], "total": 3}}'.encode("latin-1"))
    assert (len(found), [number for number, _ in damage(found.input)]) == (2, [2])


@pytest.mark.parametrize(
    "bad", ["[]", '"x"', "null", "3", '{"name": NaN}', '{"tags": "x"}', "{}{}", '{"name":"\xff"}', ""]
)
def test_a_damaged_span_of_zipkin_costs_itself(bad: str, tmp_path: Path) -> None:
    first, second = (json.dumps(told) for told in zipkin([span(1), span(2)]))
    found = read_text(tmp_path, f"[{first}, {bad}, {second}]".encode("latin-1"))
    assert (len(found), [number for number, _ in damage(found.input)]) == (2, [2])


@pytest.mark.parametrize("cut", [20, 150, 400])
def test_a_truncated_list_of_zipkin_keeps_what_came_before(cut: int, tmp_path: Path) -> None:
    whole = [json.dumps(told) for told in zipkin([span(1), span(2)])]
    found = read_text(tmp_path, f"[{','.join(whole)},{whole[0][:cut]}"[: -1 if cut == 400 else None])
    assert len(found) == 2
    ((number, reason),) = damage(found.input)
    assert number == 3
    assert reason.startswith("not JSON: unexpected end")


def test_a_truncated_answer_of_jaeger_keeps_what_came_before(tmp_path: Path) -> None:
    first, second = (json.dumps(trace) for trace in _jaeger_traces(2))
    found = read_text(tmp_path, f'{{"data": [{first}, {second[:-30]}')
    ((number, reason),) = damage(found.input)
    assert (len(found), number) == (1, 2)
    assert reason.startswith("not JSON: unexpected end at column")


def test_a_list_that_is_never_closed_is_told_though_no_element_is_damaged(tmp_path: Path) -> None:
    found = read_text(tmp_path, json.dumps(zipkin([span(1), span(2)]))[:-1])
    assert (len(found), damage(found.input)) == (2, [(3, "not JSON: unexpected end, the list is not closed")])


def test_a_frame_that_is_no_message_is_damaged(tmp_path: Path) -> None:
    frames = [otlp_proto([span(1)]), b"\xff\xff\xff", b"", otlp_proto([span(2)])]
    found = read_text(tmp_path, framed(frames))
    assert (len(found), damage(found.input)) == (2, [(2, "not an OTLP protobuf message")])


def test_a_text_in_a_message_that_is_not_utf8_damages_its_frame(tmp_path: Path) -> None:
    bad = otlp_proto([span(1)]).replace(b"GET /1", b"GET \xff1")
    found = read_text(tmp_path, framed([bad, otlp_proto([span(2)])]))
    assert (len(found), damage(found.input)) == (1, [(1, "not an OTLP protobuf message")])


@pytest.mark.parametrize("kept", [2, 40])
def test_a_truncated_frame_is_damaged(kept: int, tmp_path: Path) -> None:
    message = otlp_proto([span(1)])
    found = read_text(tmp_path, framed([message]) + framed([message])[:kept])
    ((number, _),) = damage(found.input)
    assert (len(found), number) == (1, 2)


def test_a_length_that_cannot_be_ends_the_file(tmp_path: Path) -> None:
    found = read_text(tmp_path, framed([otlp_proto([span()])]) + b"\xff\xff\xff\xff" + bytes(100))
    assert (len(found), damage(found.input)) == (1, [(2, "not a frame: its length would be ffffffff")])


def test_a_frame_whose_compression_is_broken_is_damaged(tmp_path: Path) -> None:
    packed = zstd.compress(otlp_proto([span(1)]))
    found = read_text(
        tmp_path, framed([packed, packed[:-5], packed[:8] + b"\xff" * 40, zstd.compress(otlp_proto([span(2)]))])
    )
    assert (len(found), [number for number, _ in damage(found.input)]) == (2, [2, 3])


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_compressed_file_that_ends_early_is_read_as_far_as_it_goes(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    text = "".join(
        line(span(number, attributes={"noise": random.Random(number).randbytes(40).hex()})) + "\n"
        for number in range(9000)
    )
    packed = pack(text.encode())
    found = read_text(tmp_path, packed[: len(packed) // 2])
    assert 3000 < len(found) < 6000
    ((number, reason),) = damage(found.input)
    assert number in (len(found) + 1, len(found) + 2)
    assert "unexpected end" in reason


def test_compressed_files_may_be_joined(tmp_path: Path) -> None:
    parts = [gzip.compress(f"{line(span(number))}\n".encode()) for number in range(3)]
    assert len(read_text(tmp_path, b"".join(parts))) == 3


# --- skipped spans ---

INVALID: list[tuple[str, Any]] = [
    ("traceId", ""),
    ("traceId", None),
    ("traceId", 12),
    ("traceId", "0" * 32),
    ("traceId", "4bf92f3577b34da6a3ce929d0e0e473"),
    ("traceId", "4bf92f3577b34da6a3ce929d0e0e47366"),
    ("traceId", "xbf92f3577b34da6a3ce929d0e0e4736"),
    ("traceId", "4bf92f3577b34da6 a3ce929d0e0e473"),
    ("traceId", "4bf92f3577b34da6a3ce929d0e0e473é"),
    ("traceId", "S/kvNXezTaajzpKdDg5HNg=="),
    ("spanId", ""),
    ("spanId", []),
    ("spanId", "0" * 16),
    ("spanId", "f067aa0ba902b7"),
    ("spanId", "00f067aa0ba902b700f067aa0ba902b7"),
    ("startTimeUnixNano", ""),
    ("startTimeUnixNano", "0"),
    ("startTimeUnixNano", 0),
    ("startTimeUnixNano", -5),
    ("startTimeUnixNano", "soon"),
    ("startTimeUnixNano", {}),
    ("startTimeUnixNano", None),
    ("startTimeUnixNano", True),
    ("startTimeUnixNano", str(1 << 64)),
    ("endTimeUnixNano", ""),
    ("endTimeUnixNano", "0"),
    ("endTimeUnixNano", "never"),
    ("endTimeUnixNano", 1.5),
    ("endTimeUnixNano", (1 << 63) + 5),
    ("endTimeUnixNano", str(BEGIN - 1)),  # before it began
]


@pytest.mark.parametrize(("field", "value"), INVALID, ids=lambda value: repr(value)[:40])
def test_a_span_without_valid_ids_and_times_is_skipped_and_its_record_is_not_damaged(
    field: str, value: Any, tmp_path: Path
) -> None:
    told = otlp_json([span(1), span(2), span(3)])
    told["resourceSpans"][0]["scopeSpans"][0]["spans"][1][field] = value
    found = read_text(tmp_path, json.dumps(told))
    assert found.input == Input(skipped_spans=1)
    assert content(found) == content(table([span(1), span(3)]))


@pytest.mark.parametrize("field", ["traceId", "spanId", "startTimeUnixNano", "endTimeUnixNano"])
def test_a_span_that_lacks_a_field_is_skipped(field: str, tmp_path: Path) -> None:
    told = otlp_json([span(1, links=[(TRACE, 5)]), span(2, links=[(TRACE, 6)])])
    del told["resourceSpans"][0]["scopeSpans"][0]["spans"][0][field]
    found = read_text(tmp_path, json.dumps(told))
    assert found.input == Input(skipped_spans=1)
    assert content(found) == content(table([span(2, links=[(TRACE, 6)])]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("traceID", ""), ("spanID", "x"), ("startTime", 0), ("startTime", "x"), ("duration", None), ("duration", -1)],
)
def test_jaegers_spans_are_skipped_too(field: str, value: Any, tmp_path: Path) -> None:
    told = jaeger([span(1), span(2)])
    told["data"][0]["spans"][0][field] = value
    found = read_text(tmp_path, json.dumps(told))
    assert (len(found), found.input) == (1, Input(skipped_spans=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [("traceId", "x"), ("id", ""), ("timestamp", None), ("timestamp", 0), ("duration", None), ("duration", "x")],
)
def test_zipkins_spans_are_skipped_too(field: str, value: Any, tmp_path: Path) -> None:
    told = zipkin([span(1), span(2)])
    told[0][field] = value
    found = read_text(tmp_path, json.dumps(told))
    assert (len(found), found.input) == (1, Input(skipped_spans=1))


# --- what is merely odd ---


def test_a_span_may_end_when_it_begins(tmp_path: Path) -> None:
    assert len(read_text(tmp_path, line(span(end=BEGIN)))) == 1


def _read_span(tmp_path: Path, **fields: Any) -> Spans:
    told = otlp_json([span()])
    told["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= fields
    found = read_text(tmp_path, json.dumps(told))
    assert (len(found), found.input) == (1, Input())
    return found


@pytest.mark.parametrize(
    ("told", "number"),
    [(kind, 2) for kind in (2, "2", 2.0, "SPAN_KIND_SERVER", "SERVER", "server", "Server")]
    + [(5, 5), ("SPAN_KIND_CONSUMER", 5), ("SPAN_KIND_INTERNAL", 1), (0, 0), ("SPAN_KIND_UNSPECIFIED", 0)]
    + [(kind, 0) for kind in (9, -1, 12, "sever", None, [], True, 2.5, "")],
)
def test_a_kind_is_a_number_or_a_name(told: Any, number: int, tmp_path: Path) -> None:
    assert _read_span(tmp_path, kind=told)["kind"].tolist() == [number]


@pytest.mark.parametrize("told", [str(BEGIN), BEGIN, float(BEGIN), f"{BEGIN}"])
def test_a_time_is_a_number_or_a_string(told: Any, tmp_path: Path) -> None:
    assert _read_span(tmp_path, startTimeUnixNano=told)["start"].tolist() == [BEGIN]


@pytest.mark.parametrize("parent", [None, "", "0" * 16, "0" * 32, 0, "xyz"])
def test_a_missing_empty_or_all_zero_parent_is_none(parent: Any, tmp_path: Path) -> None:
    assert _read_span(tmp_path, parentSpanId=parent)["parent_id"].tolist() == [0]


def test_ids_may_be_of_either_case(tmp_path: Path) -> None:
    found = _read_span(tmp_path, traceId=f"{TRACE:032X}", spanId=f"{SPAN:016X}", parentSpanId="00F067AA0BA902B8")
    assert content(found) == content(table([span(parent_id=0x00F067AA0BA902B8)]))


@pytest.mark.parametrize("text", ["A3CE929D0E0E4736", "a3ce929d0e0e4736", "0000000000000000a3ce929d0e0e4736"])
def test_a_trace_id_of_16_digits_is_padded_in_every_format(text: str, tmp_path: Path) -> None:
    short = Span(trace_id=0xA3CE929D0E0E4736, span_id=SPAN, kind=SERVER, links=[(0xA3CE929D0E0E4736, 7)])
    otlp, jaegers, zipkins = otlp_json([short]), jaeger([short]), zipkin([short])
    otlp_span = otlp["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    otlp_span["traceId"] = otlp_span["links"][0]["traceId"] = text
    jaegers["data"][0]["spans"][0]["traceID"] = jaegers["data"][0]["spans"][0]["references"][0]["traceID"] = text
    zipkins[0] |= {"traceId": text, "tags": zipkins[0]["tags"] | {"otlp.link.0": f"{text}|{7:016x}||{{}}|0"}}
    for number, document in enumerate((otlp, jaegers, zipkins)):
        expected = table([Span(**{**vars(short), "links": [] if number == 1 else short.links})])
        found = read_text(tmp_path, json.dumps(document))
        if number == 1:  # in Jaeger a reference within the trace is a parent
            assert found["parent_id"].tolist() == [7]
        else:
            assert content(found) == content(expected)


def test_jaegers_ids_may_lack_their_leading_zeros(tmp_path: Path) -> None:
    told = jaeger([Span(trace_id=0x0BF92F3577B34DA6A3CE929D0E0E4736, span_id=SPAN, parent_id=0x0A, kind=SERVER)])
    trace = told["data"][0]
    trace["spans"][0] |= {"traceID": "bf92f3577b34da6a3ce929d0e0e4736", "spanID": "f067aa0ba902b7"}
    trace["spans"][0]["references"][0] |= {"traceID": "BF92F3577B34DA6A3CE929D0E0E4736", "spanID": "a"}
    found = read_text(tmp_path, json.dumps(told))
    assert [hex(found[name][0]) for name in ("trace_id_high", "span_id", "parent_id")] == [
        "0xbf92f3577b34da6",
        hex(SPAN),
        "0xa",
    ]


def test_the_same_span_twice_counts_once_in_spans_and_once_in_duplicates(tmp_path: Path) -> None:
    document = audit(read_text(tmp_path, f"{line()}\n{line()}\n{line(span(1))}"))
    assert (document["input"]["spans"], document["input"]["duplicate_spans"]) == (2, 1)


def test_a_process_is_a_service_and_its_instance(tmp_path: Path) -> None:
    found = read_text(tmp_path, line(span(1), span(2, instance="2"), span(3, service="other"), span(4)))
    assert len(set(found["process"].tolist())) == 3


def test_strings_keep_what_they_hold(tmp_path: Path) -> None:
    names = ["é \u2028 \U0001f600", 'a"b\\c', "", "null", "\n"]
    for ascii_only in (True, False):
        told = otlp_json([span(number, service="börse") for number in range(len(names))])
        for one, name in zip(told["resourceSpans"][0]["scopeSpans"][0]["spans"], names, strict=True):
            one["name"] = name
        found = read_text(tmp_path, json.dumps(told, ensure_ascii=ascii_only))
        assert [found.text("name", row) for row in range(5)] == names
        assert found.text("service", 0) == "börse"


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    found = read_text(tmp_path, line().replace("GET /0", "GET \\ud800"))
    assert (found.text("name", 0), found.input) == ("GET ?", Input())


def test_attributes_of_odd_types_are_not_told(tmp_path: Path) -> None:
    values = [
        {"doubleValue": 1.5},
        {"boolValue": True},
        {"arrayValue": {"values": []}},
        {},
        {"stringValue": 5},
        {"intValue": "x"},
    ]
    for value in values:
        found = _read_span(
            tmp_path, attributes=[{"key": "server.address", "value": value}, {"key": "thread.id", "value": value}]
        )
        assert content(found) == content(table([span()])), value


@pytest.mark.parametrize(
    "resource", [None, {}, {"attributes": None}, {"attributes": [{"key": "service.name", "value": {}}]}]
)
def test_a_resource_may_tell_no_service(resource: Any, tmp_path: Path) -> None:
    told = otlp_json([span()])
    told["resourceSpans"][0]["resource"] = resource
    assert read_text(tmp_path, json.dumps(told))["service"].tolist() == [0]


def test_answers_of_jaegers_newer_api_may_be_saved_to_a_file(tmp_path: Path) -> None:
    wrapped = json.dumps({"result": otlp_json([span(1)])})
    assert len(read_text(tmp_path, f"{wrapped}\n{line(span(2))}\n")) == 2
    assert len(read_text(tmp_path, json.dumps(json.loads(wrapped), indent=1))) == 1


def test_zipkins_shared_span_is_a_callee_of_the_one_that_it_shares_its_id_with(tmp_path: Path) -> None:
    client, server = zipkin([Span(TRACE, SPAN, kind=3), span()])
    found = read_text(tmp_path, json.dumps([client, server | {"shared": True}]))
    chains = audit(found)
    assert (chains["chains"]["whole"], chains["edges"][0]["kept"]) == (1, 1)


# --- the quick way and the patient way ---


def _odd(told: Any, draw: random.Random) -> Any:
    """The document with one value somewhere replaced."""
    told = copy.deepcopy(told)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(told)
    owner, key = draw.choice(places)
    odd = [
        None,
        0,
        1,
        "",
        "x",
        "7",
        2.0,
        -1,
        True,
        [],
        {},
        [{}],
        {"stringValue": "y"},
        "0" * 32,
        1 << 70,
        "\ud800",
        "é",
    ]
    owner[key] = draw.choice(odd)
    return told


def _outcome(decode: Callable[[bytes], None]) -> Any:
    batch = SpanBatch()
    try:
        decode(batch)  # type: ignore[arg-type]
    except Exception as error:
        return str(error)
    spans = batch.build()
    return content(spans), spans.input


def test_the_quick_way_never_says_other_than_the_patient_way() -> None:
    told = otlp_json(
        [span(1, attributes={"url.full": "http://a/b", "thread.id": 7}, links=[(TRACE, 5)]), span(2, parent_id=SPAN)]
    )
    quick = 0
    for seed in range(4000):
        document = json.dumps(_odd(told, random.Random(seed)), ensure_ascii=seed % 2 == 0).encode(
            "utf-8", "surrogatepass"
        )
        by_both = _outcome(lambda batch, document=document: reader.read_document(document, batch))  # type: ignore[misc]
        patient = _outcome(lambda batch, document=document: reader._add(reader._patient_decode(document), batch))  # type: ignore[misc]
        assert by_both == patient, document
        quick += _is_quick(document)
    assert 1000 < quick < 3900


def _is_quick(document: bytes) -> bool:
    try:
        reader.DECODER.decode(document)
    except Exception:
        return False
    return True
