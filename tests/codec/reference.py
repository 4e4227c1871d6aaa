"""The slow oracle: each format read and written straight from its specification, to check the compiled core against.

Nothing here is fast, clever or shared with the core. A decode function takes header values (text, bytes or None) and
gives a `Position`, or None when there is nothing valid; an encode function takes a `Position` and gives header values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

Value: TypeAlias = str | bytes | None

LOWER_HEX = frozenset("0123456789abcdef")
DIGITS = frozenset("0123456789")
LOWER_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
OWS = " \t"  # optional white space, RFC 9110 section 5.6.3


@dataclass(frozen=True)
class Position:
    trace_id: int
    span_id: int
    decision: str
    flags: int = 0
    parent_id: int | None = None
    trace_state: str = ""  # as it is sent on: members without white space around them, joined by commas


def text_of(value: Value) -> str | None:
    """A header value without the white space around it; a byte beyond ASCII becomes a letter that no format allows."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return None if text is None else text.strip(OWS)


def some_text_of(value: Value) -> str | None:
    """As `text_of`, for headers that may be left empty: nothing was said."""
    return text_of(value) or None


def number(text: str, *widths: int) -> int | None:
    """What so many lower-case hex digits say, or None."""
    return int(text, 16) if len(text) in widths and set(text) <= LOWER_HEX else None


def flags_of(decision: str) -> int:
    return 1 if decision in ("accept", "debug") else 0


def position(trace_id: int, span_id: int, decision: str, parent_id: int | None = None) -> Position:
    return Position(trace_id, span_id, decision, flags_of(decision), parent_id)


# ---- W3C Trace Context, level 2: https://www.w3.org/TR/trace-context-2/


def decode_tracecontext(traceparent: Value = None, tracestate: Value = None) -> Position | None:
    text = text_of(traceparent)
    if text is None or not text.isascii() or len(text) < 2 + 1 + 32 + 1 + 16 + 1 + 2:
        return None
    version, trace_id, span_id = number(text[0:2], 2), number(text[3:35], 32), number(text[36:52], 16)
    flags, rest = number(text[53:55], 2), text[55:]
    if text[2] + text[35] + text[52] != "---" or version is None or flags is None:
        return None
    if not trace_id or not span_id:
        return None
    if version == 0xFF or (version == 0 and rest) or (rest and rest[0] != "-"):
        return None
    return Position(trace_id, span_id, "accept" if flags & 1 else "deny", flags, None, read_tracestate(tracestate))


def read_tracestate(value: Value) -> str:
    """The members to send on; nothing when one of them is invalid, when they are too many or the text is too long."""
    raw = value.decode("latin-1") if isinstance(value, bytes) else value or ""
    members = [member.strip(OWS) for member in raw.split(",")]
    members = [member for member in members if member]
    if len(raw) > 8192 or len(members) > 32 or not all(is_tracestate_member(member) for member in members):
        return ""
    return ",".join(members)


def is_tracestate_member(member: str) -> bool:
    key, equals, value = member.partition("=")
    return equals == "=" and is_tracestate_key(key) and is_tracestate_value(value)


def is_tracestate_key(key: str) -> bool:
    first = LOWER_LETTERS | DIGITS
    return 1 <= len(key) <= 256 and key[0] in first and set(key) <= first | set("_-*/@")


def is_tracestate_value(value: str) -> bool:
    return 1 <= len(value) <= 256 and all(" " <= letter <= "~" and letter not in ",=" for letter in value)


def tracestate_mapping(trace_state: str) -> dict[str, str]:
    """The members by key; of several with one key the left-most, which is the newest."""
    members = [member.partition("=") for member in trace_state.split(",") if member]
    return {key: value for key, _, value in reversed(members)}


def encode_tracecontext(at: Position) -> tuple[str | None, ...]:
    if not at.trace_id or not at.span_id:
        return None, None
    known_flags = at.flags & 0b11  # sampled and random; the others MUST be zero on the way out
    return f"00-{at.trace_id:032x}-{at.span_id:016x}-{known_flags:02x}", at.trace_state or None


# ---- B3: https://github.com/openzipkin/b3-propagation, and Brave where the page is silent

B3_DECISIONS = {"0": "deny", "1": "accept", "d": "debug"}
B3_STATES = {decision: state for state, decision in B3_DECISIONS.items()}


def decode_b3(b3: Value = None) -> Position | None:
    fields = (text_of(b3) or "").split("-")
    if len(fields) == 1:
        return position(0, 0, B3_DECISIONS[fields[0]]) if fields[0] in B3_DECISIONS else None
    if len(fields) > 4:
        return None
    trace_id, span_id = number(fields[0], 16, 32), number(fields[1], 16)
    if not trace_id or not span_id:
        return None
    has_parent = len(fields) == 4 or (len(fields) == 3 and len(fields[2]) == 16)
    parent_id = number(fields[-1], 16) if has_parent else None
    if has_parent and not parent_id:
        return None
    states = fields[2:-1] if has_parent else fields[2:]
    if not states:
        return position(trace_id, span_id, "defer", parent_id)
    return position(trace_id, span_id, B3_DECISIONS[states[0]], parent_id) if states[0] in B3_DECISIONS else None


