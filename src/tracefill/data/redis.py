"""redis (4.5 and later, sync and async, cluster): every command on its chain, also of clients that exist already.

    import tracefill
    tracefill.install(only=["redis"])
    redis.Redis().set("order", 17)              # a CLIENT span "SET", whose text is "SET ? ?"

A pipeline is one span. Keys and values are never recorded. `statements.configure(form="event")` makes a `db.query` event of each
instead. With contrib's instrumentor active its spans are the only ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tracefill.data import statements
from tracefill.data.statements import Described
from tracefill.spans import Tracer
from tracefill.wrapping import Patches, contrib_active

LIBRARIES = ("redis",)

_tracer = Tracer("tracefill.data.redis")
_patches = Patches()
_MOST_SHOWN = 16  # commands of a pipeline, and arguments of a command
_NAME_LENGTH = 64
_WITH_SUBCOMMANDS = (
    " ACL CLIENT CLUSTER COMMAND CONFIG DEBUG FUNCTION LATENCY MEMORY MODULE OBJECT PUBSUB SCRIPT SENTINEL SLOWLOG "
    "XGROUP XINFO "
)


def patch() -> None:
    import redis
    import redis.asyncio
    import redis.asyncio.cluster
    import redis.cluster

    for owner in (redis.Redis, redis.cluster.RedisCluster):
        _patches.wrap(owner, "execute_command", _command)
    for owner in (redis.asyncio.Redis, redis.asyncio.cluster.RedisCluster):
        _patches.wrap(owner, "execute_command", _command_async)
    for owner in (redis.client.Pipeline, redis.cluster.ClusterPipeline):
        _patches.wrap(owner, "execute", _pipeline)
    for owner in (redis.asyncio.client.Pipeline, redis.asyncio.cluster.ClusterPipeline):
        _patches.wrap(owner, "execute", _pipeline_async)
    _patches.wrap(redis.client.Pipeline, "immediate_execute_command", _command)
    _patches.wrap(redis.asyncio.client.Pipeline, "immediate_execute_command", _command_async)


def unpatch() -> None:
    _patches.undo()


def _command(original: Any) -> Callable[..., Any]:
    def execute_command(self: Any, *arguments: Any, **options: Any) -> Any:
        with _scope(self, [arguments]):
            return original(self, *arguments, **options)

    return execute_command


def _command_async(original: Any) -> Callable[..., Any]:
    async def execute_command(self: Any, *arguments: Any, **options: Any) -> Any:
        with _scope(self, [arguments]):
            return await original(self, *arguments, **options)

    return execute_command


def _pipeline(original: Any) -> Callable[..., Any]:
    def execute(self: Any, *arguments: Any, **options: Any) -> Any:
        with _scope(self, _queued(self)):
            return original(self, *arguments, **options)

    return execute


def _pipeline_async(original: Any) -> Callable[..., Any]:
    async def execute(self: Any, *arguments: Any, **options: Any) -> Any:
        with _scope(self, _queued(self)):
            return await original(self, *arguments, **options)

    return execute


def _queued(pipeline: Any) -> Sequence[Sequence[Any]]:
    queued = getattr(pipeline, "command_stack", None) or getattr(pipeline, "_command_stack", None) or ()
    return [getattr(command, "args", None) or command[0] for command in queued]


def _scope(client: Any, commands: Sequence[Sequence[Any]]) -> AbstractContextManager[Any]:
    if not commands or contrib_active("opentelemetry.instrumentation.redis", "RedisInstrumentor"):
        return nullcontext()
    return statements.scope(_tracer, "redis", functools.partial(_described, commands), _where, client)


def _described(commands: Sequence[Sequence[Any]]) -> Described:
    read = [_read(command) for command in commands[:_MOST_SHOWN]]
    text = "; ".join(" ".join([name, *["?"] * min(arguments, _MOST_SHOWN)]) for name, arguments in read)
    names = [name for name, _ in read]
    if len(commands) == 1:
        return Described(text, names[0], {"db.operation.name": names[0]})
    operation = f"PIPELINE {names[0]}" if len(set(names)) == 1 else "PIPELINE"
    return Described(text, operation, {"db.operation.name": operation, "db.operation.batch.size": len(commands)})


def _read(command: Sequence[Any]) -> tuple[str, int]:
    """A command's name, and how many arguments it has. The client lets a program write both in one str: "SET a secret"."""
    first = command[0] if command else ""
    words = (first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)).split() or [""]
    named = 2 if f" {words[0].upper()} " in _WITH_SUBCOMMANDS else 1
    name = " ".join(words[:named]).upper()[:_NAME_LENGTH]
    return name, max(len(words) - named, 0) + max(len(command) - 1, 0)


def _where(client: Any) -> dict[str, Any]:
    settings = client.connection_pool.connection_kwargs
    told = {
        "db.namespace": str(settings.get("db") or 0),
        "server.address": settings.get("path") or settings.get("host"),
    }
    return told if "path" in settings else {**told, "server.port": settings.get("port")}
