"""pika 1: the trace headers of a message, and the scope of whoever handles it, with any of its connections.

    for method, properties, body in consume(channel, "orders"):     # each is current in the body of the loop
        handle(body)

    with process(method, properties, body) as span:                 # one message that a callback or `basic_get` was given
        handle(body)

`install()` does the same for programs that do not name tracefill: callbacks of `basic_consume`, `channel.consume()`,
`basic_get()`, callbacks that are called later, in connections, channels and consumers that were there before too.
See tracefill.messages.handling for when the handling of a message that was fetched ends.
"""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from tracefill._codec import bind, scope
from tracefill._codec import extract as extract_headers
from tracefill.messages import handling
from tracefill.messages.amqp_messages import (
    AmqpSource,
    milliseconds,
    of_properties,
    old_attributes,
    publish_attributes,
    shown,
    with_trace,
)
from tracefill.messages.contrib import Contrib
from tracefill.messages.message_spans import sending
from tracefill.spans import Tracer, suppressed
from tracefill.wrapping import Patches

__all__ = ["consume", "extract", "inject", "patch", "process", "unpatch"]

LIBRARIES = ("pika",)

_CONTRIB = "opentelemetry.instrumentation.pika"
_tracer = Tracer("tracefill.messages.pika")
_patches = Patches()
_contrib = Contrib(_CONTRIB, "PikaInstrumentor", _tracer)


def inject(properties: Any = None) -> Any:
    """BasicProperties like these (None: new ones), with headers of their own that carry the position of now."""
    filled = copy.copy(properties) if properties is not None else sys.modules["pika"].BasicProperties()
    filled.headers = with_trace(filled.headers)
    return filled


def extract(properties: Any) -> Context:
    """The Context that a message's properties carry; an empty one when they carry none."""
    return extract_headers(properties.headers or ())


def consume(channel: Any, queue: str, **options: Any) -> Iterator[Any]:
    """What `channel.consume(queue, **options)` yields; each message is current in the body of the loop."""
    following = type(channel).consume
    generator = getattr(following, "plain", following)(channel, queue, **options)
    return _Messages(channel, _Source(channel._impl, queue), generator)


def process(method: Any, properties: Any, body: Any) -> handling.Processing:
    """`with process(method, properties, body) as span:` - the scope of one message."""
    return handling.Processing(_Source(None, None), _Delivery(method, properties, body))


class _Delivery(NamedTuple):
    method: Any
    properties: Any
    body: Any


class _Messages(handling.Walk[Any]):
    """The generator of `channel.consume()`, walked."""

    __slots__ = ("_generator",)

    def __init__(self, channel: Any, source: _Source, generator: Any) -> None:
        self._generator = generator
        super().__init__(channel, source, lambda: _Delivery(*next(generator)), surely=True)

    def close(self) -> None:
        self._end()
        self._generator.close()


class _Source(AmqpSource):
    """The messages of one consumer of a channel (None: of an unknown one)."""

    __slots__ = ()

    def __init__(self, channel: Any, queue: str | None) -> None:
        super().__init__(queue, _server(channel))

    @property
    def tracer(self) -> Tracer:
        return _contrib.tracer

    def route(self, message: Any) -> tuple[str, str]:
        return message.method.exchange, message.method.routing_key

    def headers(self, message: Any) -> Any:
        return message.properties.headers

    def body(self, message: Any) -> Any:
        return message.body

    def is_no_message(self, message: Any) -> bool:
        return message.method is None  # nothing came within `inactivity_timeout`

    def created_ms(self, message: Any) -> float | None:
        return milliseconds(message.properties.timestamp)

    def start(self, message: Any) -> tuple[Context, Span | None]:
        context, span = super().start(message)
        if span is not None and _contrib.active:
            span.update_name(f"{_destination(*self.route(message))} receive")
        return context, span

    def attributes(self, message: Any) -> dict[str, Any]:
        found = super().attributes(message) | of_properties(message.properties)
        found["messaging.rabbitmq.message.delivery_tag"] = message.method.delivery_tag
        if (behind := getattr(message.method, "message_count", None)) is not None:
            found["tracefill.message.lag"] = behind
        return found | old_attributes(_destination(*self.route(message)), "receive") if _contrib.active else found

    def begun(self, span: Span, message: Any) -> None:
        _contrib.call_hook("consume_hook", span, message.body, message.properties)