def encode_b3(at: Position) -> tuple[str | None, ...]:
    state = B3_STATES.get(at.decision)
    if not at.trace_id or not at.span_id:
        return (state,)
    ids = f"{at.trace_id:032x}-{at.span_id:016x}"
    return (f"{ids}-{state}" if state else ids,)


# ---- B3, one header a field

YES_OR_NO = {"1": "accept", "true": "accept", "0": "deny", "false": "deny", None: "defer"}


def yes_or_no(value: Value) -> str | None:
    """The decision in a `sampled` header; None when it is malformed."""
    text = some_text_of(value)
    return YES_OR_NO.get(text.lower() if text and text.isascii() else text)  # beyond ASCII, lower() finds letters


def decode_b3multi(
    trace_id: Value = None, span_id: Value = None, parent_id: Value = None, sampled: Value = None, flags: Value = None
) -> Position | None:
    decision = yes_or_no(sampled)
    trace, span, parent = text_of(trace_id), text_of(span_id), text_of(parent_id)
    if decision is None or (parent is not None and not number(parent, 16)):
        return None
    if text_of(flags) == "1":
        decision = "debug"
    if trace is None and span is None:
        return position(0, 0, decision) if decision != "defer" and parent is None else None
    if not number(trace or "", 16, 32) or not number(span or "", 16):
        return None
    return position(int(trace, 16), int(span, 16), decision, int(parent, 16) if parent else None)  # type: ignore[arg-type]


def encode_b3multi(at: Position) -> tuple[str | None, ...]:
    sampled = {"deny": "0", "accept": "1"}.get(at.decision)
    flags = "1" if at.decision == "debug" else None
    if not at.trace_id or not at.span_id:
        return None, None, None, sampled, flags
    return f"{at.trace_id:032x}", f"{at.span_id:016x}", None, sampled, flags


# ---- Jaeger: https://www.jaegertracing.io/docs/1.76/client-libraries/#propagation-format

SOME_WIDTHS_64 = tuple(range(1, 16 + 1))
SOME_WIDTHS_128 = tuple(range(1, 32 + 1))


def decode_jaeger(uber_trace_id: Value = None) -> Position | None:
    text = text_of(uber_trace_id) or ""
    fields = text.replace("%3A", ":").replace("%3a", ":").split(":")
    if len(fields) != 4:
        return None
    trace_id, span_id = number(fields[0], *SOME_WIDTHS_128), number(fields[1], *SOME_WIDTHS_64)
    flags = number(fields[3], 1, 2)
    if not trace_id or not span_id or flags is None:
        return None
    if fields[2] and number(fields[2], *SOME_WIDTHS_64) is None:
        return None
    return position(trace_id, span_id, "debug" if flags & 2 else "accept" if flags & 1 else "deny")


def encode_jaeger(at: Position) -> tuple[str | None, ...]:
    if not at.trace_id or not at.span_id:
        return (None,)
    flags = {"accept": 1, "debug": 3}.get(at.decision, 0)
    return (f"{at.trace_id:032x}:{at.span_id:016x}:0:{flags}",)


# ---- X-Ray: https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader

XRAY_DECISIONS = {"0": "deny", "1": "accept", "?": "defer"}


def decode_xray(x_amzn_trace_id: Value = None) -> Position | None:
    text = text_of(x_amzn_trace_id) or ""
    if not text.isascii():
        return None
    parts = [part.partition("=") for part in text.split(";")]
    values = [(key.strip(OWS), value.strip(OWS)) for key, _, value in parts]
    trace_ids = [xray_root(value) for key, value in values if key == "Root"]
    span_ids = [number(value, 16) for key, value in values if key == "Parent"]
    decisions = [XRAY_DECISIONS.get(value) for key, value in values if key == "Sampled"] or ["defer"]
    if not trace_ids or not span_ids or None in trace_ids + span_ids or None in decisions:
        return None
    if not trace_ids[-1] or not span_ids[-1] or decisions[-1] is None:
        return None
    return position(trace_ids[-1], span_ids[-1], decisions[-1])


def xray_root(root: str) -> int | None:
    fields = root.split("-")
    if len(fields) != 3 or fields[0] != "1" or len(fields[1]) != 8:
        return None
    return number(fields[1] + fields[2], 8 + 24)


