"""Redis streams and channels: an entry or a message brings its producer's context to whoever takes it, until he takes the next
(opt-in, with `install(queues=True)`).

    client.xadd("orders", {"order": 17})                        # in a request
    for _, entries in client.xreadgroup(...):                   # elsewhere
        for entry_id, fields in entries:                        # each in its request's context
            handle(fields)

redis 4.5 and later, sync and async, one server. In a stream the context is one more field, `tracefill`, which is taken off
where it is read; without tracefill it is seen there. To a channel it goes ahead of the message in the same transaction, by a
channel of its own, `tracefill:` and the name: the message is what it was for everybody. The values of lists are the program's
own, and nothing may go with them: `tracefill.messages.envelope` is for those.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from inspect import isawaitable
from types import FrameType
from typing import Any, SupportsIndex

from opentelemetry.context import Context

from tracefill.context import extract, inject, scope
from tracefill.handoff.carried import NOTHING, bring
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("redis",)
OPT_IN = "queues"

_patches = Patches()
_FIELD = "tracefill"
_AHEAD = "tracefill:"
_NOTED, _BROUGHT = "_tracefill_noted", "_tracefill_brought"


def _headers() -> str | None:
    headers: dict[str, str] = {}
    inject(headers)
    return json.dumps(headers) if headers else None


def _context(text: Any) -> Context:
    try:
        headers = json.loads(text) if text else {}
    except (TypeError, ValueError):
        return NOTHING
    return extract(headers) if isinstance(headers, dict) else NOTHING


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


# ---------------------------------------------------------------------------------------------------------------- streams


def _xadd(original: Callable[..., Any]) -> Callable[..., Any]:
    def xadd(self: Any, name: Any, fields: Any, *args: Any, **kwargs: Any) -> Any:
        headers = _headers()
        if headers and isinstance(fields, dict) and fields:
            fields = {**fields, _FIELD: headers}
        return original(self, name, fields, *args, **kwargs)

    return xadd


def _taking(original: Callable[..., Any]) -> Callable[..., Any]:
    def take(self: Any, *args: Any, **kwargs: Any) -> Any:
        reply = original(self, *args, **kwargs)
        return _later(reply) if isawaitable(reply) and not _is_pipeline(self) else _taken(reply, sys._getframe(1))

    return take


async def _later(reply: Any) -> Any:
    return _taken(await reply, sys._getframe(1))


def _taken(reply: Any, taker: FrameType) -> Any:
    """The reply without what was carried; its first entry is what has been taken, until the entries are gone through."""
    found: list[_Entries] = []
    bare = _bare(reply, found)
    if found:
        found[0].hand_over(0, taker)
    elif not reply:
        bring(NOTHING, None, taker)
    return bare


def _bare(reply: Any, found: list[_Entries]) -> Any:
    if isinstance(reply, dict):
        return {name: _bare(part, found) for name, part in reply.items()}
    if not isinstance(reply, (list, tuple)):
        return reply
    if isinstance(reply, list) and reply and all(map(_is_entry, reply)):
        found.append(_Entries(reply, [_context(_without(fields)) for _, fields in reply]))
        return found[-1]
    return type(reply)(_bare(part, found) for part in reply)


def _is_entry(part: Any) -> bool:
    return isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], dict)


class _Entries(list[Any]):
    """The entries of one stream: each brings its context when it is its turn, or when it is picked."""

    def __init__(self, entries: list[Any], contexts: list[Context]) -> None:
        super().__init__(entries)
        self._contexts = contexts

    def hand_over(self, index: int, taker: FrameType) -> Any:
        entry = super().__getitem__(index)
        bring(self._contexts[index], entry, taker)
        return entry

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if len(self._contexts) != len(self):  # the program has put some in, or taken some out
            return super().__getitem__(index)
        if isinstance(index, slice):
            return _Entries(super().__getitem__(index), self._contexts[index])
        return self.hand_over(index.__index__(), sys._getframe(1))

    def __iter__(self) -> Any:
        return _Walk(self) if len(self._contexts) == len(self) else super().__iter__()


class _Walk:
    def __init__(self, entries: _Entries) -> None:
        self._entries = entries
        self._next = 0

    def __iter__(self) -> _Walk:
        return self

    def __next__(self) -> Any:
        taker = sys._getframe(1)
        if self._next >= len(self._entries):
            bring(NOTHING, None, taker)
            raise StopIteration
        self._next += 1
        return self._entries.hand_over(self._next - 1, taker)


def _without(fields: dict[Any, Any]) -> Any:
    """Takes off what was carried, and returns it."""
    return fields.pop(_FIELD.encode(), None) or fields.pop(_FIELD, None)


def _looking(original: Callable[..., Any]) -> Callable[..., Any]:
    """Commands that look at a stream and take nothing."""

    def look(self: Any, *args: Any, **kwargs: Any) -> Any:
        reply = original(self, *args, **kwargs)
        return _seen_later(reply) if isawaitable(reply) and not _is_pipeline(self) else _seen(reply)

    return look


async def _seen_later(reply: Any) -> Any:
    return _seen(await reply)


def _seen(reply: Any) -> Any:
    for entry in reply if isinstance(reply, list) else ():
        if _is_entry(entry):
            _without(entry[1])
    return reply


# --------------------------------------------------------------------------------------------------------------- channels


def _is_pipeline(client: Any) -> bool:
    return hasattr(client, "command_stack")


def _ahead(channel: Any) -> Any:
    return _AHEAD.encode() + channel if isinstance(channel, bytes) else f"{_AHEAD}{channel}"


def _publish(original: Callable[..., Any]) -> Callable[..., Any]:
    def publish(self: Any, channel: Any, message: Any, **kwargs: Any) -> Any:
        import redis.asyncio

        headers = _headers()
        if headers is None or _is_pipeline(self) or not isinstance(self, (redis.Redis, redis.asyncio.Redis)):
            return original(self, channel, message, **kwargs)
        pipeline = self.pipeline(transaction=True)
        original(pipeline, _ahead(channel), headers)
        original(pipeline, channel, message, **kwargs)
        done: Any = pipeline.execute()
        return _last(done) if isawaitable(done) else done[-1]

    return publish


async def _last(done: Any) -> Any:
    return (await done)[-1]


def _subscribing(command: str) -> Callable[..., Any]:
    """The same for what goes ahead; not by the library's books, so that nobody sees it there."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def ask(self: Any, *channels: Any, **handlers: Any) -> Any:
            names = [_ahead(name) for channel in channels for name in _names(channel)] + [*map(_ahead, handlers)]
            asked = self.execute_command(command, *names) if names else None
            if isawaitable(asked):
                return _both(asked, original(self, *channels, **handlers))
            return original(self, *channels, **handlers)

        return ask

    return wrap


