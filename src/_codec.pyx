# cython: language_level=3, binding=False, embedsignature=False, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, auto_pickle=False, freethreading_compatible=True
"""The compiled core: header text in, a Snapshot or OpenTelemetry objects out, and back.

The sections stand in reading order: words and hex; positions and the readers and writers of each format; tracestate;
baggage; the meeting with OpenTelemetry; Snapshot and its pool; carriers; propagators; scopes; ids; the runtime context.

One rule holds throughout: what a stranger sent is read by `read_*`, which return a Reason and never raise. Only a mistake
in the use of our own functions raises. Types and documentation for users stand in tracefill/_codec.pyi.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_Contains, PyDict_Next, PyDict_SetItem, PyDict_Size
from cpython.list cimport PyList_Check
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_Check, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "_hex.h" nogil:
    const int TF_SSE2
    int tf_read1(char digit)
    int tf_read2(const char* text)
    int tf_read16(const char* text, uint64_t* value)
    int tf_read16_swar(const char* text, uint64_t* value)
    int tf_read16_sse2(const char* text, uint64_t* value)
    void tf_write2(unsigned value, char* text)
    void tf_write16(uint64_t value, char* text)
    void tf_write16_swar(uint64_t value, char* text)
    void tf_write16_sse2(uint64_t value, char* text)

cdef extern from "_cpython.h":
    const int TF_FREE_THREADED
    object tf_int128(uint64_t high, uint64_t low)
    int tf_read128(PyObject* number, uint64_t* high, uint64_t* low)
    PyObject* tf_dict_get(PyObject* d, PyObject* key)
    Py_ssize_t tf_place_of(PyTypeObject* type, const char* name)
    PyObject* tf_value_at(PyObject* object, Py_ssize_t place)
    int tf_only_ours(PyObject* o, Py_ssize_t known)
    Py_ssize_t tf_size(PyObject* items)
    PyObject** tf_items(PyObject* items)
    bint tf_pair(PyObject* pair, PyObject** name, PyObject** value)
    const char* tf_ascii(PyObject* text, Py_ssize_t* length)
    int tf_lowest_bit(unsigned bits)
    unsigned tf_name_length(PyObject* name)
    object tf_new(object type, object no_arguments)
    object tf_new_object(PyTypeObject* type)
    int tf_set_type_attribute(object owner, object name, PyObject* value) except -1
    PyObject* tf_kept_alloc(PyTypeObject* type, Py_ssize_t items)
    void tf_kept_free(void* block)
    void tf_kept_grow(Py_ssize_t more)
    Py_ssize_t tf_kept_count()
    ctypedef struct tf_mutex:
        pass
    void tf_lock(tf_mutex* mutex)
    void tf_unlock(tf_mutex* mutex)

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        PyObject* (*tp_alloc)(PyTypeObject*, Py_ssize_t)
        PyObject* (*tp_new)(PyTypeObject*, PyObject*, PyObject*)
        void (*tp_free)(void*)
    object PyUnicode_New(Py_ssize_t size, int maxchar)
    void* PyUnicode_DATA(object text)
    int PyUnicode_IS_COMPACT_ASCII(object text)
    int PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    Py_ssize_t PyDict_GET_SIZE(PyObject* d)
    int PyDict_Update(PyObject* a, PyObject* b) except -1
    int PyContextVar_Get(PyObject* var, PyObject* default, PyObject** value) except -1
    object PyContextVar_Set(object var, object value)
    int PyContextVar_Reset(object var, object token) except -1
    int PyObject_GenericSetAttr(object o, object name, object value) except -1
    PyTypeObject* Py_TYPE(object o)
    PyObject* Py_None
    int PyUnicode_CheckExact(object o)
    void PyTuple_SET_ITEM(PyObject* t, Py_ssize_t i, PyObject* o)


# ---------------------------------------------------------------------------------------------------- words and text

class TracefillError(Exception):
    """The parent of every exception of tracefill's own."""


class SnapshotReleased(TracefillError):
    """A Snapshot was used, or released again, after it had been given back to its pool."""


cdef enum Decision:
    DEFER = 0
    DENY = 1
    ACCEPT = 2
    DEBUG = 3

cdef tuple DECISIONS = ("defer", "deny", "accept", "debug")

# Why a header is not valid. The order is that of REASONS below; the counters are indexed by it.
cdef enum Reason:
    FAILED = -1      # an exception of Python's own is set; never a verdict on a header
    VALID = 0
    ABSENT
    NOT_TEXT
    EMPTY
    TOO_SHORT
    TOO_LONG
    WRONG_DELIMITER
    VERSION_NOT_HEX
    VERSION_FORBIDDEN
    AFTER_FLAGS
    TRACE_ID_NOT_HEX
    TRACE_ID_ZERO
    TRACE_ID_WIDTH
    SPAN_ID_NOT_HEX
    SPAN_ID_ZERO
    SPAN_ID_WIDTH
    PARENT_ID_NOT_HEX
    FLAGS_NOT_HEX
    UNKNOWN_STATE
    TOO_MANY_FIELDS
    ID_MISSING
    NOT_DECIMAL
    OUT_OF_RANGE
    WRONG_EPOCH
    BAD_FIELD
    REASONS_COUNT

cdef tuple REASONS = (
    None,
    "absent",
    "not ASCII text",
    "empty",
    "too short",
    "too long",
    "a delimiter stands in the wrong place",
    "the version is not two lower-case hex digits",
    "version ff is forbidden",
    "version 00 ends with the flags; later versions go on with '-'",
    "the trace id is not lower-case hex",
    "the trace id is all zeros",
    "the trace id has a wrong number of digits",
    "the span id is not lower-case hex",
    "the span id is all zeros",
    "the span id has a wrong number of digits",
    "the parent id is not 16 lower-case hex digits",
    "the flags are not hex",
    "the sampling state is unknown",
    "too many fields",
    "a trace id without a span id, or the reverse",
    "not a decimal number",
    "the number does not fit in 64 bits",
    "the root is not 1-, 8 hex digits, -, 24 hex digits",
    "a field is not of the layout",
)

# What the readers write and the writers read: numbers only, so that it lives on the stack.
cdef struct Position:
    uint64_t trace_high
    uint64_t trace_low
    uint64_t span
    uint64_t parent
    uint8_t flags
    uint8_t decision
    uint8_t has_parent
    uint8_t bare         # the ids were made up: see _RemoteSpan
    uint8_t format       # where it was found, set by Propagator.find

cdef struct Text:
    const char* at
    Py_ssize_t length

cdef inline bint is_blank(char c) noexcept nogil:
    return c == b" " or c == b"\t"

cdef inline Text trimmed(const char* at, Py_ssize_t length) noexcept nogil:
    """Without the optional whitespace (RFC 9110, section 5.6.3) that HTTP strips and message brokers do not."""
    while length and is_blank(at[length - 1]):
        length -= 1
    while length and is_blank(at[0]):
        at += 1
        length -= 1
    return Text(at, length)