def encode_xray(at: Position) -> tuple[str | None, ...]:
    if not at.trace_id or not at.span_id:
        return (None,)
    trace_id = f"{at.trace_id:032x}"
    sampled = {"deny": ";Sampled=0", "accept": ";Sampled=1", "debug": ";Sampled=1"}.get(at.decision, "")
    return (f"Root=1-{trace_id[:8]}-{trace_id[8:]};Parent={at.span_id:016x}{sampled}",)


# ---- Datadog: https://docs.datadoghq.com/tracing/trace_collection/trace_context_propagation/


def decimal_64(text: str | None) -> int | None:
    """What decimal digits say, if it fits into 64 bits."""
    if not text or not set(text) <= DIGITS:
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= 20 and int(digits) < 2**64 else None


def decode_datadog(
    trace_id: Value = None, parent_id: Value = None, priority: Value = None, origin: Value = None, tags: Value = None
) -> Position | None:
    lower_half, span_id = decimal_64(text_of(trace_id)), decimal_64(text_of(parent_id))
    decision = datadog_decision(some_text_of(priority))
    if lower_half is None or not span_id or decision is None:
        return None
    whole = datadog_upper_half(text_of(tags) or "") << 64 | lower_half
    return position(whole, span_id, decision) if whole else None


def datadog_decision(priority: str | None) -> str | None:
    """Below 1 the user or a sampler says no, 2 is a user's explicit yes."""
    if priority is None:
        return "defer"
    size = decimal_64(priority.removeprefix("-"))
    if size is None:
        return None
    if size == 0 or priority.startswith("-"):
        return "deny"
    return "debug" if size == 2 else "accept"


def datadog_upper_half(tags: str) -> int:
    """The upper half of the trace id, which travels as a tag; 0 when there is none, or none that is well-formed."""
    pairs = [tag.strip(OWS).partition("=") for tag in tags.split(",")]
    halves = [number(value, 16) for key, _, value in pairs if key == "_dd.p.tid"]
    return next((half for half in reversed(halves) if half), 0) if tags.isascii() else 0


def encode_datadog(at: Position) -> tuple[str | None, ...]:
    if not at.trace_id or not at.span_id:
        return None, None, None, None, None
    upper_half, lower_half = divmod(at.trace_id, 2**64)
    priority = {"deny": "0", "accept": "1", "debug": "2"}.get(at.decision)
    tags = f"_dd.p.tid={upper_half:016x}" if upper_half else None
    return str(lower_half), str(at.span_id), priority, None, tags


# ---- OT Trace, of OpenTracing's basic tracers: https://pypi.org/project/opentelemetry-propagator-ot-trace/


def decode_ottrace(trace_id: Value = None, span_id: Value = None, sampled: Value = None) -> Position | None:
    trace, span = number(text_of(trace_id) or "", *SOME_WIDTHS_128), number(text_of(span_id) or "", *SOME_WIDTHS_64)
    decision = yes_or_no(sampled)
    return position(trace, span, decision) if trace and span and decision else None


def encode_ottrace(at: Position) -> tuple[str | None, ...]:
    right_half = at.trace_id % 2**64  # "When truncating, the least significant (right-most) bits MUST be retained"
    if not right_half or not at.span_id:
        return None, None, None
    sampled = {"deny": "false", "accept": "true", "debug": "true"}.get(at.decision)
    return f"{right_half:016x}", f"{at.span_id:016x}", sampled


# ---- grpc-trace-bin: https://github.com/census-instrumentation/opencensus-specs/blob/master/encodings/BinaryEncoding.md


def decode_grpc_bin(grpc_trace_bin: Value = None) -> Position | None:
    if not isinstance(grpc_trace_bin, bytes) or len(grpc_trace_bin) < 1 + 1 + 16 + 1 + 8:
        return None
    version, trace_field, span_field = grpc_trace_bin[0], grpc_trace_bin[1], grpc_trace_bin[18]
    if (version, trace_field, span_field) != (0, 0, 1):
        return None
    trace_id, span_id = int.from_bytes(grpc_trace_bin[2:18], "big"), int.from_bytes(grpc_trace_bin[19:27], "big")
    rest = grpc_trace_bin[27:]
    flags = rest[1] if len(rest) >= 2 and rest[0] == 2 else 0
    return Position(trace_id, span_id, "accept" if flags & 1 else "deny", flags) if trace_id and span_id else None


def encode_grpc_bin(at: Position) -> tuple[bytes | None, ...]:
    if not at.trace_id or not at.span_id:
        return (None,)
    ids = b"\0" + at.trace_id.to_bytes(16, "big") + b"\1" + at.span_id.to_bytes(8, "big")
    return (b"\0" + ids + b"\2" + bytes([at.flags & 0b11]),)


class Oracle(NamedTuple):
    decode: Callable[..., Position | None]
    encode: Callable[[Position], tuple[str | bytes | None, ...]]