def _destination(exchange: str, routing_key: str) -> str:
    return exchange or routing_key


def _server(channel: Any) -> dict[str, Any]:
    """Where the channel's connection leads; empty when nobody knows."""
    parameters = getattr(getattr(channel, "connection", None), "params", None)
    return {"server.address": parameters.host, "server.port": parameters.port} if parameters is not None else {}


# The consumers of each channel, by their tags.
_sources: weakref.WeakKeyDictionary[Any, dict[str, _Source]] = weakref.WeakKeyDictionary()


def _source_of(channel: Any, tag: str) -> _Source:
    of_channel = _sources.setdefault(channel, {})
    if tag not in of_channel:
        of_channel[tag] = _Source(channel, None)
    return of_channel[tag]


def _handling(channel: Any, method: Any, properties: Any, body: Any) -> handling.Processing:
    """The scope of a message of this channel (pika.channel.Channel), which a callback is about to be given."""
    source = _source_of(channel, getattr(method, "consumer_tag", ""))
    return handling.Processing(source, _Delivery(method, properties, body))


# ----------------------------------------------------------------------------------------------------------- install


def patch() -> None:
    from pika.adapters import blocking_connection
    from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
    from pika.adapters.select_connection import IOLoop
    from pika.channel import Channel
    from pika.connection import Connection

    _patches.wrap(Connection, "channel", _channel)
    _patches.wrap(BlockingChannel, "basic_publish", _basic_publish)
    _patches.wrap(Channel, "basic_publish", _basic_publish)
    _patches.wrap(BlockingChannel, "basic_consume", _consuming)
    _patches.wrap(BlockingChannel, "_dispatch_events", _dispatching)
    _patches.wrap(BlockingChannel, "consume", _consume)
    _patches.wrap(BlockingChannel, "basic_get", _basic_get)
    _patches.wrap(BlockingChannel, "cancel", _finishing)
    _patches.wrap(BlockingChannel, "close", _finishing)
    _patches.wrap(blocking_connection._ReturnedMessageEvt, "dispatch", _returned)
    _patches.wrap(Channel, "basic_consume", _noting_queue)
    _patches.wrap(Channel, "_on_deliver", _on_deliver)
    _patches.wrap(Channel, "_on_getok", _on_getok)
    for owner in (BlockingConnection, IOLoop):
        _patches.wrap(owner, "call_later", _call_later)
        _patches.wrap(owner, "add_callback_threadsafe", _add_callback)
    _patches.wrap(IOLoop, "add_callback", _add_callback)
    _step_over_contrib()
    _take_contribs_off()


def unpatch() -> None:
    _patches.undo()
    _give_back_to_contrib()


def _basic_publish(original: Any) -> Any:
    def basic_publish(
        self: Any, exchange: str, routing_key: str, body: Any, properties: Any = None, mandatory: bool = False
    ) -> Any:
        headers = getattr(properties, "headers", None)
        if _is_inner(self) or not isinstance(headers, (Mapping, type(None))) or not isinstance(routing_key, str):
            return original(self, exchange, routing_key, body, properties, mandatory)
        destination = _destination(exchange, routing_key)
        again = handling.republished(routing_key or exchange, body, headers)
        attributes = partial(_publish_attributes, self, exchange, routing_key, properties, again)
        name = f"{destination} send" if _contrib.active else f"send {shown(destination)}"
        with sending(_contrib.tracer, destination, headers, attributes, name) as span:
            carrying = _carrying(properties, again)
            _contrib.call_hook("publish_hook", span, body, carrying)
            return original(self, exchange, routing_key, body, carrying, mandatory)

    return basic_publish