def _names(channel: Any) -> list[Any]:
    return list(channel) if isinstance(channel, (list, tuple, set, dict)) else [channel]


async def _both(first: Any, second: Any) -> Any:
    await first
    return await second


def _parse_response(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        response = original(self, *args, **kwargs)
        while _goes_ahead(self, response):
            response = original(self, *args, **kwargs)
        return response

    return parse_response


def _parse_response_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def parse_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        response = await original(self, *args, **kwargs)
        while _goes_ahead(self, response):
            response = await original(self, *args, **kwargs)
        return response

    return parse_response


def _goes_ahead(pubsub: Any, response: Any) -> bool:
    """True for what the program is not to see; the context of the message that follows is noted."""
    if not isinstance(response, (list, tuple)) or len(response) < 3:
        return False
    if not any(_text(name).startswith(_AHEAD) for name in response[1:-1] if name is not None):
        return False
    if _is_message(response):
        vars(pubsub).setdefault(_NOTED, {})[_key(response)] = response[-1]
    return True


def _key(response: Any) -> tuple[str, ...]:
    """Of a message and of what went ahead of it: by the channel, or by a pattern and the channel."""
    return tuple(_text(name).removeprefix(_AHEAD) for name in response[1:-1])


def _is_message(response: Any) -> bool:
    return _text(response[0]) in ("message", "pmessage")


def _arrived(pubsub: Any, response: Any) -> Context | None:
    """The context of a message; None where nothing went ahead of it."""
    context = None
    if isinstance(response, (list, tuple)) and len(response) > 2 and _is_message(response):
        headers = vars(pubsub).get(_NOTED, {}).pop(_key(response), None)
        context = _context(headers) if headers else None
    vars(pubsub)[_BROUGHT] = context
    return context


def _handle_message(original: Callable[..., Any]) -> Callable[..., Any]:
    """Handlers that a program has subscribed with run in here."""

    def handle_message(self: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        context = _arrived(self, response)
        if context is None:
            return original(self, response, *args, **kwargs)
        with scope(context):
            return original(self, response, *args, **kwargs)

    return handle_message


def _handle_message_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def handle_message(self: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        context = _arrived(self, response)
        if context is None:
            return await original(self, response, *args, **kwargs)
        with scope(context):
            return await original(self, response, *args, **kwargs)

    return handle_message


def _hand_over(pubsub: Any, message: Any, taker: FrameType) -> Any:
    context = None if message is None else vars(pubsub).get(_BROUGHT)
    bring(NOTHING if context is None else context, message, taker)
    return message


def _get_message(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _hand_over(self, original(self, *args, **kwargs), sys._getframe(1))

    return get_message


def _get_message_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def get_message(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _hand_over(self, await original(self, *args, **kwargs), sys._getframe(1))

    return get_message


class _Messages:
    """What `listen()` gives, with the context of each: a generator would keep that to itself."""

    def __init__(self, pubsub: Any, messages: Any) -> None:
        self._pubsub = pubsub
        self._messages = messages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._messages, name)

    def __iter__(self) -> _Messages:
        return self

    def __next__(self) -> Any:
        return _hand_over(self._pubsub, next(self._messages), sys._getframe(1))

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Any:
        return _hand_over(self._pubsub, await anext(self._messages), sys._getframe(1))


def _listen(original: Callable[..., Any]) -> Callable[..., Any]:
    def listen(self: Any) -> Any:
        return _Messages(self, original(self))

    return listen


def patch() -> None:
    import redis.asyncio.client
    import redis.client
    from redis.commands.core import PubSubCommands, StreamCommands

    _patches.wrap(StreamCommands, "xadd", _xadd)
    for name in ("xread", "xreadgroup", "xclaim", "xautoclaim"):
        _patches.wrap(StreamCommands, name, _taking)
    for name in ("xrange", "xrevrange"):
        _patches.wrap(StreamCommands, name, _looking)
    _patches.wrap(PubSubCommands, "publish", _publish)
    for kind in (redis.client.PubSub, redis.asyncio.client.PubSub):
        for name in ("subscribe", "psubscribe", "unsubscribe", "punsubscribe"):
            _patches.wrap(kind, name, _subscribing(name.upper()))
        _patches.wrap(kind, "listen", _listen)
    _patches.wrap(redis.client.PubSub, "parse_response", _parse_response)
    _patches.wrap(redis.client.PubSub, "handle_message", _handle_message)
    _patches.wrap(redis.client.PubSub, "get_message", _get_message)
    _patches.wrap(redis.asyncio.client.PubSub, "parse_response", _parse_response_async)
    _patches.wrap(redis.asyncio.client.PubSub, "handle_message", _handle_message_async)
    _patches.wrap(redis.asyncio.client.PubSub, "get_message", _get_message_async)


def unpatch() -> None:
    _patches.undo()