cdef inline Reason text_of(object value, Text* text) noexcept:
    """The characters of a str or bytes, borrowed for as long as the value lives."""
    if PyUnicode_Check(value):
        if not PyUnicode_IS_ASCII(value):    # not only compact text: a subclass of str is text too
            return NOT_TEXT
        text[0] = trimmed(<const char*>PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value))
        return VALID
    if PyBytes_Check(value):
        text[0] = trimmed(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        return VALID
    text[0] = Text(NULL, 0)
    return ABSENT if value is None else NOT_TEXT

cdef bint is_ascii(Text text) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(text.length):
        if text.at[i] & 0x80:
            return False
    return True

cdef inline bint same(const char* a, const char* b, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(length):
        if a[i] != b[i]:
            return False
    return True

cdef inline bint same_in_any_case(const char* text, const char* lower, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i
    cdef char c
    for i in range(length):
        c = text[i]
        if c'A' <= c <= c'Z':
            c += 32
        if c != lower[i]:
            return False
    return True

cdef inline bint read32(const char* text, uint64_t* high, uint64_t* low) noexcept nogil:
    return tf_read16(text, high) and tf_read16(text + 16, low)

cdef bint read_short_hex(const char* text, Py_ssize_t length, uint64_t* high, uint64_t* low) noexcept nogil:
    """1 to 32 digits, as the formats have them that leave out the padding."""
    cdef Py_ssize_t i
    cdef int digit
    high[0] = low[0] = 0
    for i in range(length):
        digit = tf_read1(text[i])
        if digit < 0:
            return False
        high[0] = high[0] << 4 | low[0] >> 60
        low[0] = low[0] << 4 | <uint64_t>digit
    return True

cdef Reason read_decimal(const char* text, Py_ssize_t length, uint64_t* number) noexcept nogil:
    cdef Py_ssize_t i
    cdef uint64_t digit
    number[0] = 0
    if length == 0:
        return NOT_DECIMAL
    for i in range(length):
        if not c'0' <= text[i] <= c'9':
            return NOT_DECIMAL
        digit = text[i] - c'0'
        if number[0] > (<uint64_t>0xffffffffffffffff - digit) // 10:
            return OUT_OF_RANGE
        number[0] = number[0] * 10 + digit
    return VALID

def hex_implementations():
    """The hex readers and writers compiled in: {name: (read, write)}; for the tests, which compare them."""
    implementations = {"swar": (_read_swar, _write_swar)}
    if TF_SSE2:
        implementations["sse2"] = (_read_sse2, _write_sse2)
    return implementations

def _read_swar(bytes text not None):
    cdef uint64_t value
    return value if len(text) == 16 and tf_read16_swar(text, &value) else None

def _read_sse2(bytes text not None):
    cdef uint64_t value
    return value if len(text) == 16 and tf_read16_sse2(text, &value) else None

def _write_swar(uint64_t value):
    cdef char text[16]
    tf_write16_swar(value, text)
    return text[:16]

def _write_sse2(uint64_t value):
    cdef char text[16]
    tf_write16_sse2(value, text)
    return text[:16]


# ------------------------------------------------------------------------------------ formats: one reader each

# The header names of all formats; those of one format stand together, in the order in which decode takes them.
cdef enum Header:
    H_TRACEPARENT
    H_TRACESTATE
    H_B3
    H_B3_TRACE
    H_B3_SPAN
    H_B3_PARENT
    H_B3_SAMPLED
    H_B3_FLAGS
    H_JAEGER
    H_XRAY
    H_DATADOG_TRACE
    H_DATADOG_PARENT
    H_DATADOG_PRIORITY
    H_DATADOG_ORIGIN
    H_DATADOG_TAGS
    H_OT_TRACE
    H_OT_SPAN
    H_OT_SAMPLED
    H_GRPC
    H_BAGGAGE
    HEADERS

cdef enum Format:
    F_TRACECONTEXT
    F_B3
    F_B3MULTI
    F_JAEGER
    F_XRAY
    F_DATADOG
    F_OTTRACE
    F_GRPC_BIN
    FORMATS

FORMAT_FIELDS = {
    "tracecontext": ("traceparent", "tracestate"),
    "b3": ("b3",),
    "b3multi": ("x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"),
    "jaeger": ("uber-trace-id",),
    "xray": ("x-amzn-trace-id",),
    "datadog": (
        "x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority", "x-datadog-origin", "x-datadog-tags",
    ),
    "ottrace": ("ot-tracer-traceid", "ot-tracer-spanid", "ot-tracer-sampled"),
    "grpc_bin": ("grpc-trace-bin",),
}
cdef tuple FORMAT_NAMES = tuple(FORMAT_FIELDS)
cdef int FIRST[<int>FORMATS]
cdef int COUNT[<int>FORMATS]
FIRST[:] = [<int>H_TRACEPARENT, <int>H_B3, <int>H_B3_TRACE, <int>H_JAEGER, <int>H_XRAY, <int>H_DATADOG_TRACE, <int>H_OT_TRACE, <int>H_GRPC]
COUNT[:] = [2, 1, 5, 1, 1, 5, 3, 1]
cdef enum:
    MOST_FIELDS = 5

cdef enum:
    TRACEPARENT_LENGTH = 2 + 1 + 32 + 1 + 16 + 1 + 2

cdef Reason read_traceparent(Text text, Position* to) noexcept nogil:
    """W3C Trace Context level 2, section 3.2: `version-traceid-parentid-flags`."""
    cdef const char* at = text.at
    cdef int version, flags
    if text.length != TRACEPARENT_LENGTH:
        if text.length < TRACEPARENT_LENGTH:
            return TOO_SHORT if text.length else EMPTY
        if (at[0] == c'0' and at[1] == c'0') or at[TRACEPARENT_LENGTH] != c'-':
            return AFTER_FLAGS
        if not is_ascii(text):
            return NOT_TEXT
    version = tf_read2(at)
    if version < 0:
        return VERSION_NOT_HEX
    if version == 0xff:
        return VERSION_FORBIDDEN
    if at[2] != c'-' or at[2 + 1 + 32] != c'-' or at[2 + 1 + 32 + 1 + 16] != c'-':
        return WRONG_DELIMITER
    if not read32(at + 3, &to.trace_high, &to.trace_low):
        return TRACE_ID_NOT_HEX
    if not tf_read16(at + 36, &to.span):
        return SPAN_ID_NOT_HEX
    flags = tf_read2(at + 53)
    if flags < 0:
        return FLAGS_NOT_HEX
    to.flags = <uint8_t>flags
    to.decision = ACCEPT if flags & 1 else DENY
    return checked_ids(to)

cdef inline Reason checked_ids(Position* to) noexcept nogil:
    if not (to.trace_high | to.trace_low):
        return TRACE_ID_ZERO
    return VALID if to.span else SPAN_ID_ZERO

cdef inline void decide(Position* to, Decision decision) noexcept nogil:
    to.decision = decision
    to.flags = 1 if decision >= ACCEPT else 0

cdef inline bint read_b3_state(char c, Position* to) noexcept nogil:
    if c == c'1':
        decide(to, ACCEPT)
    elif c == c'0':
        decide(to, DENY)
    elif c == c'd':
        decide(to, DEBUG)
    else:
        return False
    return True

cdef inline bint read_trace_id(const char* at, Py_ssize_t width, Position* to) noexcept nogil:
    """32 digits, or the 16 of older systems."""
    if width == 32:
        return read32(at, &to.trace_high, &to.trace_low)
    return tf_read16(at, &to.trace_low)

cdef Reason read_b3(const Text* texts, Position* to) noexcept nogil:
    """openzipkin/b3-propagation, single header: `{trace}-{span}[-{state}[-{parent}]]`, or the state alone."""
    cdef const char* at = texts[0].at
    cdef Py_ssize_t length = texts[0].length, rest
    cdef Py_ssize_t width = 32
    if length < 2:
        if length == 0:
            return EMPTY
        return VALID if read_b3_state(at[0], to) else UNKNOWN_STATE
    if length > 16 and at[16] == c'-':
        width = 16
    if length < width + 1 + 16:
        return TOO_SHORT
    if at[width] != c'-':
        return TRACE_ID_WIDTH
    if not read_trace_id(at, width, to):
        return TRACE_ID_NOT_HEX
    if not tf_read16(at + width + 1, &to.span):
        return SPAN_ID_NOT_HEX
    at += width + 1 + 16
    rest = length - (width + 1 + 16)
    if rest and at[0] != c'-':
        return SPAN_ID_WIDTH
    # Behind the ids: nothing, -state, -parent (Brave reads it as a deferred decision), or -state-parent.
    if rest == 1 + 1 or rest == 1 + 1 + 1 + 16:
        if not read_b3_state(at[1], to):
            return UNKNOWN_STATE
        at += 2
        rest -= 2
    if rest == 1 + 16 and at[0] == c'-':
        if not tf_read16(at + 1, &to.parent) or not to.parent:
            return PARENT_ID_NOT_HEX
        to.has_parent = True
        rest = 0
    if rest:
        return BAD_FIELD if rest <= 1 + 1 + 1 + 16 else TOO_MANY_FIELDS
    return checked_ids(to)

cdef Reason read_b3multi(const Text* texts, Position* to) noexcept nogil:
    """openzipkin/b3-propagation, multiple headers: trace, span, parent, sampled, flags."""
    cdef Text trace = texts[0], span = texts[1], parent = texts[2], sampled = texts[3], flags = texts[4]
    if sampled.length == 1 and sampled.at[0] == c'1' or sampled.length == 4 and same_in_any_case(sampled.at, b"true", 4):
        decide(to, ACCEPT)
    elif sampled.length == 1 and sampled.at[0] == c'0' or sampled.length == 5 and same_in_any_case(sampled.at, b"false", 5):
        decide(to, DENY)
    elif sampled.length:
        # A deny that was misspelt must not become an accept, nor the reverse.
        return UNKNOWN_STATE
    if flags.length == 1 and flags.at[0] == c'1':
        decide(to, DEBUG)
    if trace.at == NULL and span.at == NULL and parent.at == NULL:
        return VALID if to.decision != DEFER else ABSENT
    if trace.at == NULL or span.at == NULL:
        return ID_MISSING
    if trace.length != 32 and trace.length != 16:
        return TRACE_ID_WIDTH
    if not read_trace_id(trace.at, trace.length, to):
        return TRACE_ID_NOT_HEX
    if span.length != 16:
        return SPAN_ID_WIDTH
    if not tf_read16(span.at, &to.span):
        return SPAN_ID_NOT_HEX
    if parent.at != NULL:
        if parent.length != 16 or not tf_read16(parent.at, &to.parent) or not to.parent:
            return PARENT_ID_NOT_HEX
        to.has_parent = True
    return checked_ids(to)

cdef Py_ssize_t until(const char* at, Py_ssize_t length, char stop) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(length):
        if at[i] == stop:
            return i
    return length

cdef inline Py_ssize_t jaeger_delimiter(const char* at, Py_ssize_t length, Py_ssize_t* width) noexcept nogil:
    """Where the next `:` stands, which HTTP clients of old send as %3A."""
    cdef Py_ssize_t i
    width[0] = 1
    for i in range(length):
        if at[i] == c':':
            return i
        if at[i] == c'%' and length - i >= 3 and at[i + 1] == c'3' and (at[i + 2] == c'A' or at[i + 2] == c'a'):
            width[0] = 3
            return i
    return length

cdef Reason read_jaeger(const Text* texts, Position* to) noexcept nogil:
    """Jaeger client libraries, "Propagation format": `{trace}:{span}:{parent}:{flags}`, zeros in front left out."""
    cdef const char* at = texts[0].at
    cdef Py_ssize_t length = texts[0].length, width, end
    cdef uint64_t high, low
    cdef int field
    if length == 0:
        return EMPTY
    for field in range(4):
        end = jaeger_delimiter(at, length, &width)
        if (field < 3) != (end < length):
            return BAD_FIELD if field < 3 else TOO_MANY_FIELDS
        if end < 1 or end > (32 if field == 0 else 16 if field < 3 else 2):
            if field == 2 and end == 0:
                high = low = 0
            else:
                return TRACE_ID_WIDTH if field == 0 else SPAN_ID_WIDTH if field == 1 else BAD_FIELD
        if not read_short_hex(at, end, &high, &low):
            return TRACE_ID_NOT_HEX if field == 0 else SPAN_ID_NOT_HEX if field == 1 else PARENT_ID_NOT_HEX if field == 2 else FLAGS_NOT_HEX
        if field == 0:
            to.trace_high, to.trace_low = high, low
        elif field == 1:
            to.span = low
        elif field == 3:
            decide(to, DEBUG if low & 2 else ACCEPT if low & 1 else DENY)
        at += end + width
        length -= end + width
    return checked_ids(to)

cdef Reason read_xray(const Text* texts, Position* to) noexcept nogil:
    """AWS X-Ray, "Tracing header": `Root=1-{8 hex}-{24 hex};Parent={16 hex};Sampled=0|1|?`, in any order."""
    cdef const char* at = texts[0].at
    cdef Py_ssize_t length = texts[0].length, end
    cdef Text part
    cdef uint64_t high, low
    cdef bint root = False, parent = False
    cdef Text key, value
    if length == 0:
        return EMPTY
    if not is_ascii(texts[0]):
        return NOT_TEXT
    while length > 0:
        end = until(at, length, c';')
        part = Text(at, end)
        at += end + 1
        length -= end + 1
        end = until(part.at, part.length, c'=')
        key = trimmed(part.at, end)
        value = trimmed(part.at + end + 1, part.length - end - 1) if end < part.length else Text(part.at, 0)
        if key.length == 4 and same(key.at, b"Root", 4):
            if value.length != 2 + 8 + 1 + 24 or not same(value.at, b"1-", 2) or value.at[2 + 8] != c'-':
                return WRONG_EPOCH
            if not read_short_hex(value.at + 2, 8, &high, &low):
                return TRACE_ID_NOT_HEX
            to.trace_high = low << 32
            if not read_short_hex(value.at + 2 + 8 + 1, 24, &high, &low):
                return TRACE_ID_NOT_HEX
            to.trace_high |= high
            to.trace_low = low
            root = True
        elif key.length == 6 and same(key.at, b"Parent", 6):
            if value.length != 16:
                return SPAN_ID_WIDTH
            if not tf_read16(value.at, &to.span):
                return SPAN_ID_NOT_HEX
            parent = True
        elif key.length == 7 and same(key.at, b"Sampled", 7):
            if value.length != 1:
                return UNKNOWN_STATE
            if value.at[0] == c'?':
                decide(to, DEFER)
            elif value.at[0] == c'd' or not read_b3_state(value.at[0], to):
                return UNKNOWN_STATE
    return checked_ids(to) if root and parent else ID_MISSING

cdef Reason read_datadog(const Text* texts, Position* to) noexcept nogil:
    """Datadog's headers: decimal 64-bit ids, a priority, and the upper half of the trace id as a tag `_dd.p.tid`."""
    cdef Text priority = texts[2], tags = texts[4], part
    cdef uint64_t number
    cdef Py_ssize_t end
    cdef bint negative
    cdef Reason reason
    if texts[0].at == NULL and texts[1].at == NULL:
        return ABSENT
    if texts[0].at == NULL or texts[1].at == NULL:
        return ID_MISSING
    reason = read_decimal(texts[0].at, texts[0].length, &to.trace_low)
    if reason == VALID:
        reason = read_decimal(texts[1].at, texts[1].length, &to.span)
    if reason != VALID:
        return reason
    if priority.length:
        negative = priority.at[0] == c'-'
        reason = read_decimal(priority.at + negative, priority.length - negative, &number)
        if reason != VALID:
            return reason
        decide(to, DENY if negative or number == 0 else DEBUG if number == 2 else ACCEPT)
    if not is_ascii(tags):
        tags.length = 0
    while tags.length > 0:
        end = until(tags.at, tags.length, c',')
        part = trimmed(tags.at, end)
        if part.length == 10 + 16 and same(part.at, b"_dd.p.tid=", 10) and tf_read16(part.at + 10, &number) and number:
            to.trace_high = number
        tags.at += end + 1
        tags.length -= end + 1
    return checked_ids(to)

cdef Reason read_ottrace(const Text* texts, Position* to) noexcept nogil:
    """OpenTracing's basictracer headers: hex ids, zeros in front left out by some, sampled true or false."""
    cdef Text trace = texts[0], span = texts[1], sampled = texts[2]
    cdef uint64_t high
    if trace.at == NULL and span.at == NULL:
        return ABSENT
    if trace.at == NULL or span.at == NULL:
        return ID_MISSING
    if not 0 < trace.length <= 32:
        return TRACE_ID_WIDTH
    if not read_short_hex(trace.at, trace.length, &to.trace_high, &to.trace_low):
        return TRACE_ID_NOT_HEX
    if not 0 < span.length <= 16:
        return SPAN_ID_WIDTH
    if not read_short_hex(span.at, span.length, &high, &to.span):
        return SPAN_ID_NOT_HEX
    if sampled.length == 1 and sampled.at[0] == c'1' or sampled.length == 4 and same_in_any_case(sampled.at, b"true", 4):
        decide(to, ACCEPT)
    elif sampled.length == 1 and sampled.at[0] == c'0' or sampled.length == 5 and same_in_any_case(sampled.at, b"false", 5):
        decide(to, DENY)
    elif sampled.length:
        return UNKNOWN_STATE
    return checked_ids(to)

cdef inline uint64_t read_big(const char* at) noexcept nogil:
    cdef uint64_t number = 0
    cdef int i
    for i in range(8):
        number = number << 8 | <uint8_t>at[i]
    return number

cdef enum:
    BINARY_LENGTH = 1 + 1 + 16 + 1 + 8 + 1 + 1

cdef Reason read_grpc_bin(const Text* texts, Position* to) noexcept nogil:
    """OpenCensus, "BinaryEncoding": version 0, then field 0 trace id, field 1 span id, field 2 flags."""
    cdef const char* at = texts[0].at
    cdef Py_ssize_t length = texts[0].length
    if length < 1 + 1 + 16 + 1 + 8:
        return TOO_SHORT if length else EMPTY
    if at[0] != 0:
        return VERSION_FORBIDDEN
    if at[1] != 0 or at[18] != 1:
        return BAD_FIELD
    to.trace_high = read_big(at + 2)
    to.trace_low = read_big(at + 10)
    to.span = read_big(at + 19)
    if length >= BINARY_LENGTH and at[27] == 2:
        to.flags = <uint8_t>at[28]
    to.decision = ACCEPT if to.flags & 1 else DENY
    return checked_ids(to)

cdef Reason read_tracecontext(const Text* texts, Position* to) noexcept nogil:
    return read_traceparent(texts[0], to)

ctypedef Reason (*Reader)(const Text*, Position*) noexcept nogil
cdef Reader READERS[<int>FORMATS]
READERS[:] = [read_tracecontext, read_b3, read_b3multi, read_jaeger, read_xray, read_datadog, read_ottrace, read_grpc_bin]

cdef inline Reason read_position(int format, const Text* texts, Position* to) noexcept nogil:
    to[0] = Position(0, 0, 0, 0, 0, DEFER, 0, 0, 0)
    return READERS[format](texts, to)


# ------------------------------------------------------------------------------------ formats: one writer each

cdef inline object write_traceparent(const Position* of):
    cdef object text = PyUnicode_New(TRACEPARENT_LENGTH, 127)
    cdef char* at = <char*>PyUnicode_DATA(text)
    memcpy(at, b"00-", 3)
    tf_write16(of.trace_high, at + 3)
    tf_write16(of.trace_low, at + 19)
    at[35] = c'-'
    tf_write16(of.span, at + 36)
    at[52] = c'-'
    # Bits 2-7 mean nothing yet, and level 2 has them sent as zeros.
    tf_write2(of.flags & 3, at + 53)
    return text

cdef inline str hex32(uint64_t high, uint64_t low):
    cdef object text = PyUnicode_New(32, 127)
    tf_write16(high, <char*>PyUnicode_DATA(text))
    tf_write16(low, <char*>PyUnicode_DATA(text) + 16)
    return text

cdef inline str hex16(uint64_t value):
    cdef object text = PyUnicode_New(16, 127)
    tf_write16(value, <char*>PyUnicode_DATA(text))
    return text

cdef tuple B3_STATES = (None, "0", "1", "d")

cdef object write_b3(const Position* of):
    cdef object text
    cdef char* at
    if not (of.span and of.trace_high | of.trace_low):
        return B3_STATES[of.decision]
    text = PyUnicode_New(32 + 1 + 16 if of.decision == DEFER else 32 + 1 + 16 + 1 + 1, 127)
    at = <char*>PyUnicode_DATA(text)
    tf_write16(of.trace_high, at)
    tf_write16(of.trace_low, at + 16)
    at[32] = c'-'
    tf_write16(of.span, at + 33)
    if of.decision != DEFER:
        at[49] = c'-'
        at[50] = c'0' if of.decision == DENY else c'1' if of.decision == ACCEPT else c'd'
    return text

cdef bytes write_binary(const Position* of):
    cdef char at[BINARY_LENGTH]
    cdef int i
    at[0] = at[1] = 0
    for i in range(8):
        at[2 + i] = <char>(of.trace_high >> (56 - 8 * i))
        at[10 + i] = <char>(of.trace_low >> (56 - 8 * i))
        at[19 + i] = <char>(of.span >> (56 - 8 * i))
    at[18] = 1
    at[27] = 2
    at[28] = <char>(of.flags & 3)
    return PyBytes_FromStringAndSize(at, BINARY_LENGTH)

cdef tuple write_fields(int format, const Position* of, object trace_state):
    """The header values of a format, parallel to its fields; None for those that are not sent."""
    cdef uint8_t decision = of.decision
    cdef bint whole = of.span != 0 and (of.trace_high | of.trace_low) != 0
    if format == F_B3:
        return (write_b3(of),)
    if format == F_B3MULTI:
        return (
            hex32(of.trace_high, of.trace_low) if whole else None,
            hex16(of.span) if whole else None,
            None,
            "0" if decision == DENY else "1" if decision == ACCEPT else None,
            "1" if decision == DEBUG else None,
        )
    if not whole:
        return (None,) * COUNT[format]
    if format == F_TRACECONTEXT:
        return (write_traceparent(of), trace_state)
    if format == F_JAEGER:
        flags = "3" if decision == DEBUG else "1" if decision == ACCEPT else "0"
        return (f"{hex32(of.trace_high, of.trace_low)}:{hex16(of.span)}:0:{flags}",)
    if format == F_XRAY:
        trace = hex32(of.trace_high, of.trace_low)
        sampled = "" if decision == DEFER else ";Sampled=0" if decision == DENY else ";Sampled=1"
        return (f"Root=1-{trace[:8]}-{trace[8:]};Parent={hex16(of.span)}{sampled}",)
    if format == F_DATADOG:
        return (
            str(of.trace_low),
            str(of.span),
            (None, "0", "1", "2")[decision],
            None,
            f"_dd.p.tid={hex16(of.trace_high)}" if of.trace_high else None,
        )
    if format == F_OTTRACE:
        if of.trace_low == 0:
            return (None, None, None)
        return (
            hex16(of.trace_low),
            hex16(of.span),
            (None, "false", "true", "true")[decision],
        )
    return (write_binary(of),)


# -------------------------------------------------------------------------------------------------------- tracestate

cdef enum:
    KEY_START = 1     # [a-z0-9]
    KEY_REST = 2      # [a-z0-9_\-*/@]
    VALUE = 4         # %x20-7E without , and =
    TOKEN = 8         # RFC 9110 token, for baggage keys
    OCTET = 16        # baggage-octet
    UNRESERVED = 32   # what baggage sends without percent-coding

cdef uint8_t CLASSES[256]

cdef void fill_classes():
    cdef int c
    for c in range(256):
        CLASSES[c] = 0
        if c'a' <= c <= c'z' or c'0' <= c <= c'9':
            CLASSES[c] |= KEY_START | KEY_REST
        if c and chr(c) in "_-*/@":
            CLASSES[c] |= KEY_REST
        if 0x20 <= c <= 0x7e and c != c',' and c != c'=':
            CLASSES[c] |= VALUE
        if c < 0x80 and (chr(c).isalnum() or c and chr(c) in "!#$%&'*+-.^_`|~"):
            CLASSES[c] |= TOKEN
        if c == 0x21 or 0x23 <= c <= 0x2b or 0x2d <= c <= 0x3a or 0x3c <= c <= 0x5b or 0x5d <= c <= 0x7e:
            CLASSES[c] |= OCTET
        if c < 0x80 and (chr(c).isalnum() or c and chr(c) in "_.-~"):
            CLASSES[c] |= UNRESERVED

fill_classes()

cdef enum:
    TRACESTATE_MEMBERS = 32
    TRACESTATE_LENGTH = 8192   # stock OpenTelemetry's bound; the specification asks for 512 at least
    TRACESTATE_WORD = 256      # a key, a value

cdef enum TraceStateForm:
    TRACESTATE_BAD
    TRACESTATE_NONE       # legal, and no member in it
    TRACESTATE_AS_IS
    TRACESTATE_LOOSE      # legal, with blanks or empty members that are not sent on

cdef TraceStateForm scan_tracestate(const char* at, Py_ssize_t length) noexcept nogil:
    """W3C Trace Context level 2, section 3.3.1, in one pass."""
    cdef Py_ssize_t i = 0, start, end
    cdef int members = 0
    cdef bint loose = False
    if length > TRACESTATE_LENGTH:
        return TRACESTATE_BAD
    while True:
        start = i
        while i < length and is_blank(at[i]):
            i += 1
        if i != start:
            loose = True
        if i == length or at[i] == c',':
            loose = True
            if i == length:
                break
            i += 1
            continue
        start = i
        if not CLASSES[<uint8_t>at[i]] & KEY_START:
            return TRACESTATE_BAD
        while i < length and CLASSES[<uint8_t>at[i]] & KEY_REST:
            i += 1
        if i - start > TRACESTATE_WORD or i == length or at[i] != c'=':
            return TRACESTATE_BAD
        i += 1
        start = i
        while i < length and CLASSES[<uint8_t>at[i]] & VALUE:
            i += 1
        end = i
        while i < length and is_blank(at[i]):
            i += 1
        if i < length and at[i] != c',':
            return TRACESTATE_BAD
        while end > start and at[end - 1] == c' ':
            end -= 1
        if end == start or end - start > TRACESTATE_WORD:
            return TRACESTATE_BAD
        if end != i:
            loose = True
        members += 1
        if members > TRACESTATE_MEMBERS:
            return TRACESTATE_BAD
        if i == length:
            break
        i += 1
    if members == 0:
        return TRACESTATE_NONE
    return TRACESTATE_LOOSE if loose else TRACESTATE_AS_IS

cdef object tracestate_text(object value):
    """The tracestate to keep and to send on, or None when there is none worth keeping."""
    cdef Text text
    cdef TraceStateForm form
    if value is None or text_of(value, &text) != VALID:
        return None
    # Blanks count: the bound is on the header text, as it is in stock OpenTelemetry.
    if (PyUnicode_GET_LENGTH(value) if PyUnicode_Check(value) else PyBytes_GET_SIZE(value)) > TRACESTATE_LENGTH:
        return None
    form = scan_tracestate(text.at, text.length)
    if form == TRACESTATE_BAD:
        malformed[<int>F_TRACECONTEXT][<int>BAD_FIELD] += 1
        log_ignored("tracestate", "it is not a list of up to 32 key=value members (W3C Trace Context, section 3.3.1)")
        return None
    if form == TRACESTATE_NONE:
        return None
    if form == TRACESTATE_AS_IS and PyUnicode_CheckExact(value) and PyUnicode_GET_LENGTH(value) == text.length:
        return value
    kept = (<bytes>text.at[:text.length]).decode("ascii")
    if form == TRACESTATE_LOOSE:
        kept = ",".join([member for member in [part.strip(" \t") for part in kept.split(",")] if member])
    return kept

cdef dict tracestate_members(str text):
    """As a mapping; of duplicate keys the first, which is the newest."""
    members = {}
    for member in text.split(","):
        key, _, value = member.partition("=")
        members.setdefault(key, value)
    return members

cdef bint is_tracestate_member(object key, object value) except -1:
    if not isinstance(key, str) or not isinstance(value, str) or not key or "," in key or "," in value or key[0] in " \t":
        return False
    member = f"{key}={value}"
    if not member.isascii():
        return False
    encoded = member.encode()
    return scan_tracestate(encoded, len(encoded)) == TRACESTATE_AS_IS


# ----------------------------------------------------------------------------------------------------------- baggage

cdef enum:
    BAGGAGE_MEMBERS = 180
    BAGGAGE_MEMBER_LENGTH = 4096
    BAGGAGE_LENGTH = 8192

class BaggageValue(str):
    """A baggage value that came with properties: reads `value;property`, and is sent on as it came.

    `coded` holds the text of the header, so that a `;` of the value (percent-coded) is told from the one before a property.
    """

    __slots__ = ("coded",)

    def __reduce__(self):
        return _baggage_value, (str(self), self.coded)

def _baggage_value(text, coded):
    value = BaggageValue(text)
    value.coded = coded
    return value

cdef bint all_of(const char* at, Py_ssize_t length, uint8_t kind) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(length):
        if not CLASSES[<uint8_t>at[i]] & kind:
            return False
    return True

cdef object percent_decoded(Text text):
    """The str behind the percent codes; None when a code is broken. Bytes that are not UTF-8 become U+FFFD."""
    cdef Py_ssize_t i = 0, used = 0
    cdef int high, low
    cdef bytearray decoded
    cdef char* to
    if until(text.at, text.length, c'%') == text.length:
        return (<bytes>text.at[:text.length]).decode("ascii")
    decoded = bytearray(text.length)
    to = decoded
    while i < text.length:
        if text.at[i] == c'%':
            if text.length - i < 3:
                return None
            # Percent codes are the one place where upper-case hex is legal.
            high = tf_read1(text.at[i + 1] | 32 if text.at[i + 1] > c'9' else text.at[i + 1])
            low = tf_read1(text.at[i + 2] | 32 if text.at[i + 2] > c'9' else text.at[i + 2])
            if high < 0 or low < 0:
                return None
            to[used] = <char>(high << 4 | low)
            i += 3
        else:
            to[used] = text.at[i]
            i += 1
        used += 1
    return decoded[:used].decode("utf-8", "replace")

cdef bint is_property(Text part) noexcept nogil:
    """`key` or `key=value`, as W3C Baggage, section 3.3.1 has it."""
    cdef Py_ssize_t equals = until(part.at, part.length, c'=')
    cdef Text key = trimmed(part.at, equals), value
    if not key.length or not all_of(key.at, key.length, TOKEN):
        return False
    if equals == part.length:
        return True
    value = trimmed(part.at + equals + 1, part.length - equals - 1)
    return all_of(value.at, value.length, OCTET)

cdef bint read_baggage_member(Text member, dict into) except -1:
    cdef Py_ssize_t end = until(member.at, member.length, c';')
    cdef Py_ssize_t equals = until(member.at, end, c'=')
    cdef Text key, value, part
    cdef list properties
    if equals == end:
        return False
    key = trimmed(member.at, equals)
    value = trimmed(member.at + equals + 1, end - equals - 1)
    if not key.length or not all_of(key.at, key.length, TOKEN) or not all_of(value.at, value.length, OCTET):
        return False
    name, decoded = percent_decoded(key), percent_decoded(value)
    if name is None or decoded is None:
        return False
    if end < member.length:
        # Kept as they came, white space and all: what is between the value and the first `;` goes in front.
        properties = [(<bytes>member.at[value.at + value.length - member.at:end]).decode("ascii")]
        while end < member.length:
            member.at += end + 1
            member.length -= end + 1
            end = until(member.at, member.length, c';')
            part = Text(member.at, end)
            if is_property(part):
                properties.append((<bytes>part.at[:part.length]).decode("ascii"))
        if len(properties) > 1:
            tail = ";".join(properties).rstrip(" \t")
            decoded = _baggage_value(decoded + tail, (<bytes>value.at[:value.length]).decode("ascii") + tail)
    into[name] = decoded
    return True

cdef dict read_baggage(object value, dict into):
    """Adds the members of one header line; what is not valid is left out, member by member."""
    cdef Text text, member
    cdef Py_ssize_t end
    cdef bytes held
    cdef int members = 0
    if PyUnicode_Check(value) and not PyUnicode_IS_ASCII(value):
        # The other members are still good: a character beyond ASCII is no baggage octet and drops its own member only.
        held = (<str>value).encode("utf-8", "replace")
        value = held
    if text_of(value, &text) != VALID:
        return into
    if text.length > BAGGAGE_LENGTH:
        log_ignored("baggage", "the end of it: longer than 8192 bytes")
        end = BAGGAGE_LENGTH
        while end and text.at[end] != c',':
            end -= 1
        text.length = end
    while text.length > 0 and members < BAGGAGE_MEMBERS:
        end = until(text.at, text.length, c',')
        member = trimmed(text.at, end)
        text.at += end + 1
        text.length -= end + 1
        if not member.length:
            continue
        if member.length > BAGGAGE_MEMBER_LENGTH or not read_baggage_member(member, into):
            log_ignored("baggage", "a member that is not key=value, or too long")
            continue
        members += 1
    return into

def decode_baggage(*values):
    """The members of all the header lines, in order; see formats.decode_baggage."""
    cdef dict members = {}
    value = joined(values)
    return read_baggage(value, members) if value is not None else members

cdef object joined(object values):
    """Several lines of one header as one (RFC 9110, section 5.3)."""
    present = [value for value in values if isinstance(value, (str, bytes))]
    if len(present) < 2:
        return present[0] if present else None
    return b",".join([value if isinstance(value, bytes) else (<str>value).encode("utf-8", "replace") for value in present])

cdef object percent_coded(object value, uint8_t kept=UNRESERVED):
    cdef Py_ssize_t i
    cdef bytes encoded
    cdef bytearray coded
    text = value if isinstance(value, str) else str(value)
    encoded = (<str>text).encode("utf-8", "replace")
    if all_of(encoded, len(encoded), kept) and b"%" not in encoded:
        return text
    coded = bytearray()
    for i in range(len(encoded)):
        if CLASSES[<uint8_t>encoded[i]] & kept and encoded[i] != c'%':
            coded.append(<uint8_t>encoded[i])
        else:
            coded += b"%%%02X" % <uint8_t>encoded[i]
    return coded.decode("ascii")

def encode_baggage(members):
    """The header value, or None when there is nothing to send; see formats.encode_baggage."""
    cdef Py_ssize_t length = 0
    cdef list sent = []
    for key, value in members.items():
        coded = (<object>value).coded if isinstance(value, BaggageValue) else percent_coded(value)
        member = f"{percent_coded(key, TOKEN)}={coded}"
        if len(member) > BAGGAGE_MEMBER_LENGTH or member[0] == "=":
            log_ignored("baggage", "a member to be sent: without a name, or longer than 4096 bytes")
            continue
        if len(sent) == BAGGAGE_MEMBERS or length + len(member) + (1 if sent else 0) > BAGGAGE_LENGTH:
            log_ignored("baggage", "members to be sent beyond 180 or 8192 bytes")
            break
        length += len(member) + (1 if sent else 0)
        sent.append(member)
    return ",".join(sent) if sent else None


# ----------------------------------------------------------------------- counters, and the one debug line a bad header gets

cdef uint64_t extracted[<int>FORMATS]
cdef uint64_t malformed[<int>FORMATS][<int>REASONS_COUNT]
cdef uint64_t missing
cdef uint64_t unread[<int>FORMATS]
cdef object logger = None

# The carriers without anything for the propagator are those that most requests of some services have. The first ones are all
# looked through for formats that nobody reads; later one in so many, which then counts for all of them.
cdef enum:
    LOOKED_THROUGH = 1024
    ONE_IN = 64

cdef int log_ignored(object header, object why) except -1:
    global logger
    if logger is None:
        import logging

        logger = logging.getLogger("tracefill")
    if logger.isEnabledFor(10):
        logger.debug("%s ignored: %s", header, why)
    return 0

cdef int ignore(int format, Reason reason) except -1:
    malformed[format][<int>reason] += 1
    return log_ignored(FORMAT_FIELDS[FORMAT_NAMES[format]][0], REASONS[<int>reason])

def counters():
    """What the core has seen in this process; see the stub."""
    cdef int f, r
    return {
        "extracted": {FORMAT_NAMES[f]: extracted[f] for f in range(FORMATS) if extracted[f]},
        "missing": missing,
        "unread": {FORMAT_NAMES[f]: unread[f] for f in range(FORMATS) if unread[f]},
        "malformed": {
            (FORMAT_NAMES[f], REASONS[r]): malformed[f][r]
            for f in range(FORMATS) for r in range(REASONS_COUNT) if malformed[f][r]
        },
    }


# ------------------------------------------------------------------------------------------- the meeting with OpenTelemetry

# Filled by meet(), which runs on first use and not on import: OpenTelemetry imports us while it is itself half imported when
# OTEL_PYTHON_CONTEXT=tracefill. Until then `met` is False and nothing here may be touched.
cdef bint met = False
cdef object Context, SpanContext, NonRecordingSpan, INVALID_SPAN, DEFAULT_TRACE_STATE, stock_getter, stock_setter
cdef object SpanType, context_module, trace_module, context_names, propagate_module = None, propagate_names = None
cdef object span_key, baggage_key
cdef PyTypeObject* span_context_type
cdef PyTypeObject* stock_runtime_type
cdef bint span_context_is_six
cdef object empty_context
cdef list FLAGS = []
cdef object empty_tuple = ()
cdef object TraceState = None, RemoteSpan = None
DEBUG_KEY = "tracefill-debug"
REQUEST_ID_KEY = "tracefill-request-id"
TAGS_KEY = "tracefill-tags"
cdef object debug_key = DEBUG_KEY

cdef int meet() except -1:
    global met, Context, SpanContext, NonRecordingSpan, INVALID_SPAN, DEFAULT_TRACE_STATE, stock_getter, stock_setter
    global SpanType, context_module, trace_module, context_names, span_key, baggage_key, span_context_type, span_context_is_six
    global stock_runtime_type, TraceState, RemoteSpan, empty_context
    import opentelemetry.baggage
    import opentelemetry.context
    import opentelemetry.trace
    from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
    from opentelemetry.propagators import textmap
    from opentelemetry.trace.span import DEFAULT_TRACE_STATE as stock_default, TraceState as StockTraceState

    context_module = opentelemetry.context
    trace_module = opentelemetry.trace
    context_names = vars(context_module)
    Context = opentelemetry.context.Context
    SpanContext = opentelemetry.trace.SpanContext
    NonRecordingSpan = opentelemetry.trace.NonRecordingSpan
    SpanType = opentelemetry.trace.Span
    INVALID_SPAN = opentelemetry.trace.INVALID_SPAN
    DEFAULT_TRACE_STATE = stock_default
    stock_getter = textmap.default_getter
    stock_setter = textmap.default_setter
    # The keys are made anew in each process; asking for them needs no private name.
    span_key = next(iter(opentelemetry.trace.set_span_in_context(INVALID_SPAN, Context())))
    baggage_key = next(iter(opentelemetry.baggage.set_baggage("k", "v", Context())))
    empty_context = Context()
    span_context_type = <PyTypeObject*>SpanContext
    stock_runtime_type = <PyTypeObject*>ContextVarsRuntimeContext
    probe = SpanContext(1, 2, True, opentelemetry.trace.TraceFlags(1))
    span_context_is_six = tuple(probe) == (1, 2, True, 1, DEFAULT_TRACE_STATE, True)
    FLAGS[:] = [opentelemetry.trace.TraceFlags(bits) for bits in range(256)]

    class TraceState(_TraceState, StockTraceState):
        """A tracestate that was validated once: kept as text, a mapping when somebody looks (W3C level 2 keys allowed)."""

        __slots__ = ()
        __module__ = "tracefill._codec"
        __qualname__ = "TraceState"

    class RemoteSpan(_RemoteSpan, NonRecordingSpan):
        """A remote parent, its SpanContext made when somebody looks."""

        __slots__ = ()
        __module__ = "tracefill._codec"
        __qualname__ = "RemoteSpan"

    globals()["TraceState"], globals()["RemoteSpan"] = TraceState, RemoteSpan
    met = True
    return 0

cdef inline int ready() except -1:
    return 0 if met else meet()

def _read_trace_state(str text not None):
    """A TraceState of a tracestate header; empty when it is not valid."""
    ready()
    return new_trace_state(tracestate_text(text) or "")

cdef class _TraceState:
    cdef str text
    cdef dict members

    def __init__(self, entries=None):
        cdef dict members = {}
        for key, value in entries or ():
            if is_tracestate_member(key, value):
                members.setdefault(key, value)
        self.text = ",".join([f"{k}={v}" for k, v in members.items()]) if len(members) <= TRACESTATE_MEMBERS else ""

    @property
    def _dict(self):
        # The name under which every method of the stock class looks for its members.
        if self.members is None:
            self.members = tracestate_members(self.text) if self.text else {}
        return self.members

    def to_header(self):
        return self.text

    def __bool__(self):
        return bool(self.text)

    def __reduce__(self):
        return _read_trace_state, (self.text,)

    def add(self, key, value):
        if not is_tracestate_member(key, value) or key in self._dict or len(self._dict) >= TRACESTATE_MEMBERS:
            return self
        return new_trace_state(f"{key}={value},{self.text}" if self.text else f"{key}={value}")

    def update(self, key, value):
        if not is_tracestate_member(key, value):
            return self
        others = [f"{k}={v}" for k, v in self._dict.items() if k != key]
        if len(others) >= TRACESTATE_MEMBERS:
            return self
        return new_trace_state(",".join([f"{key}={value}", *others]))

    def delete(self, key):
        if key not in self._dict:
            return self
        return new_trace_state(",".join([f"{k}={v}" for k, v in self._dict.items() if k != key]))

cdef object new_trace_state(str text):
    cdef object state = tf_new(TraceState, empty_tuple)
    (<_TraceState>state).text = text
    return state

cdef class _RemoteSpan:
    cdef uint64_t trace_high, trace_low, span
    cdef uint8_t flags, decision
    cdef uint8_t bare        # a sampling decision that came without ids; those held here were made up to carry a deny
    cdef uint8_t touched     # somebody has set an attribute: not to be used again for another request
    cdef str trace_state     # validated text, or None
    cdef object seen         # the SpanContext, once somebody has looked

    @property
    def _context(self):
        return self.get_span_context()

    def get_span_context(self):
        if self.seen is None:
            with cython.critical_section(self):
                if self.seen is None:
                    self.seen = new_span_context(self)
        return self.seen

    def is_recording(self):
        return False

    def __setattr__(self, name, value):
        self.touched = True
        PyObject_GenericSetAttr(self, name, value)

    def __reduce__(self):
        return NonRecordingSpan, (self.get_span_context(),)

cdef object new_span_context(_RemoteSpan of):
    cdef object trace_id = tf_int128(of.trace_high, of.trace_low)
    cdef object span_id = tf_int128(0, of.span)
    cdef object flags = FLAGS[of.flags]
    cdef object state = DEFAULT_TRACE_STATE if of.trace_state is None else new_trace_state(of.trace_state)
    cdef object valid = of.span != 0 and (of.trace_high | of.trace_low) != 0
    if not span_context_is_six:
        return SpanContext(trace_id, span_id, True, flags, state)
    return six(trace_id, span_id, True, flags, state, valid)

cdef inline object six(trace_id, span_id, is_remote, flags, state, valid):
    """The SpanContext of these, past its constructor, which would check them again."""
    cdef PyObject* made = span_context_type.tp_alloc(span_context_type, 6)
    cdef Py_ssize_t i
    if made == NULL:
        raise MemoryError
    for i, item in enumerate((trace_id, span_id, is_remote, flags, state, valid)):
        Py_INCREF(item)
        PyTuple_SET_ITEM(made, i, <PyObject*>item)
    context = <object>made
    Py_DECREF(context)
    return context

cdef inline void fill(_RemoteSpan span, const Position* of, str trace_state):
    span.trace_high = of.trace_high
    span.trace_low = of.trace_low
    span.span = of.span
    span.flags = of.flags
    span.decision = of.decision
    span.bare = of.bare
    span.trace_state = trace_state
    span.seen = None

cdef object new_remote_span(const Position* of, str trace_state):
    cdef object span = tf_new(RemoteSpan, empty_tuple)
    fill(<_RemoteSpan>span, of, trace_state)
    return span

# The Contexts that extract gave out last. One whose Context nobody holds any more (reference counts say so, weak
# references included) is filled again instead of being allocated: two objects and a dict entry saved on every request.
# Somebody who still refers to either of the two keeps them for ever, and a new pair takes the slot.
cdef struct Slot:
    PyObject* context
    PyObject* span

cdef enum:
    SLOTS = 8

cdef Slot slots[SLOTS]
cdef int slot_at = 0

cdef inline bint is_free(const Slot* slot) noexcept:
    # The slot's own reference to each, and the Context's to its span.
    return (
        slot.context != NULL
        and tf_only_ours(slot.context, 1)
        and tf_only_ours(slot.span, 2)
        and PyDict_GET_SIZE(slot.context) == 1
        and not (<_RemoteSpan>slot.span).touched
    )

cdef object remote_context(const Position* of, str trace_state):
    """A Context that holds nothing but the remote span."""
    global slot_at
    cdef Slot old
    cdef Slot* slot = &slots[slot_at]
    if not is_free(slot):
        slot_at = (slot_at + 1) % SLOTS
        slot = &slots[slot_at]
        if not is_free(slot):
            span = new_remote_span(of, trace_state)
            context = tf_new(Context, empty_tuple)
            PyDict_SetItem(context, span_key, span)
            if not TF_FREE_THREADED:
                old = slot[0]
                Py_INCREF(context)
                Py_INCREF(span)
                slot[0] = Slot(<PyObject*>context, <PyObject*>span)
                Py_XDECREF(old.context)
                Py_XDECREF(old.span)
            return context
    fill(<_RemoteSpan>slot.span, of, trace_state)
    return <object>slot.context

cdef object context_with(object base, object span, object baggage, object debug):
    """base (a Context or None) with those of the three that are not None."""
    cdef object context = tf_new(Context, empty_tuple)
    if base is not None:
        PyDict_Update(<PyObject*>context, <PyObject*>base)
    if span is not None:
        PyDict_SetItem(context, span_key, span)
    if baggage is not None:
        PyDict_SetItem(context, baggage_key, baggage)
    if debug is not None:
        PyDict_SetItem(context, debug_key, debug)
    return context

cdef object runtime_seen = None, variable_seen = None

cdef class _Attached
cdef class RuntimeContext

cdef inline object current():
    """OpenTelemetry's current Context."""
    cdef PyObject* value
    runtime = value_in(context_names, "_RUNTIME_CONTEXT")
    if runtime is runtime_seen:
        PyContextVar_Get(<PyObject*>variable_seen, NULL, &value)
        context = <object>value
        Py_DECREF(context)
        return context if Py_TYPE(context) != <PyTypeObject*>_Attached and not number_held else seen(context)
    return current_of(runtime)

cdef object current_of(object runtime):
    """The same where the runtime context is not the one seen last; remembers the variable behind it where it is stock's or ours."""
    global runtime_seen, variable_seen
    if Py_TYPE(runtime) == stock_runtime_type:
        variable_seen = runtime._current_context
        runtime_seen = runtime
    elif type(runtime) is RuntimeContext:
        variable_seen = (<RuntimeContext>runtime).variable
        runtime_seen = runtime
    return runtime.get_current()

cdef inline object value_in(object context, object key):
    cdef PyObject* value = tf_dict_get(<PyObject*>context, <PyObject*>key)
    if value == NULL:
        return None
    found = <object>value
    Py_DECREF(found)
    return found

# The span types whose SpanContext is to be had without a call: those of the SDK, while nobody has changed their method.
cdef PyObject* sdk_type_seen = NULL
cdef Py_ssize_t sdk_context_place = -1

cdef object span_context_in(object span):
    global sdk_type_seen, sdk_context_place
    cdef object kind
    cdef PyObject* held
    if <PyObject*>Py_TYPE(span) == sdk_type_seen:
        held = tf_value_at(<PyObject*>span, sdk_context_place)
        return <object>held if held != NULL else span._context
    if not isinstance(span, SpanType):
        return None
    kind = type(span)
    method = getattr(kind, "get_span_context", None)
    if getattr(method, "__module__", None) == "opentelemetry.sdk.trace":
        Py_INCREF(kind)
        sdk_context_place = tf_place_of(<PyTypeObject*>kind, b"_context")
        sdk_type_seen = <PyObject*>kind
    return span.get_span_context()

cdef object position_in(object context, Position* to, bint want_debug):
    """Where the context stands: the numbers into `to` (zeros when there is no span), the tracestate text returned."""
    cdef uint64_t high, low
    cdef object debug
    to[0] = Position(0, 0, 0, 0, 0, DEFER, 0, 0, 0)
    span = value_in(context, span_key)
    if span is None:
        return None
    if <PyObject*>Py_TYPE(span) == <PyObject*>RemoteSpan:
        return position_of_remote(<_RemoteSpan>span, to)
    held = span_context_in(span)
    if held is None:
        return None
    trace_state = position_of_span_context(held, to)
    if want_debug and to.span and to.flags & 1:
        debug = value_in(context, debug_key)
        # Sticky for the trace that it came with (or, without ids, for whatever trace began there).
        if debug is not None and (debug == 0 or tf_read128(<PyObject*>debug, &high, &low) and high == to.trace_high and low == to.trace_low):
            to.decision = DEBUG
    return trace_state

cdef inline object position_of_remote(_RemoteSpan span, Position* to):
    to.trace_high = span.trace_high
    to.trace_low = span.trace_low
    to.span = span.span
    to.flags = span.flags
    to.decision = span.decision
    to.bare = span.bare
    return span.trace_state

cdef inline bint read_numbers(PyObject* trace_id, PyObject* span_id, PyObject* flags, Position* to) noexcept:
    cdef uint64_t high = 0, low = 0
    if not tf_read128(trace_id, &to.trace_high, &to.trace_low) or not tf_read128(span_id, &high, &to.span) or high:
        to[0] = Position(0, 0, 0, 0, 0, DEFER, 0, 0, 0)
        return False
    tf_read128(flags, &high, &low)
    to.flags = <uint8_t>low
    if to.span and to.trace_high | to.trace_low:    # else there is nothing that anybody could have decided about
        to.decision = ACCEPT if low & 1 else DENY
    return True

cdef object position_of_span_context(object held, Position* to):
    cdef bint read
    if <PyObject*>Py_TYPE(held) == <PyObject*>SpanContext and span_context_is_six:
        read = read_numbers(PyTuple_GET_ITEM(held, 0), PyTuple_GET_ITEM(held, 1), PyTuple_GET_ITEM(held, 3), to)
        if PyTuple_GET_ITEM(held, 4) == <PyObject*>DEFAULT_TRACE_STATE:
            return None
        state = <object>PyTuple_GET_ITEM(held, 4)
    else:
        trace_id, span_id, flags, state = held.trace_id, held.span_id, held.trace_flags, held.trace_state
        read = read_numbers(<PyObject*>trace_id, <PyObject*>span_id, <PyObject*>flags, to)
    if not read or state is None:
        return None
    if type(state) is TraceState:
        return (<_TraceState>state).text or None
    return state.to_header() if state else None


# ------------------------------------------------------------------------------------------------- Snapshot and its pool

cdef enum Status:
    LAZY = 1          # the numbers still stand in the context only
    RELEASED = 2

# Pools live in a table, so that a Snapshot needs two bytes for its pool and not eight. Slot 0 is no pool at all.
cdef struct PoolState:
    tf_mutex mutex
    int64_t capacity, idle, in_use, hits, misses, overflows
    bint open

cdef enum:
    POOLS = 1024

cdef PoolState pools[POOLS]
cdef bint debugging = False
cdef dict places = {}    # TRACEFILL_DEBUG=1: where each Snapshot in use was acquired

class PoolStats(tuple):
    """capacity, idle, in_use, hits, misses, overflows: by attribute, by name in brackets, or as a tuple."""

    __slots__ = ()
    _fields = ("capacity", "idle", "in_use", "hits", "misses", "overflows")
    capacity = property(lambda self: tuple.__getitem__(self, 0))
    idle = property(lambda self: tuple.__getitem__(self, 1))
    in_use = property(lambda self: tuple.__getitem__(self, 2))
    hits = property(lambda self: tuple.__getitem__(self, 3))
    misses = property(lambda self: tuple.__getitem__(self, 4))
    overflows = property(lambda self: tuple.__getitem__(self, 5))

    def __getitem__(self, key):
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        if key not in self._fields:
            raise KeyError(f"{key!r}: there are {', '.join(self._fields)}")
        return getattr(self, key)

    def _asdict(self):
        return dict(zip(self._fields, self))

    def __repr__(self):
        return f"PoolStats({', '.join(f'{name}={value}' for name, value in zip(self._fields, self))})"

@cython.final
cdef class SnapshotPool:
    cdef int index

    def __cinit__(self, Py_ssize_t capacity=1024):
        cdef int i
        self.index = 0
        if capacity < 0:
            raise ValueError(f"capacity: expected 0 or more, got {capacity}")
        for i in range(1, POOLS):
            if not pools[i].open and pools[i].in_use == 0:
                pools[i].capacity = capacity
                pools[i].idle = pools[i].hits = pools[i].misses = pools[i].overflows = 0
                pools[i].open = True
                self.index = i
                tf_kept_grow(capacity)
                return
        raise TracefillError(f"no more than {POOLS - 1} pools at a time; keep one SnapshotPool and share it")

    def __dealloc__(self):
        if self.index:
            tf_kept_grow(-pools[self.index].capacity)
            pools[self.index].open = False

    def acquire(self, context=None):
        return acquire(self.index, context)

    def stats(self):
        cdef PoolState* pool = &pools[self.index]
        return PoolStats((pool.capacity, pool.idle, pool.in_use, pool.hits, pool.misses, pool.overflows))

    def leaks(self):
        return [place for index, place in list(places.values()) if index == self.index]

    def __repr__(self):
        return f"<SnapshotPool {self.stats()!r}>"

cdef inline void taken(int index) noexcept:
    cdef PoolState* pool = &pools[index]
    tf_lock(&pool.mutex)
    pool.in_use += 1
    # Idle ones whose last holder has not let go yet are not there to be used again.
    if pool.idle > 0 and (TF_FREE_THREADED or tf_kept_count() > 0):
        pool.idle -= 1
        pool.hits += 1
    else:
        pool.misses += 1
    tf_unlock(&pool.mutex)

cdef inline void given_back(int index) noexcept:
    cdef PoolState* pool = &pools[index]
    tf_lock(&pool.mutex)
    if pool.in_use > 0:    # after a fork the parent's snapshots are counted no more, but still dropped
        pool.in_use -= 1
    if pool.idle < pool.capacity:
        pool.idle += 1
    else:
        pool.overflows += 1
    tf_unlock(&pool.mutex)

cdef class _Rest:
    """What few snapshots have."""
    cdef uint64_t parent
    cdef bint has_parent
    cdef str trace_state
    cdef object request_id, tags, baggage

@cython.final
@cython.no_gc
cdef class Snapshot:
    # Not a gc object: 64 bytes instead of 80, and release() lets go of the context, the only thing that could form a cycle.
    cdef uint64_t trace_high, trace_low, span
    cdef uint8_t flags_, decision_, status
    cdef uint8_t bare
    cdef uint16_t pool
    cdef object context_
    cdef _Rest rest

    def __init__(
        self, trace_id=0, span_id=0, *, parent_id=None, flags=None, decision=None, trace_state=None, request_id=None,
        tags=None, baggage=None,
    ):
        cdef uint64_t high = 0
        if not tf_read128(<PyObject*>trace_id, &self.trace_high, &self.trace_low):
            raise ValueError(f"trace_id: expected an int of 0 .. 2**128 - 1, got {trace_id!r}")
        if not tf_read128(<PyObject*>span_id, &high, &self.span) or high:
            raise ValueError(f"span_id: expected an int of 0 .. 2**64 - 1, got {span_id!r}")
        if decision is not None and decision not in DECISIONS:
            raise ValueError(f"decision: expected one of {', '.join(DECISIONS)}, got {decision!r}")
        if flags is not None and not 0 <= flags <= 255:
            raise ValueError(f"flags: expected 0 .. 255, got {flags!r}")
        if decision is None:
            decision = "defer" if flags is None else "accept" if flags & 1 else "deny"
        self.decision_ = DECISIONS.index(decision)
        self.flags_ = flags if flags is not None else 1 if self.decision_ >= ACCEPT else 0
        if parent_id is not None or trace_state is not None or request_id is not None or tags is not None or baggage is not None:
            self.rest = _Rest()
            if parent_id is not None:
                if not tf_read128(<PyObject*>parent_id, &high, &self.rest.parent) or high:
                    raise ValueError(f"parent_id: expected an int of 0 .. 2**64 - 1, got {parent_id!r}")
                self.rest.has_parent = True
            if trace_state is not None:
                self.rest.trace_state = tracestate_text(trace_state if isinstance(trace_state, str) else trace_state.to_header())
            self.rest.request_id = request_id
            self.rest.tags = dict(tags) if tags else None
            self.rest.baggage = dict(baggage) if baggage else None

    @property
    def trace_id(self):
        usable(self)
        return tf_int128(self.trace_high, self.trace_low)

    @property
    def span_id(self):
        usable(self)
        return tf_int128(0, self.span)

    @property
    def parent_id(self):
        usable(self)
        return tf_int128(0, self.rest.parent) if self.rest is not None and self.rest.has_parent else None

    @property
    def flags(self):
        usable(self)
        return self.flags_

    @property
    def decision(self):
        usable(self)
        return DECISIONS[self.decision_]

    @property
    def trace_state(self):
        usable(self)
        if self.rest is None or self.rest.trace_state is None:
            return None
        ready()
        return new_trace_state(self.rest.trace_state)

    @property
    def request_id(self):
        usable(self)
        return self.rest.request_id if self.rest is not None else None

    @property
    def tags(self):
        usable(self)
        return dict(self.rest.tags) if self.rest is not None and self.rest.tags else {}

    @property
    def baggage(self):
        usable(self)
        return dict(self.rest.baggage) if self.rest is not None and self.rest.baggage else {}

    @property
    def context(self):
        usable(self)
        return self.context_

    @property
    def is_valid(self):
        usable(self)
        return self.span != 0 and (self.trace_high | self.trace_low) != 0

    @property
    def released(self):
        return bool(self.status & RELEASED)

    def to_context(self, base=None):
        """The Context it was taken from, or one made of what it holds (on top of base, when that is given)."""
        usable(self)
        return self.context_ if self.context_ is not None and base is None else context_from(self, base)

    def attach(self):
        usable(self)
        return context_module.attach(self.to_context()) if met else _attach(self)

    def run(self, fn, /, *args, **kwargs):
        cdef Scope scope = enter(own_context(self))
        try:
            return fn(*args, **kwargs)
        finally:
            leave(scope)

    def release(self):
        if self.status & RELEASED:
            raise SnapshotReleased("this Snapshot was released before; one release() for each acquire")
        self.status = RELEASED
        self.context_ = None
        self.rest = None
        self.trace_high = self.trace_low = self.span = 0
        if self.pool:
            given_back(self.pool)
            if debugging:
                places.pop(<size_t><PyObject*>self, None)

    def __enter__(self):
        usable(self)
        return self

    def __exit__(self, *exception):
        if not self.status & RELEASED:
            self.release()

    def to_bytes(self):
        cdef Position position
        position_of(self, &position)
        return write_binary(&position)

    @staticmethod
    def from_bytes(data):
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expected bytes, got {type(data).__name__}")
        return decode(F_GRPC_BIN, (bytes(data),))

    def to_json(self):
        return _json_of(self)

    @staticmethod
    def from_json(text):
        return _from_json(text)

    def __reduce__(self):
        cdef Position position
        trace_state = position_of(self, &position)
        return _restored, (
            self.trace_id, self.span_id, self.parent_id, self.flags_, self.decision, trace_state, self.request_id,
            self.tags, self.baggage,
        )

    def __eq__(self, other):
        if not isinstance(other, Snapshot):
            return NotImplemented
        return self.__reduce__()[1] == other.__reduce__()[1]

    def __hash__(self):
        usable(self)
        return hash((self.trace_high, self.trace_low, self.span))

    def __repr__(self):
        if self.status & RELEASED:
            return "<Snapshot released>"
        usable(self)
        return f"<Snapshot {hex32(self.trace_high, self.trace_low)}-{hex16(self.span)} {self.decision}>"

cdef inline int usable(Snapshot self) except -1:
    if self.status & RELEASED:
        raise SnapshotReleased(
            "this Snapshot was released; acquire another one with tracefill.snapshot(), or release it after its last use"
        )
    return look(self) if self.status & LAZY else 0

def _attach(Snapshot self):
    ready()
    return context_module.attach(self.to_context())

cdef object own_context(Snapshot self):
    """The context to run in, without a look at the numbers when it is there already."""
    if self.status & RELEASED:
        usable(self)
    return self.context_ if self.context_ is not None else context_from(self, None)

cdef object context_from(Snapshot self, object base):
    cdef Position position
    ready()
    trace_state = position_of(self, &position)
    span = new_remote_span(&position, trace_state) if position.span or position.decision != DEFER else None
    debug = tf_int128(position.trace_high, position.trace_low) if position.decision == DEBUG else None
    context = context_with(base, span, self.baggage or None, debug)
    if self.rest is not None and self.rest.request_id is not None:
        PyDict_SetItem(context, REQUEST_ID_KEY, self.rest.request_id)
    if self.rest is not None and self.rest.tags:
        PyDict_SetItem(context, TAGS_KEY, dict(self.rest.tags))
    return context

cdef int look(Snapshot self) except -1:
    """Takes the numbers out of the context, the first time that somebody asks for one."""
    cdef Position position
    context = self.context_
    trace_state = position_in(context, &position, True)
    self.trace_high = position.trace_high
    self.trace_low = position.trace_low
    self.span = position.span
    self.flags_ = position.flags
    self.decision_ = position.decision
    self.bare = position.bare
    request_id, tags, baggage = value_in(context, REQUEST_ID_KEY), value_in(context, TAGS_KEY), value_in(context, baggage_key)
    if trace_state is not None or request_id is not None or tags or baggage:
        self.rest = _Rest()
        self.rest.trace_state = trace_state
        self.rest.request_id = request_id
        self.rest.tags = tags
        self.rest.baggage = baggage
    self.status &= ~(<uint8_t>LAZY)
    return 0

cdef object position_of(Snapshot self, Position* to):
    usable(self)
    to[0] = Position(self.trace_high, self.trace_low, self.span, 0, self.flags_, self.decision_, 0, self.bare, 0)
    if self.rest is None:
        return None
    to.parent = self.rest.parent
    to.has_parent = self.rest.has_parent
    return self.rest.trace_state

cdef Snapshot new_snapshot(const Position* of, object trace_state):
    cdef Snapshot self = Snapshot.__new__(Snapshot)
    self.trace_high = of.trace_high
    self.trace_low = of.trace_low
    self.span = of.span
    self.flags_ = of.flags
    self.decision_ = of.decision
    if of.has_parent or trace_state is not None:
        self.rest = _Rest()
        self.rest.parent = of.parent
        self.rest.has_parent = of.has_parent
        self.rest.trace_state = trace_state
    return self

cdef inline Snapshot acquire(int pool, object context):
    cdef Snapshot self
    ready()
    if context is None:
        context = current()
    elif not isinstance(context, dict):
        raise TypeError(f"context: expected an opentelemetry Context or None, got {type(context).__name__}")
    taken(pool)
    self = Snapshot.__new__(Snapshot)
    self.status = LAZY
    self.pool = pool
    self.context_ = context
    if debugging:
        remember_place(self)
    return self

cdef int remember_place(Snapshot self) except -1:
    """The line of the program; of a library where none of the program's own is on the stack."""
    import os
    import traceback

    ours, standard = __file__.rpartition("_codec.")[0], os.__file__.rpartition("os.")[0]
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(ours)]
    program = [f for f in frames if not f.filename.startswith((standard, "<frozen")) and "-packages" not in f.filename]
    nearest = next(reversed(program or frames), None)
    places[<size_t><PyObject*>self] = (self.pool, "unknown" if nearest is None else f"{nearest.filename}:{nearest.lineno}")
    return 0

def snapshot(context=None):
    return acquire(default_pool.index, context)

def _restored(trace_id, span_id, parent_id, flags, decision, trace_state, request_id, tags, baggage):
    return Snapshot(
        trace_id, span_id, parent_id=parent_id, flags=flags, decision=decision, trace_state=trace_state,
        request_id=request_id, tags=tags, baggage=baggage,
    )

def _json_of(Snapshot self):
    import json

    cdef Position position
    trace_state = position_of(self, &position)
    members = {"t": hex32(position.trace_high, position.trace_low), "s": hex16(position.span)}
    if position.has_parent:
        members["p"] = hex16(position.parent)
    if position.decision != DEFER:
        members["c"] = B3_STATES[position.decision]
    if position.flags != (1 if position.decision >= ACCEPT else 0):
        members["f"] = position.flags
    for key, value in (("w", trace_state), ("r", self.request_id), ("g", self.tags), ("b", {k: str(v) for k, v in self.baggage.items()})):
        if value:
            members[key] = value
    return json.dumps(members, separators=(",", ":"))

def _from_json(text):
    import json

    if isinstance(text, (str, bytes, bytearray)):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError):
            log_ignored("json", "not a JSON document")
            return None
    if not isinstance(text, dict):
        log_ignored("json", "not an object")
        return None
    return _from_members(text)

cdef object _from_members(dict members):
    cdef Position position
    cdef Text texts[5]
    cdef Snapshot made
    t, s, p, c, f = (members.get(key) for key in "tspcf")
    if not isinstance(t, str) or not isinstance(s, str) or (p is not None and not isinstance(p, str)) or c not in B3_STATES:
        log_ignored("json", "t and s, p, c are not of their forms")
        return None
    w, r, g, b = (members.get(key) for key in "wrgb")
    position = Position(0, 0, 0, 0, 0, B3_STATES.index(c), 0, 0, 0)
    for i, value in enumerate((t, s, p)):
        if text_of(value, &texts[i]) == NOT_TEXT:
            log_ignored("json", "an id is not ASCII")
            return None
    if texts[0].length != 32 or not read32(texts[0].at, &position.trace_high, &position.trace_low):
        log_ignored("json", "t is not 32 lower-case hex digits")
        return None
    if texts[1].length != 16 or not tf_read16(texts[1].at, &position.span):
        log_ignored("json", "s is not 16 lower-case hex digits")
        return None
    if p is not None:
        if texts[2].length != 16 or not tf_read16(texts[2].at, &position.parent):
            log_ignored("json", "p is not 16 lower-case hex digits")
            return None
        position.has_parent = True
    if position.decision == DEFER and (position.span == 0 or (position.trace_high | position.trace_low) == 0):
        log_ignored("json", "an id is zero")
        return None
    position.flags = f & 255 if type(f) is int else 1 if position.decision >= ACCEPT else 0
    made = new_snapshot(&position, tracestate_text(w) if isinstance(w, str) else None)
    if isinstance(r, str) or isinstance(g, dict) or isinstance(b, dict):
        if made.rest is None:
            made.rest = _Rest()
        made.rest.request_id = r if isinstance(r, str) else None
        made.rest.tags = {str(k): v for k, v in g.items()} if isinstance(g, dict) else None
        made.rest.baggage = {str(k): str(v) for k, v in b.items()} if isinstance(b, dict) else None
    return made

# A Snapshot that is dropped returns by itself: its memory passes here when the last reference has gone. (A __dealloc__ would
# do, but Cython saves and restores the exception state around one: a third of the price of a decode.)
cdef Py_ssize_t status_offset, pool_offset

cdef void snapshot_free(void* block) noexcept:
    cdef int pool = (<uint16_t*>(<char*>block + pool_offset))[0]
    if pool and not (<uint8_t*>(<char*>block + status_offset))[0] & RELEASED:
        given_back(pool)
        if debugging:
            places.pop(<size_t>block, None)
    tf_kept_free(block)

cdef int use_own_memory() except -1:
    global status_offset, pool_offset
    cdef Snapshot probe = Snapshot()
    status_offset = <char*>&probe.status - <char*><void*>probe
    pool_offset = <char*>&probe.pool - <char*><void*>probe
    del probe
    (<PyTypeObject*>Snapshot).tp_alloc = tf_kept_alloc
    (<PyTypeObject*>Snapshot).tp_free = snapshot_free
    tf_kept_grow(256)    # for those that decode makes, which belong to no pool
    return 0

use_own_memory()

cdef SnapshotPool default_pool = SnapshotPool(1024)

def pool_stats():
    return default_pool.stats()

def pool_leaks():
    return default_pool.leaks()

def set_debugging(bint on):
    global debugging
    debugging = on

def in_forked_child():
    """The parent's snapshots are not ours to give back: the counts start anew (called by os.register_at_fork)."""
    cdef int i
    for i in range(1, POOLS):
        pools[i].in_use = 0
    places.clear()


# ---------------------------------------------------------------------------------------- the formats' Python functions

# Bits: headers whose loss costs nothing of the position.
cdef uint32_t IGNORABLE = 1u << <int>H_TRACESTATE | 1u << <int>H_B3_FLAGS | 1u << <int>H_DATADOG_ORIGIN | 1u << <int>H_DATADOG_TAGS

cdef Reason read_values(int format, tuple values, Position* to) except FAILED:
    cdef Text texts[MOST_FIELDS]
    cdef Py_ssize_t given = PyTuple_GET_SIZE(values), i
    cdef Reason reason
    if format == F_GRPC_BIN:
        return read_binary(<object>PyTuple_GET_ITEM(values, 0) if given else None, to)
    for i in range(COUNT[format]):
        reason = text_of(<object>PyTuple_GET_ITEM(values, i) if i < given else None, &texts[i])
        if reason == NOT_TEXT:
            if not IGNORABLE >> (FIRST[format] + i) & 1:
                return NOT_TEXT
            texts[i] = Text(NULL, 0)
        if i == 0 and reason == ABSENT and COUNT[format] <= 2:
            return ABSENT
    return read_position(format, texts, to)

cdef Reason read_binary(object value, Position* to) except FAILED:
    cdef Text text
    if value is None:
        return ABSENT
    if isinstance(value, bytearray):
        value = bytes(value)
    if not PyBytes_Check(value):
        return NOT_TEXT
    text = Text(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return read_position(F_GRPC_BIN, &text, to)

cdef object decode(int format, tuple values):
    cdef Position position
    cdef Reason reason = read_values(format, values, &position)
    if reason == VALID:
        extracted[format] += 1
        return new_snapshot(&position, tracestate_text(values[1]) if format == F_TRACECONTEXT and PyTuple_GET_SIZE(values) > 1 else None)
    if reason != ABSENT:
        ignore(format, reason)
    return None

cdef object encode(int format, object snapshot):
    cdef Position position
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"snapshot: expected a tracefill.Snapshot, got {type(snapshot).__name__}")
    trace_state = position_of(<Snapshot>snapshot, &position)
    if position.bare and (format == F_B3 or format == F_B3MULTI):
        position.span = 0
    return write_fields(format, &position, trace_state)

cdef object explain(int format, tuple values):
    cdef Position position
    cdef Reason reason = read_values(format, values, &position)
    return REASONS[<int>reason]

# One function a format: a call of a bound C function of one argument is half the price of one that sorts out its arguments.

def decode_tracecontext(traceparent=None, tracestate=None):
    cdef Position position
    cdef Text text
    cdef Reason reason = text_of(traceparent, &text)
    if reason == VALID:
        position = Position(0, 0, 0, 0, 0, DEFER, 0, 0, 0)
        reason = read_traceparent(text, &position)
        if reason == VALID:
            extracted[<int>F_TRACECONTEXT] += 1
            return new_snapshot(&position, None if tracestate is None else tracestate_text(tracestate))
    if reason != ABSENT:
        ignore(F_TRACECONTEXT, reason)
    return None

def decode_b3(b3=None):
    cdef Position position
    cdef Text text
    cdef Reason reason = text_of(b3, &text)
    if reason == VALID:
        reason = read_position(F_B3, &text, &position)
        if reason == VALID:
            extracted[<int>F_B3] += 1
            return new_snapshot(&position, None)
    if reason != ABSENT:
        ignore(F_B3, reason)
    return None

@cython.final
cdef class _Codec:
    """decode, encode and explain of one format; the row of formats.py hands them on."""
    cdef int format

    def __init__(self, str name not None):
        self.format = FORMAT_NAMES.index(name)

    def decode(self, *values):
        return decode(self.format, values)

    def encode(self, snapshot):
        return encode(self.format, snapshot)

    def explain(self, *values):
        return explain(self.format, values)


# ----------------------------------------------------------------------------------------------------------- carriers

# One look-up of one header in one carrier, whatever its shape. Nothing here calls Python code but for a getter that we do
# not know; so what is borrowed from the carrier stays alive for as long as the caller holds the carrier.
cdef enum Shape:
    EXACT_DICT       # text keys as they are written in HEADER_NAMES
    FOLDED_DICT      # text keys in any case
    ENVIRON          # WSGI: HTTP_ in front, upper case, _ for -
    HTTP_PAIRS       # (name, value) pairs in any case, lines of one name may repeat
    MESSAGE_PAIRS    # the same of a message: the last of one name wins
    GETTER           # anything: asked through an OpenTelemetry Getter

cdef struct Carrier:
    int shape
    PyObject* held
    PyObject* getter
    uint32_t found        # bits: headers seen by scan()
    uint32_t repeated
    uint32_t complained   # bits: formats whose header was not valid; a carrier may be read twice, each is told once
    PyObject* values[<int>HEADERS]

cdef tuple HEADER_NAMES = tuple([name for fields in FORMAT_FIELDS.values() for name in fields]) + ("baggage",)
cdef tuple ENVIRON_NAMES = tuple(["HTTP_" + name.upper().replace("-", "_") for name in HEADER_NAMES])
cdef const char* HEADER_TEXT[<int>HEADERS]
cdef int HEADER_LENGTH[<int>HEADERS]
cdef enum:
    MOST_NAME = 32
cdef uint32_t OF_LENGTH[MOST_NAME]      # bits: the headers whose names are so long; none of them is of length 0

cdef void fill_headers():
    cdef int h
    for h in range(HEADERS):
        name = HEADER_NAMES[h]
        HEADER_TEXT[h] = <const char*>PyUnicode_DATA(name)
        HEADER_LENGTH[h] = len(name)
        OF_LENGTH[len(name)] |= 1u << h

fill_headers()

cdef inline int header_of(PyObject* name, uint32_t wanted) noexcept:
    """Which of the wanted headers this name is, in any case; -1 when none."""
    cdef Py_ssize_t length
    cdef const char* at = tf_ascii(name, &length)
    cdef uint32_t candidates
    cdef int h
    if at == NULL or length >= MOST_NAME:
        return -1
    candidates = OF_LENGTH[length] & wanted
    while candidates:
        h = tf_lowest_bit(candidates)
        if (at[0] | 32) == HEADER_TEXT[h][0] and same_in_any_case(at, HEADER_TEXT[h], length):
            return h
        candidates &= candidates - 1
    return -1

cdef inline void saw(Carrier* c, PyObject* name, PyObject* value, uint32_t wanted) noexcept:
    cdef int h = header_of(name, wanted)
    if h < 0 or value == Py_None:
        return
    if not c.found >> h & 1:
        c.found |= 1u << h
        c.values[h] = value
    elif c.shape == MESSAGE_PAIRS:
        c.values[h] = value
    else:
        c.repeated |= 1u << h

cdef void scan(Carrier* c, uint32_t wanted) noexcept:
    """One pass over a carrier that has no look-up by name."""
    cdef PyObject* name
    cdef PyObject* value
    cdef PyObject** items
    cdef Py_ssize_t i, at = 0
    c.found = c.repeated = 0
    if c.shape == FOLDED_DICT:
        while PyDict_Next(<object>c.held, &at, &name, &value):
            if OF_LENGTH[tf_name_length(name)] & wanted:
                saw(c, name, value, wanted)
        return
    items = tf_items(c.held)
    for i in range(tf_size(c.held)):
        # Nearly every name is of a length that no wanted header has: the loop is made for those.
        if tf_pair(items[i], &name, &value) and OF_LENGTH[tf_name_length(name)] & wanted:
            saw(c, name, value, wanted)

cdef list every_line(Carrier* c, int h):
    """All values of a header that repeats."""
    cdef PyObject* name
    cdef PyObject* value
    cdef PyObject** items
    cdef Py_ssize_t i, at = 0
    cdef list lines = []
    if c.shape == FOLDED_DICT:
        while PyDict_Next(<object>c.held, &at, &name, &value):
            if header_of(name, 1u << h) >= 0:
                lines.append(<object>value)
        return lines
    items = tf_items(c.held)
    for i in range(tf_size(c.held)):
        if tf_pair(items[i], &name, &value) and header_of(name, 1u << h) >= 0:
            lines.append(<object>value)
    return lines

cdef object one_of(int h, object lines):
    """What several lines of one header mean: joined for lists, and for traceparent, which is then not valid, as it must be."""
    lines = list(lines)
    if not lines:
        return None
    if len(lines) == 1:
        return lines[0]
    if h == H_TRACEPARENT or h == H_TRACESTATE or h == H_BAGGAGE:
        return joined(lines)
    return lines[0]

cdef object fetch(Carrier* c, int h):
    """The value of a header, or None."""
    if c.shape == EXACT_DICT:
        value = value_in(<object>c.held, <object>PyTuple_GET_ITEM(HEADER_NAMES, h))
    elif c.shape == ENVIRON:
        value = value_in(<object>c.held, <object>PyTuple_GET_ITEM(ENVIRON_NAMES, h))
    elif c.shape == GETTER:
        value = (<object>c.getter).get(<object>c.held, <object>PyTuple_GET_ITEM(HEADER_NAMES, h))
    elif not c.found >> h & 1:
        return None
    elif c.repeated >> h & 1:
        return one_of(h, every_line(c, h))
    else:
        value = <object>c.values[h]
    if value is None or PyUnicode_CheckExact(value) or PyBytes_Check(value):
        return value
    if isinstance(value, (str, bytearray)):
        return bytes(value) if PyByteArray_Check(value) else value
    try:
        return one_of(h, value)
    except TypeError:
        return value    # neither text nor lines of text: read as malformed

cdef inline void as_pairs(Carrier* c, object items, int shape, uint32_t wanted):
    c.shape = shape
    c.held = <PyObject*>items
    scan(c, wanted)

# Getters of OpenTelemetry and its contrib packages whose answer we know how to give without asking them.
cdef dict KNOWN_GETTERS = {
    "opentelemetry.propagators.textmap.DefaultGetter": EXACT_DICT,
    "opentelemetry.instrumentation.asgi.ASGIGetter": HTTP_PAIRS,
    "opentelemetry.instrumentation.wsgi.WSGIGetter": ENVIRON,
    "opentelemetry.instrumentation.kafka.utils.KafkaContextGetter": MESSAGE_PAIRS,
    "opentelemetry.instrumentation.confluent_kafka.utils.KafkaContextGetter": MESSAGE_PAIRS,
    "opentelemetry.instrumentation.aiokafka.utils.AIOKafkaContextGetter": MESSAGE_PAIRS,
}
cdef dict shapes_seen = {}
cdef PyObject* getter_type_seen = NULL
cdef int getter_shape_seen = GETTER

cdef int shape_behind(object getter) except -1:
    """The shape that a getter stands for; GETTER when it has to be asked."""
    global getter_type_seen, getter_shape_seen
    if <PyObject*>Py_TYPE(getter) == getter_type_seen:
        return getter_shape_seen
    kind = type(getter)
    shape = shapes_seen.get(kind)
    if shape is None:
        shape = KNOWN_GETTERS.get(f"{kind.__module__}.{kind.__qualname__}", GETTER)
        shapes_seen[kind] = shape
    # shapes_seen keeps the type alive.
    if not TF_FREE_THREADED:
        getter_type_seen, getter_shape_seen = <PyObject*>kind, shape
    return shape

cdef object through_getter(Carrier* c, object carrier, object getter, uint32_t wanted):
    """Fills the carrier; returns what has to be kept alive while it is read."""
    cdef int shape = shape_behind(getter)
    held = carrier
    if shape == EXACT_DICT and PyDict_CheckExact(carrier):
        c.shape = EXACT_DICT
        c.held = <PyObject*>carrier
        return carrier
    if shape == ENVIRON and PyDict_CheckExact(carrier):
        c.shape = ENVIRON
        c.held = <PyObject*>carrier
        return carrier
    if shape == HTTP_PAIRS and PyDict_CheckExact(carrier):
        held = (<dict>carrier).get("headers")
    if (shape == HTTP_PAIRS or shape == MESSAGE_PAIRS) and (PyList_Check(held) or PyTuple_Check(held)):
        if TF_FREE_THREADED:
            held = tuple(held)
        as_pairs(c, held, shape, wanted)
        return held
    c.shape = GETTER
    c.held = <PyObject*>carrier
    c.getter = <PyObject*>getter
    return carrier

# Set by carriers.py: makes a dict, or a list of pairs, of carriers that are neither (any mapping, werkzeug, aiohttp, ...).
cdef object recognise = None

def set_recogniser(function):
    global recognise
    recognise = function

cdef object by_itself(Carrier* c, object carrier, uint32_t wanted):
    """The same for a carrier without a getter, whose shape is told by what it is."""
    cdef PyObject* name
    cdef PyObject* value
    cdef bint message
    if not (PyDict_CheckExact(carrier) or PyList_Check(carrier) or PyTuple_Check(carrier)):
        if recognise is None:
            import tracefill.carriers  # noqa: F401
        carrier = recognise(carrier)
    if PyDict_CheckExact(carrier):
        if value_in(carrier, "traceparent") is not None:
            c.shape = EXACT_DICT
        else:
            headers = value_in(carrier, "headers")
            if PyList_Check(headers) or PyTuple_Check(headers):
                return by_itself(c, headers, wanted)
            is_environ = value_in(carrier, "REQUEST_METHOD") is not None or value_in(carrier, "HTTP_TRACEPARENT") is not None
            c.shape = ENVIRON if is_environ else FOLDED_DICT
        c.held = <PyObject*>carrier
        if c.shape == FOLDED_DICT:
            if TF_FREE_THREADED:
                carrier = dict(carrier)
                c.held = <PyObject*>carrier
            scan(c, wanted)
        return carrier
    if TF_FREE_THREADED:
        carrier = tuple(carrier)
    # Text names over bytes are the headers of a message (Kafka); everything else is HTTP or gRPC.
    message = (
        tf_size(<PyObject*>carrier) > 0
        and tf_pair(tf_items(<PyObject*>carrier)[0], &name, &value)
        and PyUnicode_Check(<object>name)
        and (PyBytes_Check(<object>value) or <object>value is None)
    )
    as_pairs(c, carrier, MESSAGE_PAIRS if message else HTTP_PAIRS, wanted)
    return carrier


# --------------------------------------------------------------------------------------------------------- propagators

# Bits: without one of these headers a format is absent, and its other headers need not be looked up.
cdef uint32_t LEADING[<int>FORMATS]
LEADING[:] = [
    1u << <int>H_TRACEPARENT, 1u << <int>H_B3, 1u << <int>H_B3_TRACE | 1u << <int>H_B3_SPAN | 1u << <int>H_B3_SAMPLED | 1u << <int>H_B3_FLAGS,
    1u << <int>H_JAEGER, 1u << <int>H_XRAY, 1u << <int>H_DATADOG_TRACE, 1u << <int>H_OT_TRACE, 1u << <int>H_GRPC,
]

cdef Reason read_carrier(Carrier* c, int format, Position* to) except FAILED:
    """One format out of a carrier."""
    cdef Text text
    cdef Reason reason
    if c.shape in (FOLDED_DICT, HTTP_PAIRS, MESSAGE_PAIRS) and not c.found & LEADING[format]:
        return ABSENT
    if COUNT[format] > 2:
        return read_several(c, format, to)
    value = fetch(c, FIRST[format])
    if format == F_GRPC_BIN:
        return read_binary(value, to)
    reason = text_of(value, &text)
    return read_position(format, &text, to) if reason == VALID else reason

cdef Reason read_several(Carrier* c, int format, Position* to) except FAILED:
    """A format of several headers, whose texts are borrowed from values that are held meanwhile."""
    cdef Text texts[MOST_FIELDS]
    cdef PyObject* held[MOST_FIELDS]
    cdef Reason reason = VALID
    cdef int i, used = 0
    cdef bint leading = False
    for i in range(COUNT[format]):
        value = fetch(c, FIRST[format] + i)
        Py_INCREF(value)
        held[i] = <PyObject*>value
        used = i + 1
        if text_of(value, &texts[i]) == NOT_TEXT:
            if IGNORABLE >> (FIRST[format] + i) & 1:
                texts[i] = Text(NULL, 0)
            else:
                reason = NOT_TEXT
                break
        if texts[i].at != NULL and LEADING[format] >> (FIRST[format] + i) & 1:
            leading = True
        if not leading and i == 0 and format != F_B3MULTI:
            break
    if reason == VALID:
        reason = read_position(format, texts, to) if leading else ABSENT
    for i in range(used):
        Py_DECREF(<object>held[i])
    return reason

cdef inline object empty_one():
    """Contexts are immutable, hence one for all (unless somebody has found a way to put something into it)."""
    return empty_context if not PyDict_GET_SIZE(<PyObject*>empty_context) else tf_new(Context, empty_tuple)

cdef class Propagator:
    """The formats it reads, in order, and those it writes; the parent of every class in propagators.py."""
    cdef int readers, writers
    cdef int reads[<int>FORMATS]
    cdef int writes[<int>FORMATS]
    cdef bint baggage, defer_accepts
    cdef bint lone           # reads tracecontext and nothing else
    cdef bint sticky         # writes a format that knows of debug
    cdef uint32_t wanted
    cdef uint32_t unread     # the first header of each text format that it does not read

    def __init__(self, extract=(), inject=(), baggage=False, defer="accept"):
        cdef int f
        if defer not in ("accept", "deny"):
            raise ValueError(f"defer: expected 'accept' or 'deny' (what nobody decided is taken for), got {defer!r}")
        self.readers = self.writers = 0
        self.wanted = 0
        self.sticky = False
        for names, reading in ((extract, True), (inject, False)):
            for name in (names,) if isinstance(names, str) else names:
                if name not in FORMAT_FIELDS:
                    raise ValueError(f"format: expected one of {', '.join(FORMAT_FIELDS)}, got {name!r}")
                f = FORMAT_NAMES.index(name)
                if reading:
                    self.reads[self.readers] = f
                    self.readers += 1
                    for h in range(FIRST[f], FIRST[f] + COUNT[f]):
                        self.wanted |= 1u << <int>h
                else:
                    self.writes[self.writers] = f
                    self.writers += 1
                    self.sticky = self.sticky or f != F_TRACECONTEXT
        self.baggage = baggage
        self.defer_accepts = defer == "accept"
        if baggage:
            self.wanted |= 1u << <int>H_BAGGAGE
        self.lone = self.readers == 1 and self.reads[0] == F_TRACECONTEXT and not baggage
        self.unread = 0
        for f in range(<int>F_GRPC_BIN if self.readers else 0):
            self.unread |= 1u << FIRST[f]
        self.unread &= ~self.wanted

    def extract(self, carrier, context=None, getter=None):
        global missing
        cdef Carrier c
        ready()
        if (getter is None or getter is stock_getter) and PyDict_CheckExact(carrier):
            if self.lone and value_in(carrier, "traceparent") is None:
                # The commonest case of all, and the one whose price nobody wants to see.
                missing += 1
                c.shape = EXACT_DICT
                c.held = <PyObject*>carrier
                self.count_unread(&c)
                return empty_one() if context is None else context
            c.shape = EXACT_DICT
            c.held = <PyObject*>carrier
            return self.extract_from(&c, context)
        held = through_getter(&c, carrier, stock_getter if getter is None else getter, self.wanted)
        found = self.extract_from(&c, context)
        del held
        return found

    cdef inline int count_unread(self, Carrier* c) except -1:
        """Nothing was found in this carrier, the `missing`th; has it headers of formats that this propagator does not read?"""
        if self.unread and (missing <= LOOKED_THROUGH or missing % ONE_IN == 0):
            self.look_for_unread(c, 1 if missing <= LOOKED_THROUGH else ONE_IN)
        return 0

    cdef int look_for_unread(self, Carrier* c, int weight) except -1:
        cdef int f
        copy = None
        if c.shape == GETTER:
            return 0    # a stranger's code, which expects to be asked for what is read
        if c.shape == EXACT_DICT:
            if TF_FREE_THREADED:
                copy = dict(<dict>c.held)
                c.held = <PyObject*>copy
            c.shape = FOLDED_DICT
        if c.shape != ENVIRON:
            scan(c, self.unread)
        for f in range(F_GRPC_BIN):
            if self.unread >> FIRST[f] & 1 and fetch(c, FIRST[f]) is not None:
                unread[f] += weight
        return 0

    cdef bint find(self, Carrier* c, Position* position) except -1:
        """The first valid format, in order."""
        cdef Reason reason
        cdef int i, format
        for i in range(self.readers):
            format = self.reads[i]
            reason = read_carrier(c, format, position)
            if reason == VALID:
                extracted[format] += 1
                position.format = format
                return True
            if reason != ABSENT and not c.complained >> format & 1:
                c.complained |= 1u << format
                ignore(format, reason)
        return False

    cdef object extract_from(self, Carrier* c, object context):
        global missing
        cdef Position position
        cdef bint found
        trace_state = copy = None
        c.complained = 0
        found = self.find(c, &position)
        if not found and c.shape == EXACT_DICT and not self.lone and PyDict_GET_SIZE(c.held):
            # No header of a name as we write it: perhaps of another spelling.
            if TF_FREE_THREADED:
                copy = dict(<dict>c.held)
                c.held = <PyObject*>copy
            c.shape = FOLDED_DICT
            scan(c, self.wanted)
            found = c.found != 0 and self.find(c, &position)
        if found and position.format == F_TRACECONTEXT:
            value = fetch(c, H_TRACESTATE)
            if value is not None:
                trace_state = tracestate_text(value)
        members = None
        if self.baggage:
            value = fetch(c, H_BAGGAGE)
            if value is not None:
                if context is None and not self.readers:
                    context = current()
                old = value_in(context, baggage_key) if context is not None else None
                members = read_baggage(value, dict(old) if isinstance(old, dict) else {})
                if not members:
                    members = None
        if found:
            return self.found_in(&position, trace_state, members, context)
        missing += 1
        self.count_unread(c)
        if members is not None:
            return context_with(context, None, members, None)
        if context is not None:
            return context
        return empty_one() if self.readers else current()

    cdef object found_in(self, Position* position, object trace_state, object members, object context):
        cdef bint bare = position.span == 0
        debug = None
        if position.decision == DEFER and self.defer_accepts:
            position.flags = 1
        elif position.decision == DEBUG:
            debug = tf_int128(position.trace_high, position.trace_low)
        if bare and position.decision == DENY:
            # Nobody is there to be the parent, but a parent is what samplers ask: one is made up, and never recorded.
            position.bare = True
            position.trace_high, position.trace_low, position.span = random64(), random64() | 1, random64() | 1
        elif bare and context is not None:
            return context_with(context, None, members, debug) if members is not None or debug is not None else context
        if context is None and members is None and debug is None:
            return remote_context(position, trace_state)
        return context_with(context, new_remote_span(position, trace_state), members, debug)

    def inject(self, carrier, context=None, setter=None):
        cdef bint plain
        ready()
        if context is None:
            context = current()
        plain = PyDict_CheckExact(carrier) and (setter is None or setter is stock_setter)
        if setter is None:
            setter = stock_setter
        self.inject_into(carrier, context, setter, plain)

    cdef int inject_into(self, object carrier, object context, object setter, bint plain) except -1:
        cdef Position position, asked
        cdef int i, j, format
        cdef object trace_state
        trace_state = position_in(context, &position, self.sticky) if self.writers else None
        for i in range(self.writers):
            format = self.writes[i]
            if format == F_TRACECONTEXT:
                if position.span and position.trace_high | position.trace_low:
                    put(carrier, setter, plain, "traceparent", write_traceparent(&position))
                    if trace_state is not None:
                        put(carrier, setter, plain, "tracestate", trace_state)
                continue
            asked = position
            if position.bare and (format == F_B3 or format == F_B3MULTI):
                asked.span = 0
            for j, value in enumerate(write_fields(format, &asked, trace_state)):
                if value is not None:
                    put(carrier, setter, plain, sent_name(FIRST[format] + j), value)
        if self.baggage:
            members = value_in(context, baggage_key)
            if members:
                value = encode_baggage(members)
                if value is not None:
                    put(carrier, setter, plain, "baggage", value)
        return 0

    @property
    def fields(self):
        cdef int i
        names = {"baggage"} if self.baggage else set()
        for i in range(self.writers):
            names.update([sent_name(HEADER_NAMES.index(name)) for name in SENT_FIELDS[FORMAT_NAMES[self.writes[i]]]])
        return names

cdef inline object sent_name(int h):
    # The one name that is documented, and looked for by some of its readers, in mixed case.
    return "X-Amzn-Trace-Id" if h == H_XRAY else HEADER_NAMES[h]

# Of the headers that a format has, those that inject may set.
cdef dict SENT_FIELDS = dict(
    FORMAT_FIELDS,
    b3multi=("x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"),
    datadog=("x-datadog-trace-id", "x-datadog-parent-id", "x-datadog-sampling-priority", "x-datadog-tags"),
)

cdef inline int put(object carrier, object setter, bint plain, object name, object value) except -1:
    if plain:
        return PyDict_SetItem(carrier, name, value)
    setter.set(carrier, name, value)
    return 0

# What the public extract and inject go by: the formats of OpenTelemetry's global propagator when the user has chosen one,
# else (stock's default pair, or ours) all of them. Looked up again whenever the global propagator is another object.
cdef object global_seen = None, chosen = None
cdef bint chosen_is_plain = False     # one of ours whose extract and inject nobody has overridden
cdef Propagator default_propagator = None

def set_default_propagator(Propagator propagator not None):
    global default_propagator
    default_propagator = propagator

cdef inline object global_textmap():
    # The module's variable: a tenth of the price of the public call, which is asked where there is no such variable.
    propagator = value_in(propagate_names, "_HTTP_TEXT_FORMAT")
    return propagate_module.get_global_textmap() if propagator is None else propagator

cdef inline object choice():
    global propagate_module, propagate_names
    ready()
    if propagate_module is None:
        import opentelemetry.propagate

        if default_propagator is None:
            import tracefill.propagators  # noqa: F401
        propagate_module = opentelemetry.propagate
        propagate_names = vars(propagate_module)
    propagator = global_textmap()
    return chosen if propagator is global_seen else choose(propagator)

cdef object choose(object propagator):
    global global_seen, chosen, chosen_is_plain
    parts = getattr(propagator, "_propagators", [propagator])
    kinds = {f"{type(part).__module__}.{type(part).__qualname__}" for part in parts}
    if len(parts) == 1 and isinstance(parts[0], Propagator):
        chosen = parts[0]
    elif kinds == {
        "opentelemetry.trace.propagation.tracecontext.TraceContextTextMapPropagator",
        "opentelemetry.baggage.propagation.W3CBaggagePropagator",
    }:
        chosen = default_propagator
    elif not kinds:
        chosen = Propagator()  # OTEL_PROPAGATORS=none; stock's composite of nothing gives None for a context
    else:
        chosen = propagator
    chosen_is_plain = (
        isinstance(chosen, Propagator)
        and type(chosen).extract is Propagator.extract
        and type(chosen).inject is Propagator.inject
    )
    global_seen = propagator
    return chosen

def extract(carrier, context=None):
    return extract_any(carrier, context)

cdef object extract_any(object carrier, object context):
    cdef Carrier c
    propagator = choice()
    if not chosen_is_plain:
        from tracefill.carriers import getter

        return propagator.extract(carrier, context, getter)
    held = by_itself(&c, carrier, (<Propagator>propagator).wanted)
    found = (<Propagator>propagator).extract_from(&c, context)
    del held
    return found

def inject(carrier, context=None):
    propagator = choice()
    if context is None:
        context = current()
    if PyDict_CheckExact(carrier) and chosen_is_plain:
        if PyDict_Size(carrier):
            remove_other_cases(carrier, (<Propagator>propagator))
        (<Propagator>propagator).inject_into(carrier, context, None, True)
        return
    from tracefill.carriers import setter

    propagator.inject(carrier, context, setter)

cdef int remove_other_cases(dict carrier, Propagator propagator) except -1:
    """A `Traceparent` that is there already would be sent beside our `traceparent`."""
    cdef PyObject* name
    cdef PyObject* value
    cdef Py_ssize_t at = 0
    cdef int h
    cdef list others = None
    while PyDict_Next(carrier, &at, &name, &value):
        h = header_of(name, propagator.wanted)
        if h >= 0 and <object>name != HEADER_NAMES[h]:
            if others is None:
                others = []
            others.append(<object>name)
    if others is not None and propagator.writers:
        written = propagator.fields
        for other in others:
            if isinstance(other, str) and other.lower() in written:
                del carrier[other]
    return 0


# -------------------------------------------------------------------------------------------------- scopes and bound calls

@cython.final
@cython.freelist(64)
cdef class Scope:
    """The time in which a context is current: a context manager."""
    cdef object context, token, before

    def __enter__(self):
        if self.token is not None:
            raise TracefillError("this scope is open already; make one for each `with`")
        open_scope(self)
        return self.context

    def __exit__(self, kind=None, error=None, traceback=None):
        leave(self)

    def close(self):
        """Puts back what was current before; closing twice changes nothing."""
        leave(self)

cdef int open_scope(Scope self) except -1:
    runtime = value_in(context_names, "_RUNTIME_CONTEXT")
    if runtime is not runtime_seen:
        current_of(runtime)
    if runtime is runtime_seen:
        if Py_TYPE(runtime) == <PyTypeObject*>RuntimeContext:
            self.token = put_on(variable_seen, self.context)
        else:
            self.token = PyContextVar_Set(variable_seen, self.context)
    else:
        self.before = runtime.get_current()
        self.token = runtime.attach(self.context)
    return 0

cdef inline Scope enter(object context):
    cdef Scope scope = Scope.__new__(Scope)
    scope.context = context
    open_scope(scope)
    return scope

cdef int leave(Scope self) except -1:
    """Puts back what was current before, wherever it is called and whatever was attached in between."""
    token = self.token
    if token is None:
        return 0
    self.token = None
    if Py_TYPE(token) == <PyTypeObject*>_Attached:
        return take_off(variable_seen, <_Attached>token)
    if self.before is None:
        try:
            PyContextVar_Reset(variable_seen, token)
        except (ValueError, RuntimeError):
            # Closed in another thread or task: there is nothing of ours to put back here.
            pass
        return 0
    before, self.before = self.before, None
    try:
        context_module._RUNTIME_CONTEXT.detach(token)
    except Exception:
        context_module._RUNTIME_CONTEXT.attach(before)
    return 0

def scope(context):
    cdef Scope made
    ready()
    if not isinstance(context, dict):
        raise TypeError(f"context: expected an opentelemetry Context, got {type(context).__name__}; a Snapshot has .attach() and .run()")
    made = Scope.__new__(Scope)
    made.context = context
    return made

def enter_scope(context not None):
    """A scope that is open already, for who closes it in a `finally`: the cheaper form, on paths that are hot."""
    ready()
    return enter(context)

def current_context():
    ready()
    return current()

def current_value(key):
    """What the current Context holds under this key; None when it holds nothing."""
    ready()
    return value_in(current(), key)

def make_current(context not None):
    """Makes the context current for good: for places that nobody tells when the time of a context ends, only when the next begins."""
    ready()
    runtime = value_in(context_names, "_RUNTIME_CONTEXT")
    if Py_TYPE(runtime) == <PyTypeObject*>RuntimeContext:
        put_on((<RuntimeContext>runtime).variable, context, True)
    else:
        enter(context)

@cython.final
@cython.freelist(64)
cdef class Bound:
    """A callable that runs a function in the context of its snapshot, however often and wherever it is called."""
    cdef object function
    cdef Snapshot snapshot
    cdef object __weakref__

    def __call__(self, *args, **kwargs):
        cdef Scope scope = enter(own_context(self.snapshot))
        try:
            return self.function(*args, **kwargs)
        finally:
            leave(scope)

    @property
    def __wrapped__(self):
        return self.function

    @property
    def __name__(self):
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def __doc__(self):
        return getattr(self.function, "__doc__", None)

    def __repr__(self):
        return f"<bound {self.function!r} to {self.snapshot!r}>"

    def __reduce__(self):
        return bind, (self.function, self.snapshot)

def bind(fn, snapshot=None):
    cdef Bound made
    if not callable(fn):
        raise TypeError(f"fn: expected a callable, got {type(fn).__name__}")
    if snapshot is None:
        snapshot = acquire(default_pool.index, None)
    elif not isinstance(snapshot, Snapshot):
        raise TypeError(f"snapshot: expected a tracefill.Snapshot or None, got {type(snapshot).__name__}")
    made = Bound.__new__(Bound)
    made.function = fn
    made.snapshot = <Snapshot>snapshot
    return made


# ----------------------------------------------------------------------------------------------------------------- ids

cdef extern from *:
    """
    /* xoshiro256++ of Blackman and Vigna (public domain algorithm): 256 bits of state, so that two processes that were seeded
     * at random never walk over each other's ids. One state a thread where threads run at once, else one a process. */
    static TF_PER_THREAD uint64_t tf_random_state[4];
    static TF_PER_THREAD unsigned tf_random_epoch = 0;
    static unsigned tf_seed_epoch = 1;

    static inline uint64_t tf_rotated(uint64_t x, int k) { return x << k | x >> (64 - k); }
    static inline int tf_is_seeded(void) { return tf_random_epoch == tf_seed_epoch; }
    static inline void tf_seed(const char *bytes) { memcpy(tf_random_state, bytes, 32); tf_random_epoch = tf_seed_epoch; }
    static inline void tf_forget_seeds(void) { tf_seed_epoch++; }
    static inline uint64_t tf_random(void) {
        uint64_t *s = tf_random_state;
        const uint64_t result = tf_rotated(s[0] + s[3], 23) + s[0], t = s[1] << 17;
        s[2] ^= s[0]; s[3] ^= s[1]; s[1] ^= s[2]; s[0] ^= s[3]; s[2] ^= t; s[3] = tf_rotated(s[3], 45);
        return result;
    }

    #include <time.h>
    static inline uint64_t tf_milliseconds(void) {
        struct timespec now;
        timespec_get(&now, TIME_UTC);
        return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    }
    """
    bint tf_is_seeded()
    void tf_seed(const char* bytes)
    void tf_forget_seeds()
    uint64_t tf_random()
    uint64_t tf_milliseconds()

cdef int seed() except -1:
    import os

    cdef bytes entropy = os.urandom(32)
    tf_seed(entropy)
    return 0

cdef inline uint64_t random64() except? 0:
    if not tf_is_seeded():
        seed()
    return tf_random()

def forget_seeds():
    """Every thread takes new entropy before its next id (called by os.register_at_fork in the child)."""
    tf_forget_seeds()

cdef class RandomIds:
    """The two generators' common part; ids.py gives them OpenTelemetry's face."""

    def generate_span_id(self):
        cdef uint64_t span = random64()
        while span == 0:
            span = random64()
        return tf_int128(0, span)

    def generate_trace_id(self):
        cdef uint64_t high = random64(), low = random64()
        while low == 0:
            low = random64()
        return tf_int128(high, low)

    def is_trace_id_random(self):
        return True

cdef class TimeOrderedIds(RandomIds):
    def generate_trace_id(self):
        cdef uint64_t high = tf_milliseconds() << 16 | random64() >> 48, low = random64()
        while low == 0:
            low = random64()
        return tf_int128(high, low)


# ------------------------------------------------------------------------------------- what integrations ask of a context

DENIED = 1        # the span of the context is not sampled
SUPPRESSED = 2    # instrumentation is asked to keep quiet

cdef object suppress_key = None

def state_of(context=None):
    """DENIED and SUPPRESSED bits of a context (default: of now)."""
    ready()
    return state_in(current() if context is None else context)

cdef int state_in(object context) except -1:
    cdef int state = 0
    cdef Position position
    global suppress_key
    cdef Py_ssize_t left = PyDict_Size(context)
    if not left:
        return 0
    position_in(context, &position, False)
    if position.span:
        left -= 1
        if not position.flags & 1:
            state |= DENIED
    if left:    # most contexts hold a span and nothing else
        if suppress_key is None:
            suppress_key = getattr(context_module, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
        if value_in(context, suppress_key) or value_in(context, "suppress_instrumentation"):
            state |= SUPPRESSED
    return state

cdef dict provider_names = None     # where the global TracerProvider stands
cdef int denied_bit = DENIED, suppressed_bit = SUPPRESSED

cdef bint requests_say_more = False

def set_requests_say_more(bint on):
    """Business tags are declared: a request is looked at for them, sampled or not."""
    global requests_say_more
    requests_say_more = on

cdef class Gate:
    """Whether a span begun now would be recorded, for one tracer of the global TracerProvider: asked before anything is built.

    `meet(provider)` is called for each provider that is new, keeps it, and says whether its sampler follows a parent that says no.
    """
    cdef PyObject* provider     # whom `meet` keeps alive: known by its place, so that threads need not take turns
    cdef bint has_met, follows_parent

    def records(self, context=None):
        """False when a span begun in this context (default: of now) is sure to be dropped, or instrumentation is suppressed.

        The sampler is asked nothing.
        """
        ready()
        return self.records_in(current() if context is None else context)

    def enter(self, carrier, key):
        """The first step of a server's request, in one: what its carrier (an environ, an ASGI scope) holds, and what follows.

        None where something is current, the carrier has `key` or is no dict, or tags are declared: that wants a closer look. A
        Scope that is open where no span of the request would be recorded, so that there is nothing left to do but to close it. Else the Context.
        """
        ready()
        if requests_say_more or not PyDict_CheckExact(carrier) or PyDict_Size(current()) or PyDict_Contains(carrier, key):
            return None
        context = extract_any(carrier, None)
        return context if self.records_in(context) else enter(context)

    def meet(self, provider):
        raise NotImplementedError("a Gate is told about providers by its subclass: override meet(provider)")

    cdef bint records_in(self, object context) except -1:
        cdef int state
        global provider_names
        if provider_names is None:
            provider_names = vars(trace_module)
        provider = value_in(provider_names, "_TRACER_PROVIDER")
        if <PyObject*>provider != self.provider or not self.has_met:
            self.follows_parent = self.meet(trace_module.get_tracer_provider())
            provider = value_in(provider_names, "_TRACER_PROVIDER")    # asking for it may have set it
            self.provider, self.has_met = <PyObject*>provider, True
        state = state_in(context)
        return not (state & suppressed_bit or state & denied_bit and self.follows_parent)

cdef class SpanStart:
    """What the `start_span` of an SDK tracer does, without a call for each of its steps; the spans are the SDK's own.

    Made by tracefill.sdk_spans, which knows the classes of the SDK (`parts`). Whatever is out of the ordinary is left to the
    tracer: a Context of somebody else's class, a parent that is no SpanContext, a tracer that was switched off. A Context of
    a class of ours is asked which span is above (`span_above()`): that it is asked tells it that a span is started.
    """
    cdef object tracer, ask, Span, Attributes, List, ParentBased, StaticSampler, sampled_decision, dropped_decision
    cdef object unset, lock, deque, time_ns

    def __init__(self, tracer, parts):
        ready()
        self.tracer = tracer
        self.ask = tracer.start_span
        self.Span, self.Attributes, self.List = parts.Span, parts.BoundedAttributes, parts.BoundedList
        self.ParentBased, self.StaticSampler = parts.ParentBased, parts.StaticSampler
        self.sampled_decision, self.dropped_decision, self.unset = parts.RECORD_AND_SAMPLE, parts.DROP, parts.UNSET
        self.lock, self.deque, self.time_ns = parts.Lock, parts.deque, parts.time_ns

    def __call__(self, name, context, kind, attributes, links, start_time_ns):
        """The span, which is started; not recording where the sampler says so. An exception does not end up on it by itself."""
        cdef object parent = None, above, where = current() if context is None else context
        if (
            not span_context_is_six or attributes is not None and type(attributes) is not dict
            or not self.tracer._tracer_config.is_enabled
        ):
            return self.asked(name, context, kind, attributes, links, start_time_ns)
        if type(where) is Context:
            above = value_in(where, span_key)
        else:
            span_above = getattr(where, "span_above", None)
            if span_above is None:
                return self.asked(name, context, kind, attributes, links, start_time_ns)
            above = span_above()
        if above is not None:
            parent = above.get_span_context() if type(above) is RemoteSpan else span_context_in(above)
            if type(parent) is not SpanContext:
                return self.asked(name, context, kind, attributes, links, start_time_ns)
            if not (<tuple>parent)[5]:
                parent = None
        return self.begun(name, context, parent, kind, attributes, links or (), start_time_ns)

    def unstarted(self):
        """A span as it is before it starts, to be compared."""
        return self.new_span("", None, None, None, None, (), None)

    cdef object asked(self, name, context, kind, attributes, links, start_time_ns):
        return self.ask(name, context, kind, attributes, links, start_time_ns, record_exception=False)

    cdef object begun(self, name, context, parent, kind, attributes, links, start_time_ns):
        cdef object tracer = self.tracer, ids = tracer.id_generator, trace_id, state, given = attributes, result = None
        cdef int flags
        if parent is None:
            trace_id = ids.generate_trace_id()
        else:
            trace_id = (<tuple>parent)[0]
        sampler = tracer.sampler
        if type(sampler) is self.ParentBased:
            sampler = delegate(sampler, parent)
            if type(sampler) is not self.StaticSampler:
                result = sampler.should_sample(
                    parent_context=context, trace_id=trace_id, name=name, kind=kind, attributes=attributes, links=links
                )
        elif type(sampler) is not self.StaticSampler:
            result = sampler.should_sample(context, trace_id, name, kind, attributes, links)
        if result is not None:
            decision, given, state = result.decision, result.attributes, result.trace_state
        else:    # a sampler that says the same to everybody
            decision = sampler._decision
            state = None if parent is None else (<tuple>parent)[4]
        flags = 1 if decision is self.sampled_decision or decision is not self.dropped_decision and decision.is_sampled() else 0
        if ids.is_trace_id_random() if parent is None else (<tuple>parent)[3] & 2:
            flags |= 2
        held = started_span_context(trace_id, ids.generate_span_id(), flags, state)
        ended = tracer._tracer_metrics.start_span(parent, decision)
        if decision is self.dropped_decision or decision is not self.sampled_decision and not decision.is_recording():
            return NonRecordingSpan(held)
        span = self.new_span(name, held, parent, kind, given, links, ended)
        span._start_time = self.time_ns() if start_time_ns is None else start_time_ns
        tracer.span_processor.on_start(span, parent_context=context)
        return span

    cdef object new_span(self, name, held, parent, kind, attributes, links, ended):
        cdef object tracer = self.tracer, limits = tracer._span_limits, span = new_object(self.Span)
        span._name = name
        span._context = held
        span._kind = kind
        span._instrumentation_info = tracer.instrumentation_info
        span._instrumentation_scope = tracer._instrumentation_scope
        span._parent = parent
        span._start_time = None
        span._end_time = None
        span._attributes = self.new_attributes(attributes, limits)
        span._events = self.new_list(limits.max_events)
        span._resource = tracer.resource
        span._status = self.unset
        span._sampler = tracer.sampler
        span._trace_config = None
        span._record_exception = False
        span._set_status_on_exception = True
        span._span_processor = tracer.span_processor
        span._limits = limits
        span._lock = self.lock()
        span._links = span._new_links(links) if links else self.new_list(limits.max_links)
        span._record_end_metrics = ended
        return span

    cdef object new_attributes(self, given, limits):
        cdef object most = limits.max_span_attributes, longest = limits.max_span_attribute_length
        given = dict(given) if given else {}
        if given and (longest is not None or most is not None and len(given) > most or not is_clean(given)):
            return self.Attributes(most, given, immutable=False, max_value_len=longest)
        made = new_object(self.Attributes)
        made._dict = given
        made.maxlen = most
        made.dropped = 0
        made.max_value_len = longest
        made._lock = self.lock()
        made._immutable = False
        return made

    cdef object new_list(self, most):
        made = new_object(self.List)
        made.dropped = 0
        made._dq = self.deque((), most)
        made._lock = self.lock()
        return made

cdef object delegate(object sampler, object parent):
    """The one of a ParentBased's samplers that decides about a span under this parent."""
    if parent is None:
        return sampler._root
    if (<tuple>parent)[2]:
        return sampler._remote_parent_sampled if (<tuple>parent)[3] & 1 else sampler._remote_parent_not_sampled
    return sampler._local_parent_sampled if (<tuple>parent)[3] & 1 else sampler._local_parent_not_sampled

cdef inline object new_object(object kind):
    return tf_new_object(<PyTypeObject*>kind)

cdef bint is_clean(dict attributes) except -1:
    """True when the SDK would keep each of them as it is."""
    for key, value in attributes.items():
        if type(key) is not str or not key:
            return False
        if type(value) is not str and type(value) is not int and type(value) is not bool and type(value) is not float:
            return False
    return True

cdef object started_span_context(object trace_id, object span_id, int flags, object state):
    cdef uint64_t trace_high, trace_low, high, low
    if (
        not tf_read128(<PyObject*>trace_id, &trace_high, &trace_low) or not trace_high | trace_low
        or not tf_read128(<PyObject*>span_id, &high, &low) or high or not low
    ):
        return SpanContext(trace_id, span_id, False, FLAGS[flags], state)
    return six(trace_id, span_id, False, FLAGS[flags], DEFAULT_TRACE_STATE if state is None else state, True)

def find_header(headers, bytes name not None):
    """The value of a header of an ASGI scope (names in lower case), its lines joined by commas as in WSGI.

    None when there is none, and when the headers can be read but once: then that is for the application to do.
    """
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t length = PyBytes_GET_SIZE(name)
    cdef object found = None
    if not PyList_Check(headers) and not PyTuple_Check(headers):
        return None
    for pair in headers:
        if not PyTuple_Check(pair) or PyTuple_GET_SIZE(pair) != 2:
            pair = tuple(pair)
            if len(pair) != 2:
                continue
        key = PyTuple_GET_ITEM(pair, 0)
        if not PyBytes_Check(<object>key) or PyBytes_GET_SIZE(<object>key) != length:
            continue
        if memcmp(PyBytes_AS_STRING(<object>key), PyBytes_AS_STRING(name), length):
            continue
        value = PyTuple_GET_ITEM(pair, 1)
        line = <object>value if PyBytes_Check(<object>value) else bytes(<object>value)
        found = line if found is None else b",".join((found, line))
    return found

def with_span(context, span):
    """The context (None: of now) with this span as its span: opentelemetry.trace.set_span_in_context, from C."""
    ready()
    return context_with(current() if context is None else context, span, None, None)

def set_type_attribute(type owner not None, str name not None, value):
    """setattr on a class, also on one of C that forbids it: for integrations, whose objects may be older than they are."""
    tf_set_type_attribute(owner, name, <PyObject*>value)

def delete_type_attribute(type owner not None, str name not None):
    tf_set_type_attribute(owner, name, NULL)

def percent_encode(str text not None):
    return percent_coded(text)


# -------------------------------------------------------------------------------------------------- the runtime context

cdef extern from "_frames.h":
    PyObject* tf_contextlib_file
    PyObject* tf_context_file
    PyObject* tf_enter
    PyObject* tf_async_enter
    PyObject* tf_asking_generator()
    PyObject* tf_running_one_of(PyObject* frames)
    bint tf_is_alive(PyObject* frame)
    bint tf_is_running(PyObject* frame)
    object tf_new_home()
    bint tf_is_home(PyObject* home)

# What one attach() leaves in the variable, and the token for it. Whoever copies the variable (a task, a callback) copies it
# too: for him it is a plain value, whatever becomes of it at home, in the contextvars.Context where it was attached.
@cython.final
@cython.freelist(64)
cdef class _Attached:
    cdef object context
    cdef object before       # what it stands upon: an OpenTelemetry Context, or another of these
    cdef object token        # the variable's own, where it puts back what `before` is
    cdef object home         # a weak reference
    cdef object generator    # the frame of the generator whose code alone sees it; None: all code
    cdef _Attached outer     # what the same generator had attached before
    cdef bint asked          # by the generator's own code, not by a function that it has called
    cdef bint given_back

# What each generator has attached last, by the generator's frame: it may be resumed in another thread, whose variable knows
# nothing of it. The frame is held and not the generator: one that nobody else holds is closed as it always was.
cdef dict held = {}
cdef Py_ssize_t number_held = 0, look_for_dead_at = 64
cdef object no_context = None

cdef object last_home = None

cdef object put_on(object variable, object context, bint for_good=False):
    """Makes the context current; returns the token."""
    global last_home
    cdef PyObject* value
    cdef PyObject* frame
    cdef _Attached made = _Attached.__new__(_Attached)
    if tf_context_file == NULL:
        meet_frames()
    made.context = context
    PyContextVar_Get(<PyObject*>variable, NULL, &value)
    if Py_TYPE(<object>value) != <PyTypeObject*>_Attached:
        made.before = <object>value
    else:
        made.before = base_for_good(value) if for_good else base_of(value)
    Py_DECREF(<object>value)
    frame = tf_asking_generator()
    if frame != NULL:
        made.asked = True
    elif number_held:
        frame = tf_running_one_of(<PyObject*>held)
    if frame != NULL:
        made.generator = <object>frame
        Py_DECREF(made.generator)
        if made.asked:
            hold(made)
    token = PyContextVar_Set(variable, made)
    if <PyObject*>made.before == value:
        made.token = token
    if last_home is None or not tf_is_home(<PyObject*>last_home):
        last_home = tf_new_home()
    made.home = last_home
    return made

cdef object base_of(PyObject* value):
    """What a new entry stands upon when this one is in the variable."""
    cdef bint forgotten = tf_only_ours(value, 2)    # the variable's reference and ours: nobody can give it back
    cdef _Attached top = <_Attached>value
    if top.generator is not None and not top.given_back and not tf_is_alive(<PyObject*>top.generator):
        give_back(top)
    if top.given_back or not tf_is_home(<PyObject*>top.home):
        return settled(top)
    if forgotten and top.generator is None:
        # Or programs that attach and never detach would pile up entries for ever.
        top.before = no_context
        top.token = None
    return top

cdef object base_for_good(PyObject* value):
    """The same for an entry that nobody will give back. It takes the place of one that nobody can give back, whose context would
    stay alive beneath it; that one is left as it is, for whoever has copied the variable."""
    cdef bint forgotten = tf_only_ours(value, 2)
    cdef _Attached top = <_Attached>value
    if forgotten and top.generator is None and not top.given_back and tf_is_home(<PyObject*>top.home):
        return top.before
    return base_of(value)

cdef object settled(object value):
    """The value without the entries that were given back, and without the history of one that was copied."""
    cdef _Attached entry
    while Py_TYPE(value) == <PyTypeObject*>_Attached:
        entry = <_Attached>value
        if not tf_is_home(<PyObject*>entry.home):
            return entry.context
        if not entry.given_back:
            return entry
        value = entry.before
    return value

cdef object seen(object value):
    """The Context that the running code sees when this value is in the variable."""
    cdef _Attached entry
    cdef PyObject* frame
    cdef object running = None
    if number_held:
        frame = tf_running_one_of(<PyObject*>held)
        if frame != NULL:
            running = <object>frame
            Py_DECREF(running)
    elif Py_TYPE(value) == <PyTypeObject*>_Attached:
        entry = <_Attached>value
        if not entry.given_back and entry.generator is None:
            return entry.context
    while Py_TYPE(value) == <PyTypeObject*>_Attached:
        entry = <_Attached>value
        if not tf_is_home(<PyObject*>entry.home):
            if running is None:
                return entry.context
            break
        if not entry.given_back and is_for(entry, running):
            return entry.context
        value = entry.before
    if running is not None:
        return (<_Attached>held[running]).context
    return value

cdef inline bint is_for(_Attached entry, object running):
    # A generator runs and is not on this stack where its code has switched to a greenlet that shares its variables.
    return entry.generator is running or (running is None and tf_is_running(<PyObject*>entry.generator))

cdef int take_off(object variable, _Attached entry) except -1:
    """Gives an entry back, wherever and in whatever order."""
    cdef PyObject* value
    if entry.given_back:
        return 0
    PyContextVar_Get(<PyObject*>variable, NULL, &value)
    top = <object>value
    Py_DECREF(top)
    if top is entry:
        put_back(variable, entry)
    elif not entry.asked and tf_is_home(<PyObject*>entry.home):
        take_off_with_those_above(variable, entry, top)
    give_back(entry)
    return 0

cdef inline int put_back(object variable, _Attached entry) except -1:
    if entry.token is not None and tf_is_home(<PyObject*>entry.home):
        PyContextVar_Reset(variable, entry.token)
    else:
        PyContextVar_Set(variable, settled(entry.before))
    return 0

cdef int take_off_with_those_above(object variable, _Attached entry, object top) except -1:
    """Afterwards the context is what it was before, whatever was attached in between; but for other generators' entries."""
    cdef _Attached at = None
    cdef bint others = False
    after = settled(entry.before)
    while Py_TYPE(top) == <PyTypeObject*>_Attached and top is not entry and tf_is_home(<PyObject*>(<_Attached>top).home):
        at = <_Attached>top
        if at.generator is entry.generator:
            give_back(at)
        elif not at.given_back:
            others = True
        top = at.before
    if others:
        at.before = after
    else:
        PyContextVar_Set(variable, after)
    return 0

cdef int give_back(_Attached entry) except -1:
    entry.given_back = True
    entry.token = None    # it holds the variables in which the entry may stand for ever
    if entry.asked:
        let_go(entry)
    return 0

cdef int hold(_Attached entry) except -1:
    global number_held
    if number_held >= look_for_dead_at:
        let_go_of_the_dead()
    entry.outer = held.get(entry.generator)
    held[entry.generator] = entry
    number_held = len(held)
    return 0

cdef int let_go(_Attached entry) except -1:
    global number_held
    cdef _Attached outer = entry.outer
    if held.get(entry.generator) is entry:
        while outer is not None and outer.given_back:
            outer = outer.outer
        if outer is not None:
            held[entry.generator] = outer
        else:
            del held[entry.generator]
        number_held = len(held)
    entry.outer = None
    return 0

cdef int let_go_of_the_dead() except -1:
    """Generators that ended and gave nothing back."""
    global number_held, look_for_dead_at
    for frame in list(held):
        if not tf_is_alive(<PyObject*>frame):
            (<_Attached>held.pop(frame)).given_back = True
    number_held = len(held)
    look_for_dead_at = max(64, 2 * number_held)
    return 0

cdef int meet_frames() except -1:
    # On first use: OpenTelemetry makes its runtime context while its own module is half imported.
    global tf_contextlib_file, tf_context_file, tf_enter, tf_async_enter
    import contextlib
    import sys

    from opentelemetry.context import attach

    cdef object managers = contextlib.contextmanager.__code__.co_filename
    cdef object contexts = getattr(getattr(attach, "__code__", None), "co_filename", managers)
    cdef object enter = sys.intern("__enter__"), async_enter = sys.intern("__aenter__")
    for kept in (managers, contexts, enter, async_enter):
        Py_INCREF(kept)
    tf_contextlib_file, tf_enter, tf_async_enter = <PyObject*>managers, <PyObject*>enter, <PyObject*>async_enter
    tf_context_file = <PyObject*>contexts
    return 0

def variables_here():
    """A weak reference to the contextvars.Context that is entered here, the same one as long as anybody holds it."""
    return tf_new_home()

def generators_hold():
    """True while any generator, running or not, has something attached that is for its own code."""
    return number_held > 0

cdef class RuntimeContext:
    """OpenTelemetry's current context on a contextvar; see context.RuntimeContext."""
    cdef object variable

    def __init__(self):
        from contextvars import ContextVar

        from opentelemetry.context.context import Context

        global no_context
        no_context = Context()
        self.variable = ContextVar("tracefill_context", default=no_context)

    def attach(self, context):
        return put_on(self.variable, context)

    def get_current(self):
        cdef PyObject* value
        PyContextVar_Get(<PyObject*>self.variable, NULL, &value)
        found = <object>value
        Py_DECREF(found)
        return found if Py_TYPE(found) != <PyTypeObject*>_Attached and not number_held else seen(found)

    def detach(self, token):
        if type(token) is not _Attached:
            raise TypeError(f"token: expected what attach() returned, got {type(token).__name__}")
        take_off(self.variable, <_Attached>token)