def _is_inner(channel: Any) -> bool:
    """True for the channel inside of a BlockingChannel, which has done already what there is to be done."""
    return not hasattr(channel, "_impl") and hasattr(channel._get_cookie(), "_impl")


def _carrying(properties: Any, again: handling.Republished | None) -> Any:
    """The properties to send in the place of the caller's; the very same where there is nothing to carry."""
    headers = getattr(properties, "headers", None)
    with_ours = with_trace(headers, again)
    if with_ours is headers and not _contrib.active:
        return properties
    carrying = copy.copy(properties) if properties is not None else sys.modules["pika"].BasicProperties()
    carrying.headers = with_ours if with_ours is not None else {}
    return carrying


def _publish_attributes(
    channel: Any, exchange: str, routing_key: str, properties: Any, again: handling.Republished | None
) -> dict[str, Any]:
    found = publish_attributes(exchange, routing_key, again) | _server(getattr(channel, "_impl", channel))
    found |= of_properties(properties)
    return found | old_attributes(_destination(exchange, routing_key), None) if _contrib.active else found


class _Callback:
    """A callback of `basic_consume`, which handles each message in a scope of its own."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback = callback

    def __call__(self, channel: Any, method: Any, properties: Any, body: Any) -> Any:
        if not _patches.active:
            return self.callback(channel, method, properties, body)
        with _handling(channel._impl, method, properties, body):
            return self.callback(channel, method, properties, body)


def _own_callbacks(channel: Any) -> None:
    for consumer in channel._consumer_infos.values():
        callback = consumer.on_message_callback
        if callback is not None and type(callback) is not _Callback:
            consumer.on_message_callback = _Callback(_past_contrib(callback))


def _consuming(original: Any) -> Any:
    def basic_consume(self: Any, *args: Any, **kwargs: Any) -> Any:
        tag = original(self, *args, **kwargs)
        _own_callbacks(self)
        return tag

    return basic_consume


def _dispatching(original: Any) -> Any:
    def _dispatch_events(self: Any) -> None:
        _own_callbacks(self)  # of consumers that were there before
        original(self)

    return _dispatch_events


def _noting_queue(original: Any) -> Any:
    def basic_consume(self: Any, queue: str, *args: Any, **kwargs: Any) -> Any:
        tag = original(self, queue, *args, **kwargs)
        _sources.setdefault(self, {})[tag] = _Source(self, queue)
        return tag

    return basic_consume


def _on_deliver(original: Any) -> Any:
    def on_deliver(self: Any, method_frame: Any, header_frame: Any, body: Any) -> Any:
        tag = method_frame.method.consumer_tag
        callback = self._consumers.get(tag)
        if callback is None or tag in self._cancelled or _is_inner(self):
            return original(self, method_frame, header_frame, body)
        self._consumers[tag] = _past_contrib(callback)
        with _handling(self, method_frame.method, header_frame.properties, body):
            return original(self, method_frame, header_frame, body)

    return on_deliver


def _on_getok(original: Any) -> Any:
    def on_getok(self: Any, method_frame: Any, header_frame: Any, body: Any) -> Any:
        if _is_inner(self):
            return original(self, method_frame, header_frame, body)
        with _handling(self, method_frame.method, header_frame.properties, body):
            return original(self, method_frame, header_frame, body)

    return on_getok


def _consume(original: Any) -> Any:
    def consume(self: Any, queue: str, *args: Any, **kwargs: Any) -> Any:
        _step_over_contrib()
        return _Messages(self, _Source(self._impl, queue), original(self, queue, *args, **kwargs))

    consume.plain = original  # type: ignore[attr-defined]
    return consume


def _basic_get(original: Any) -> Any:
    def basic_get(self: Any, queue: str, *args: Any, **kwargs: Any) -> Any:
        frame = handling.taker(sys._getframe(1))
        handling.finish(self, frame)
        got = original(self, queue, *args, **kwargs)
        if got[0] is None or suppressed():
            return got
        delivery = _Delivery(*got)
        handling.take(self, _Source(self._impl, queue), delivery, frame)
        return delivery

    return basic_get


def _finishing(original: Any) -> Any:
    def finishing(self: Any, *args: Any, **kwargs: Any) -> Any:
        handling.leave(self)
        return original(self, *args, **kwargs)

    return finishing


def _returned(original: Any) -> Any:
    """A message that the broker could not route comes back to whoever sent it."""

    def dispatch(self: Any) -> None:
        with scope(extract(self.properties)):
            original(self)

    return dispatch


def _call_later(original: Any) -> Any:
    def call_later(self: Any, delay: float, callback: Any) -> Any:
        return original(self, delay, _bound(callback, sys._getframe(1)))

    return call_later


def _add_callback(original: Any) -> Any:
    def add_callback_threadsafe(self: Any, callback: Any) -> Any:
        return original(self, _bound(callback, sys._getframe(1)))

    return add_callback_threadsafe


def _bound(callback: Any, caller: Any) -> Any:
    """The program's own callbacks; the library's heartbeats and timeouts are nobody's."""
    return bind(callback) if callable(callback) and not handling.is_library(caller) else callback