ORACLES = {
    "tracecontext": Oracle(decode_tracecontext, encode_tracecontext),
    "b3": Oracle(decode_b3, encode_b3),
    "b3multi": Oracle(decode_b3multi, encode_b3multi),
    "jaeger": Oracle(decode_jaeger, encode_jaeger),
    "xray": Oracle(decode_xray, encode_xray),
    "datadog": Oracle(decode_datadog, encode_datadog),
    "ottrace": Oracle(decode_ottrace, encode_ottrace),
    "grpc_bin": Oracle(decode_grpc_bin, encode_grpc_bin),
}


# ---- W3C Baggage: https://www.w3.org/TR/baggage/

LETTERS_AND_DIGITS = LOWER_LETTERS | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ") | DIGITS
TOKEN = LETTERS_AND_DIGITS | frozenset("!#$%&'*+-.^_`|~")
BAGGAGE_OCTETS = frozenset(map(chr, range(0x21, 0x7F))) - frozenset('",;\\')
MOST_MEMBERS, LONGEST_MEMBER, LONGEST_BAGGAGE = 180, 4096, 8192


class Member(NamedTuple):
    key: str
    value: str
    properties: str  # as they came, white space and all, with the `;` before each
    sent: str  # what follows the `=` on the way out


def decode_baggage(*headers: str | bytes) -> dict[str, str]:
    """The valid members of all lines, in order; the value of one that has properties reads `value;property;...`."""
    return {member.key: member.value + member.properties for member in baggage_members(*headers)}


def pass_on_baggage(*headers: str | bytes) -> str | None:
    """What goes out again when nobody changed anything: of members with one key the last, in the place of the first."""
    members = {member.key: member for member in baggage_members(*headers)}
    return join_baggage([f"{percent_encode(key, TOKEN)}={member.sent}" for key, member in members.items()])


def encode_baggage(baggage: Mapping[str, str]) -> str | None:
    return join_baggage(
        [f"{percent_encode(key, TOKEN)}={percent_encode(value)}" for key, value in baggage.items() if key]
    )


def baggage_members(*headers: str | bytes) -> list[Member]:
    lines = [header if isinstance(header, bytes) else header.encode("utf-8", "replace") for header in headers]
    whole = b",".join(lines).strip(OWS.encode())
    if len(whole) > LONGEST_BAGGAGE:  # what does not fit is cut at the last comma before it
        whole = whole[: LONGEST_BAGGAGE + 1].rpartition(b",")[0]
    texts = [text.strip(OWS) for text in whole.decode("latin-1").split(",")]
    members = [read_baggage_member(text) for text in texts if len(text) <= LONGEST_MEMBER]
    return [member for member in members if member is not None][:MOST_MEMBERS]


def read_baggage_member(text: str) -> Member | None:
    first, *properties = text.split(";")
    key, equals, value = (part.strip(OWS) for part in first.partition("="))
    if not equals or not key or not set(key) <= TOKEN or not set(value) <= BAGGAGE_OCTETS:
        return None
    plain_key, plain_value = percent_decode(key), percent_decode(value)
    if plain_key is None or plain_value is None:
        return None
    kept = "".join(";" + text for text in properties if is_baggage_property(text))
    gap = first[len(first.rstrip(OWS)) :]
    tail = (gap + kept).rstrip(OWS) if kept else ""
    return Member(plain_key, plain_value, tail, value + tail if tail else percent_encode(plain_value))


def is_baggage_property(text: str) -> bool:
    key, _, value = (part.strip(OWS) for part in text.partition("="))
    return bool(key) and set(key) <= TOKEN and set(value) <= BAGGAGE_OCTETS


def percent_decode(text: str) -> str | None:
    """None when a percent sign is not followed by two hex digits; bytes that are not UTF-8 become U+FFFD."""
    head, *codes = text.split("%")
    if not all(len(code) >= 2 and set(code[:2].lower()) <= LOWER_HEX for code in codes):
        return None
    raw = head.encode() + b"".join(bytes([int(code[:2], 16)]) + code[2:].encode() for code in codes)
    return raw.decode("utf-8", "replace")


def percent_encode(text: str, allowed: frozenset[str] = LETTERS_AND_DIGITS | frozenset("-._~")) -> str:
    """Everything but `allowed` coded; a percent sign always is."""
    kept = allowed - {"%"}
    return "".join(chr(byte) if chr(byte) in kept else f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))


def join_baggage(members: list[str]) -> str | None:
    """Members that are too long by themselves are left out; the rest is cut from the right."""
    members = [member for member in members if len(member) <= LONGEST_MEMBER][:MOST_MEMBERS]
    while len(",".join(members)) > LONGEST_BAGGAGE:
        members.pop()
    return ",".join(members) or None
