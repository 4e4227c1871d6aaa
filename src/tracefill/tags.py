"""Business tags: tenant, order, customer, ... declared once, found in each request, and put where they are looked for.

    from tracefill import tags
    from tracefill.tags import Tag

    tags.declare(
        Tag("tenant_id", header="x-tenant-id", path="/tenants/{tenant_id}", baggage=True, required=True),
        Tag("order_no", path="/orders/{order_no}", baggage=True),
        Tag("biz_id", header="x-biz-id"),
        Tag("customer", context=customer_variable, hashed=True),
        Tag("env", environment="DEPLOYMENT", default="dev"),
    )
    tags.load("tags.toml")              # or: a table a tag, with the same words

The value of a tag is the first that is found in: its header, the path, the context (its `context` variable, or structlog's by
the tag's name; what a log line says in `extra` counts for that line and its span), the baggage, the environment, its default.

It lands on every span that this process begins while the value is known (`span`), and on every log line (`log`, once
`tracefill.install()` or one of `gateway.logs` is in use). It goes on to those services that `hosts` allows: as `header` where it
has one, and as W3C baggage where `baggage` says so. What came as baggage goes no further than that either. Only clients that
`install()` traces know to whom they speak: contrib's own send no tags.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import hmac
import importlib
import ipaddress
import logging
import os
import pkgutil
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from opentelemetry import baggage as _baggage
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span

from tracefill import _codec
from tracefill._codec import TracefillError
from tracefill.carriers import pairs, setter
from tracefill.context import current as current_context
from tracefill.context import inject as inject_position
from tracefill.context import scope as context_scope

__all__ = [
    "BROKER",
    "Tag",
    "TagError",
    "attributes",
    "counts",
    "current",
    "declare",
    "declared",
    "forget",
    "inject",
    "load",
    "log_fields",
    "notice",
    "over",
    "received",
    "scope",
    "taken_over",
    "watch",
]

_logger = logging.getLogger("tracefill")

#: Where tags ride in an OpenTelemetry Context; snapshots carry them by the same name.
KEY: str = _codec.TAGS_KEY
#: The host of whoever reads a message later: `inside` has it, a list of `hosts` may name it.
BROKER = "broker"
_BAGGAGE_KEY = next(iter(_baggage.set_baggage("name", "value", Context())))

# The second word of the pairs of `counts()`.
_MISSING, _BAD = "missing", "bad"
_COMPLAIN_EVERY_S = 60.0

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_PLACE = re.compile(r"\{([^{}]*)\}")
_HASHED = re.compile(r"hmac-[0-9a-f]{32}")
# The fields that every log record has, by its own nature or by gateway.logs.
_TAKEN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id", "event"}


class TagError(TracefillError, ValueError):
    """A tag is declared in a way that can not be meant."""


@dataclass(frozen=True)
class Tag:
    """One declaration. Raises TagError where it is wrong.

    | word | what it says |
    |---|---|
    | `header` | the name of its header, in and out |
    | `path` | one or more templates of the beginning of a path, as in `/tenants/{tenant_id}` |
    | `context` | a ContextVar, or `"module:name"` of one |
    | `baggage` | it is read from W3C baggage, and sent on so |
    | `environment`, `default` | a variable of the environment; what holds where nothing else is said |
    | `required` | a request without it is counted, and complained about once a minute |
    | `span`, `log` | where it lands |
    | `hosts` | who may be sent it: patterns of names, as in `*.shop.example`. `inside`: names without a dot or under `.local`, `.internal` and `.svc`, and private addresses |
    | `max_length`, `characters` | a value that is longer, or has others than these (a character class), is not taken |
    | `hashed` | nobody sees the value, but an HMAC of it, by the key in TRACEFILL_TAGS_KEY |

    >>> Tag("tenant_id", header="x-tenant-id").hosts
    ('inside',)
    """

    name: str
    header: str | None = None
    path: str | Iterable[str] = ()
    context: ContextVar[Any] | str | None = None
    baggage: bool = False
    environment: str | None = None
    default: str | None = None
    required: bool = False
    span: bool = True
    log: bool = True
    hosts: str | Iterable[str] = ("inside",)
    max_length: int = 128
    characters: str = "A-Za-z0-9._~:+=/@-"
    hashed: bool = False

    _variable: ContextVar[Any] | None = field(init=False, repr=False, compare=False, default=None)
    _paths: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False, default=())
    _valid: re.Pattern[str] = field(init=False, repr=False, compare=False, default=_NAME)
    _key: bytes = field(init=False, repr=False, compare=False, default=b"")
    _constant: str | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        self._check_words()
        hosts = (self.hosts,) if isinstance(self.hosts, str) else tuple(self.hosts)
        paths = (self.path,) if isinstance(self.path, str) else tuple(self.path)
        self._set("hosts", tuple(host.lower() for host in hosts))
        self._set("path", paths)
        self._set("header", self.header.lower() if self.header else None)
        self._set("_paths", tuple(self._pattern(path) for path in paths))
        self._set("_variable", self._find_variable())
        try:
            self._set("_valid", re.compile(f"[{self.characters}]+"))
        except re.error as error:
            raise self._wrong(f"characters: expected those of a character class, got {self.characters!r}") from error
        if self.hashed:
            self._set("_key", os.environ.get("TRACEFILL_TAGS_KEY", "").encode())
            if not self._key:
                raise self._wrong("hashed: expected a secret key in the variable TRACEFILL_TAGS_KEY, which is not set")
        self._set("_constant", self._find_constant())

    def take(self, value: Any) -> str | None:
        """The value as it may go on; None, and counted, when it is not one that this tag can have."""
        if value is None:
            return None
        text = str(value).strip() if isinstance(value, (str, int, uuid.UUID)) else ""
        if self.hashed and _HASHED.fullmatch(text):
            return text  # by whoever sent it
        if len(text) > self.max_length or not self._valid.fullmatch(text) or not text.isprintable():
            _count(self.name, _BAD)
            return None
        if self.hashed:
            return "hmac-" + hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:32]
        return text

    def in_path(self, path: str) -> str | None:
        """What the path says."""
        for pattern in self._paths:
            found = pattern.match(path)
            if found:
                return self.take(found.group("value"))
        return None

    def now(self) -> str | None:
        """What its context variable, or structlog's, says now."""
        value = self._variable.get(None) if self._variable is not None else None
        if value is None and "structlog.contextvars" in sys.modules:
            value = sys.modules["structlog.contextvars"].get_contextvars().get(self.name)
        return self.take(value)

    def goes_to(self, host: str | None) -> bool:
        """Whether a host may be sent it; nobody may whose name is not known."""
        return host is not None and _is_allowed(tuple(self.hosts), host)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _wrong(self, why: str) -> TagError:
        return TagError(f"tag {self.name!r}: {why}")

    def _check_words(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise self._wrong("expected a name of letters, digits, '_', '.' and '-' that begins with a letter")
        if self.log and self.name in _TAKEN:
            raise self._wrong("every log record has a field of this name: choose another name, or log=False")
        if self.header is not None and (not isinstance(self.header, str) or not _HEADER.fullmatch(self.header)):
            raise self._wrong(f"header: expected a name such as 'x-tenant-id', got {self.header!r}")
        for word in ("baggage", "required", "span", "log", "hashed"):
            if not isinstance(getattr(self, word), bool):
                raise self._wrong(f"{word}: expected True or False, got {getattr(self, word)!r}")
        if type(self.max_length) is not int or not 0 < self.max_length <= 1024:
            raise self._wrong(f"max_length: expected 1 to 1024 characters, got {self.max_length!r}")
        for word in ("path", "hosts"):
            value = getattr(self, word)
            listed = (value,) if isinstance(value, str) else value
            if not isinstance(listed, (tuple, list)) or not all(isinstance(each, str) for each in listed):
                raise self._wrong(f"{word}: expected text, or a list of texts, got {value!r}")

    def _pattern(self, template: str) -> re.Pattern[str]:
        names = _PLACE.findall(template)
        if not template.startswith("/") or names.count(self.name) != 1:
            raise self._wrong(f"path: expected a template such as '/orders/{{{self.name}}}', got {template!r}")
        pieces = _PLACE.split(template.rstrip("/"))
        for i in range(0, len(pieces), 2):
            pieces[i] = re.escape(pieces[i])
        for i in range(1, len(pieces), 2):
            pieces[i] = "(?P<value>[^/]+)" if pieces[i] == self.name else "[^/]+"
        return re.compile("".join(pieces) + "(?=/|$)")

    def _find_variable(self) -> ContextVar[Any] | None:
        found = self.context
        if isinstance(found, str):
            try:
                found = pkgutil.resolve_name(found)
            except (ImportError, AttributeError, ValueError) as error:
                raise self._wrong(f"context: {self.context!r} is not found: {error}") from error
        if found is not None and not isinstance(found, ContextVar):
            raise self._wrong(f"context: expected a ContextVar, or 'module:name' of one, got {self.context!r}")
        return found

    def _find_constant(self) -> str | None:
        value = self.take(os.environ.get(self.environment)) if self.environment else None
        if value is None and self.default is not None:
            value = self.take(self.default)
            if value is None:
                raise self._wrong(
                    f"default: {self.default!r} is not a value that it may have (see characters, max_length)"
                )
        return value


class _Values(dict[str, str]):
    """What one request has brought. `firm`: the names whose value outranks the context; `seen`: what was found since."""

    def __init__(self) -> None:
        super().__init__()
        self.firm: set[str] = set()
        self.seen: dict[str, str] = {}
        self.is_over = False


_tags: tuple[Tag, ...] = ()
_by_header: dict[str, Tag] = {}
_by_name: dict[str, Tag] = {}
_members: frozenset[str] = frozenset()  # the names that are ours in baggage
_lock = threading.Lock()


def declare(*tags: Tag) -> None:
    """These tags, beside those that are declared already; raises TagError for a name or header that another one has."""
    with _lock:
        names, headers = set(_by_name), set(_by_header)
        for tag in tags:
            if not isinstance(tag, Tag):
                raise TagError(f"expected a Tag, got {tag!r}")
            if tag.name in names:
                raise TagError(f"tag {tag.name!r}: is declared already")
            if tag.header in headers:
                raise TagError(f"tag {tag.name!r}: header {tag.header!r} belongs to another tag")
            names.add(tag.name)
            headers |= {tag.header} if tag.header else set()
        _know((*_tags, *tags))
    _report()
    watch()


def load(path: str | os.PathLike[str]) -> None:
    """The tags of a TOML file: a table a tag, as in `[tenant_id]`, `header = "x-tenant-id"`, `baggage = true`.

    Raises TagError that names the file for what is no declaration, OSError when it can not be read.
    """
    content = _parsed(Path(path))
    known = [each.name for each in fields(Tag) if each.init and each.name != "name"]
    tags = []
    for name, words in content.items():
        if not isinstance(words, dict):
            raise TagError(f"{path}: expected tables, as in [tenant_id], got {name} = {words!r}")
        for word in words:
            if word not in known:
                near = difflib.get_close_matches(word, known, 1)
                raise TagError(
                    f"{path}: [{name}]: {word!r} is no word of a tag" + (f"; {near[0]!r} is" if near else "")
                )
        try:
            tags.append(Tag(name, **words))
        except TagError as error:
            raise TagError(f"{path}: {error}") from error
    declare(*tags)


def declared() -> tuple[Tag, ...]:
    """The tags, in the order in which they were declared."""
    return _tags


def forget() -> None:
    """No tag is declared any more."""
    with _lock:
        _know(())


def current(context: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The tags that have a value in a context (default: of now).

    >>> current()
    {}
    """
    if not _tags:
        return {}
    watch()
    context = current_context() if context is None else context
    held: Any = context.get(KEY) or {}
    firm = getattr(held, "firm", held)
    members = _baggage_of(context)
    found = {}
    for tag in _tags:
        name = tag.name
        value = held.get(name) if name in firm else tag.now() or held.get(name)
        if value is None and tag.baggage and name in members:
            value = tag.take(_member(members[name]))
        if value is None:
            value = tag._constant
        if value is not None:
            found[name] = value
    if isinstance(held, _Values):
        held.seen.update(found)
    return found


@contextlib.contextmanager
def scope(**values: str) -> Iterator[dict[str, str]]:
    """Within it these tags have these values; for what comes in by ways that nobody knows, and for jobs.

    Raises TagError for a name that is not declared, or a value that the tag can not have.
    """
    held = current_context().get(KEY)
    changed = _Values()
    changed.update(held if isinstance(held, dict) else {})
    changed.firm = {*getattr(held, "firm", changed), *values}
    for name, value in values.items():
        if name not in _by_name:
            raise TagError(f"tag {name!r}: is not declared")
        taken = _by_name[name].take(value)
        if taken is None:
            raise TagError(f"tag {name!r}: {value!r} is not a value that it may have (see characters, max_length)")
        changed[name] = taken
    if isinstance(held, _Values):
        held.seen.update({name: changed[name] for name in values})
    with context_scope(_with(current_context(), {KEY: changed})):
        yield current()


def counts() -> dict[tuple[str, str], int]:
    """How many values were "missing" (of required tags) and how many "bad", by (name, what)."""
    with _lock:
        return dict(_counts)


# What gateway/, edge/ and calls/ ask of this module; none of it does anything while no tag is declared.


def received(context: Context, carrier: Any, path: str, trusted: bool = True) -> Context:
    """The caller's context, with the tags that his request brings; whoever is not trusted brings no more than a path."""
    if not _tags:
        return context
    watch()
    lines = _lines(carrier) if trusted and _by_header else {}
    members = _baggage_of(context)
    values = _Values()
    for tag in _tags:
        value = tag.take(lines.get(tag.header)) if tag.header else None
        if value is None and tag._paths:
            value = tag.in_path(path)
        if value is not None:
            values.firm.add(tag.name)
        elif trusted and tag.baggage and tag.name in members:
            value = tag.take(_member(members[tag.name]))
        if value is not None:
            values[tag.name] = value
    return _with(context, {KEY: values, _BAGGAGE_KEY: _without_ours(members)})


def taken_over(context: Context, received: Mapping[str, Any]) -> Context:
    """A context that somebody else has made of the same request, with the tags of ours."""
    if not _tags or KEY not in received:
        return context
    return _with(context, {KEY: received[KEY], _BAGGAGE_KEY: _without_ours(_baggage_of(context))})


def attributes(context: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What a span in this context (default: of now) says."""
    return {name: value for name, value in current(context).items() if _by_name[name].span} if _tags else {}


def log_fields() -> dict[str, str]:
    """What a log line says now; a tag without a value is "", so that formats can name it."""
    if not _tags:
        return {}
    found = current()
    return {tag.name: found.get(tag.name, "") for tag in _tags if tag.log}


def notice(said: Mapping[str, Any]) -> None:
    """A log line says these things of its own: those that are tags count for the current span and its request too."""
    own = {tag.name: tag.take(said[tag.name]) for tag in _tags if said.get(tag.name, "") != ""}
    found = {name: value for name, value in own.items() if value is not None}
    if not found:
        return
    held = current_context().get(KEY)
    if isinstance(held, _Values):
        held.seen.update({name: value for name, value in found.items() if name not in held})
    span = trace.get_current_span()
    if span.is_recording():
        _say_late(span, found)


def over(context: Mapping[str, Any], span: Span | None) -> None:
    """A request has been served: its span says what was found on the way, and required tags that never were are counted."""
    held = context.get(KEY) if _tags else None
    if not isinstance(held, _Values) or held.is_over:
        return
    held.is_over = True
    found = {**held.seen, **current(context)}
    if span is not None and span.is_recording():
        _say_late(span, found)
    for tag in _tags:
        if tag.required and tag.name not in found:
            _complain(tag.name)


def inject(headers: Any, context: Context, host: str | None, given: Any = ()) -> None:
    """Writes the position of the context and those tags that may go to this host (None: unknown) into what is sent there.

    What the caller has `given` himself stays.
    """
    if not _tags:
        inject_position(headers, context)
        return
    found = current(context)
    sent = {tag.name: found[tag.name] for tag in _tags if tag.name in found and tag.goes_to(host)}
    members = {name: value for name, value in sent.items() if name in _members}
    members.update(_without_ours(_baggage_of(context)))
    # Lines of ours are still there when a client sends a request once more, to the place that it was redirected to.
    _take_out(headers, found)
    inject_position(headers, _with(context, {_BAGGAGE_KEY: members}))
    present = {name for name, value in _lines(given).items() if value != found.get(_by_header[name].name)}
    present |= set(_lines(headers))
    for name, tag in _by_header.items():
        if tag.name in sent and name not in present and sent[tag.name].isascii():
            setter.set(headers, name, sent[tag.name])


def _know(tags: tuple[Tag, ...]) -> None:
    global _tags, _by_header, _by_name, _members
    _by_header = {tag.header: tag for tag in tags if tag.header}
    _by_name = {tag.name: tag for tag in tags}
    _members = frozenset(tag.name for tag in tags if tag.baggage)
    _tags = tags
    _codec.set_requests_say_more(bool(tags))


def _parsed(path: Path) -> dict[str, Any]:
    toml = _toml_reader(path)
    try:
        content: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TagError(f"{path}: {error}") from error
    return content


def _toml_reader(path: Path) -> Any:
    for name in ("tomllib", "tomli"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise TagError(f"{path}: TOML is read by Python 3.11 and later, or with `pip install tomli`")


def _with(context: Mapping[str, Any], changes: dict[str, Any]) -> Context:
    merged = {**context, **changes}
    if not merged.get(_BAGGAGE_KEY):
        merged.pop(_BAGGAGE_KEY, None)
    return Context(merged)


def _baggage_of(context: Mapping[str, Any]) -> Mapping[str, Any]:
    members = context.get(_BAGGAGE_KEY)
    return members if isinstance(members, Mapping) else {}


def _member(value: Any) -> Any:
    """A member of baggage without the properties behind it."""
    return unquote(value.coded.partition(";")[0]) if isinstance(value, _codec.BaggageValue) else value


def _without_ours(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in _members}


def _lines(carrier: Any) -> dict[str, str]:
    """The headers of tags that a carrier has; several lines of one name are joined, and then hardly a value any more."""
    found: dict[str, str] = {}
    for name, value in pairs(carrier):
        key = _text(name).lower()
        if key in _by_header and value is not None:
            found[key] = f"{found[key]},{_text(value)}" if key in found else _text(value)
    return found


def _take_out(headers: Any, found: Mapping[str, str]) -> None:
    """Our own lines of before; those that the caller has written otherwise stay."""
    for name, value in list(pairs(headers)):
        key = _text(name).lower()
        if key == "baggage":
            members = _codec.decode_baggage(value)
            kept = _without_ours(members)
            if len(kept) != len(members):
                _delete(headers, name, _codec.encode_baggage(kept))
        elif key in _by_header and _text(value) == found.get(_by_header[key].name):
            _delete(headers, name, None)


def _delete(headers: Any, name: Any, instead: str | None) -> None:
    if isinstance(headers, list):
        headers[:] = [pair for pair in headers if pair[0] != name]
    else:
        del headers[name]
    if instead:
        setter.set(headers, _text(name), instead)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else str(value)


@lru_cache(4096)
def _is_allowed(hosts: tuple[str, ...], host: str) -> bool:
    """
    >>> _is_allowed(("inside",), "orders"), _is_allowed(("inside",), "10.1.2.3"), _is_allowed(("inside",), "shop.example")
    (True, True, False)
    >>> _is_allowed(("*.shop.example",), "api.shop.example"), _is_allowed(("*.shop.example",), "evil.example")
    (True, False)
    """
    host = host.lower().rstrip(".")
    return any(_is_inside(host) if pattern == "inside" else fnmatchcase(host, pattern) for pattern in hosts)


def _is_inside(host: str) -> bool:
    if host.startswith("/"):
        return True  # a socket of this machine's
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return (address.is_private or address.is_loopback) and not (address.is_link_local or address.is_multicast)
    if not host.isascii() or not host[:1].isalpha():
        return False  # 134744072 is 8.8.8.8
    return "." not in host or host.endswith((".local", ".internal", ".localhost", ".svc"))


def _say_late(span: Span, found: Mapping[str, str]) -> None:
    said = getattr(span, "attributes", None) or {}
    for name, value in found.items():
        if _by_name[name].span and name not in said:
            span.set_attribute(name, value)


# Counts.

_counts: dict[tuple[str, str], int] = {}
_complained: dict[str, float] = {}
_reported: Any = None


def _count(name: str, what: str) -> int:
    with _lock:
        _counts[name, what] = number = _counts.get((name, what), 0) + 1
    return number


def _complain(name: str) -> None:
    number = _count(name, _MISSING)
    now = time.monotonic()
    with _lock:
        if now - _complained.get(name, -_COMPLAIN_EVERY_S) < _COMPLAIN_EVERY_S:
            return
        _complained[name] = now
    _logger.warning("the required tag %r is missing; %d requests came without it so far", name, number)


def _report() -> None:
    """The counts as the metric `tracefill.tags`, by `tracefill.tag.name` and `tracefill.tag.state`."""
    global _reported
    if _reported is None:

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(number, {"tracefill.tag.name": name, "tracefill.tag.state": state})
                for (name, state), number in counts().items()
            ]

        _reported = metrics.get_meter("tracefill.tags").create_observable_counter(
            "tracefill.tags",
            callbacks=[observe],
            unit="{value}",
            description="Values of tags that were missing though required, or not as the declaration allows.",
        )


# Spans, whoever begins them.


class _Processor:
    """A SpanProcessor of the SDK's, which tracefill does not need."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if _tags:
            span.set_attributes(attributes(parent_context))

    def _on_ending(self, span: Any) -> None:
        pass

    def on_end(self, span: Any) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


_watched: Any = None


def watch() -> None:
    """Every span of the global TracerProvider says its tags from now on."""
    global _watched
    provider = trace.get_tracer_provider()
    if provider is not _watched and _tags:
        add = getattr(provider, "add_span_processor", None)
        if add is not None:
            _watched = provider
            add(_Processor())