# ----------------------------------------------------------------------------------------------------------- contrib

# The channels that contrib would have decorated, and what it was given for them.
_contribs: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def _channel(original: Any) -> Any:
    def channel(self: Any, *args: Any, **kwargs: Any) -> Any:
        _step_over_contrib()
        return original(self, *args, **kwargs)

    return channel


def _step_over_contrib() -> None:
    """Contrib decorates each channel that is opened, twice where it is a blocking one: here it only leaves what it was given."""
    module: Any = sys.modules.get(_CONTRIB)
    if hasattr(module, "PikaInstrumentor"):
        _patches.wrap(module.PikaInstrumentor, "instrument_channel", _instrument_channel)
        _patches.wrap(module.utils.ReadyMessagesDequeProxy, "popleft", _popleft)


def _instrument_channel(original: Any) -> Any:
    def instrument_channel(channel: Any, tracer_provider: Any = None, **hooks: Any) -> None:
        _contribs[channel] = {"tracer_provider": tracer_provider, **hooks}
        tracer = trace.get_tracer(f"{_CONTRIB}.pika_instrumentor", _version(), tracer_provider)
        _contrib.takes_part(tracer=tracer, **hooks)

    return instrument_channel


def _version() -> str:
    version: str = sys.modules[f"{_CONTRIB}.version"].__version__
    return version


def _popleft(original: Any) -> Any:
    def popleft(self: Any) -> Any:
        return self.__wrapped__.popleft()

    return popleft


def _past_contrib(callback: Any) -> Any:
    return getattr(callback, "_original_callback", callback)


def _take_contribs_off() -> None:
    """The channels that contrib has decorated before: nobody but the garbage collector knows them all."""
    if _CONTRIB not in sys.modules:
        return
    for channel in gc.get_objects():
        if type(channel).__module__ in ("pika.channel", "pika.adapters.blocking_connection"):
            publish = getattr(channel, "__dict__", {}).get("basic_publish")
            if hasattr(publish, "_original_function"):
                _take_off(channel, publish)


def _take_off(channel: Any, publish: Any) -> None:
    given = _free_variables(publish)
    hook = given.get("publish_hook")
    _contribs[channel] = {"publish_hook": hook} if hook is not None else {}
    _contrib.takes_part(tracer=given.get("tracer"), **_contribs[channel])
    for name in ("basic_publish", "basic_consume"):
        vars(channel).pop(name, None)


def _free_variables(function: Any) -> dict[str, Any]:
    cells = function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, cells, strict=True)}


def _give_back_to_contrib() -> None:
    module: Any = sys.modules.get(_CONTRIB)
    while _contribs:
        channel, given = _contribs.popitem()
        if _contrib.active:
            module.PikaInstrumentor.instrument_channel(channel, **given)
