"""Is this function one job, or a worker that takes on one job after the other?

A thread or task that is started inside a request continues the request, however late it runs: it is the request's job. Unless
it is a loop without an end in sight that does some work, waits, and does some more: a periodic tick, a scheduler, a queue's
worker, a server. What such a loop does is for others. It must not carry the trace of whoever happened to start it, not even in
its first round, and in the first round only the code tells. So this reads the code:

- a `while` loop whose end depends on nothing that it counts itself, or `for` over `iter(queue.get, ...)`, `count()`, `cycle()`,
- that comes round again when its work is done (one that tries until it succeeds leaves by `break` or `return`),
- that waits: calls `sleep`, `wait`, a queue's `get()`, `accept`, `select`, `poll`, `recv` and the like,
- and does work: enters a `with span():`, or calls something for what it does and not for what it returns.

`while not ready(): sleep(1)` only waits, and `while not queue.empty()` has its end in sight: these are parts of a job. In the code
of libraries every such loop is a worker's, whatever it waits by, unless all it does is to ask (`while cursor.nextset(): pass`).
Where there is no source to read it is one job.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import os
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

__all__ = ["TAKES", "TICKS", "is_library", "is_worker", "loop_of"]

#: What a worker's loop waits for: the time or an event; or the next thing to work on.
TICKS, TAKES = "ticks", "takes"

_TAKING = (
    " accept blmove blpop brpop brpoplpush bzpopmax bzpopmin consume drain_events get_message poll receive "
    "receive_message receive_messages recv select xread xreadgroup "
)
#: What a loop does for its own sake.
_NO_WORK = (
    " acquire add append appendleft clear notify notify_all release set task_done "
    "critical debug error exception info log print warning write "
)
_ENDLESS = frozenset(("count", "cycle", "repeat"))
_OURS = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = tuple(path for path in map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")) if path)


def is_worker(function: Any) -> bool:
    """True when what the callable runs is a worker's loop, in its own code or in functions that this calls for nothing else.

    >>> is_worker(len)
    False
    """
    return _is_worker(_plain(function), type(getattr(function, "__self__", None)), 2)


# By code and not by function: a function may hold what a request has made.
_judged: dict[tuple[int, int, int], tuple[bool, CodeType, type]] = {}


def _is_worker(function: FunctionType | None, owner: type, depth: int) -> bool:
    if function is None:
        return False
    if loop_of(function.__code__):
        return True
    if depth == 0:
        return False
    if function.__closure__:  # what it calls may be another function each time
        return _calls_worker(function, owner, depth)
    key = id(function.__code__), id(owner), depth
    judged = _judged.get(key)
    if judged is None:
        judged = _kept(_judged, key, (_calls_worker(function, owner, depth), function.__code__, owner))
    return judged[0]


def _calls_worker(function: FunctionType, owner: type, depth: int) -> bool:
    return any(_is_worker(called, owner, depth - 1) for called in _called(function, owner))


def _kept(judged: dict[Any, Any], key: Any, judgement: Any) -> Any:
    """Each judgement holds what it is about, so that the ids in its key remain theirs."""
    if len(judged) >= 4096:
        judged.clear()
    judged[key] = judgement
    return judgement


def _plain(function: Any) -> FunctionType | None:
    """The Python function behind a method, a partial, a decorator or an object that can be called."""
    for _ in range(20):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif isinstance(function, FunctionType):
            return function
        else:
            function = getattr(type(function), "__call__", None)  # noqa: B004 (it is the method that is wanted)
            if not isinstance(function, FunctionType):  # of C
                return None
    return None


def _called(function: FunctionType, owner: type) -> Iterator[FunctionType]:
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    for name, of_self in _read(function.__code__)[1]:
        if of_self:
            found = getattr(owner, name, None)
        elif name in closure:
            found = _content(closure[name])
        else:
            found = function.__globals__.get(name)
        if isinstance(found, FunctionType):
            yield found


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def loop_of(code: CodeType) -> str:
    """TICKS or TAKES when the code itself is a worker's loop, by what the loop waits for; else ""."""
    return _read(code)[0]


def is_library(code: CodeType) -> bool:
    """True for the standard library and what is installed, False for the program's own code."""
    return _is_library(code.co_filename)


@functools.lru_cache(4096)
def _is_library(filename: str) -> bool:
    return filename.startswith((*_LIBRARIES, _OURS, "<frozen")) or "-packages/" in filename.replace(os.sep, "/")


# ------------------------------------------------------------------------------------------------------- reading the code

_Called = tuple[tuple[str, bool], ...]
_known: dict[int, tuple[tuple[str, _Called], CodeType]] = {}


def _read(code: CodeType) -> tuple[str, _Called]:
    """What its loop waits for, and the functions that it calls as statements: their names, and whether they are self's."""
    known = _known.get(id(code))
    if known is None:
        known = _kept(_known, id(code), (_read_source(code), code))
    return known[0]


def _read_source(code: CodeType) -> tuple[str, _Called]:
    if code.co_name == "<lambda>":
        return "", tuple((name, False) for name in (*code.co_names, *code.co_freevars))
    try:
        lines = inspect.getblock(linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :])
        function = ast.parse(textwrap.dedent("".join(lines))).body[0]
    except (SyntaxError, IndexError, ValueError, RecursionError):
        return "", ()
    if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return "", ()
    own = list(_inside(function.body))
    kinds = [_kind(loop, is_library(code)) for loop in own if isinstance(loop, (ast.While, ast.For))]
    return next(filter(None, kinds), ""), tuple(_names_called(own, code.co_varnames[:1]))


def _inside(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of this code, without those of the functions that are defined in it."""
    for node in body:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _inside(ast.iter_child_nodes(node))


def _names_called(nodes: Iterable[ast.AST], first: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    for node in nodes:
        if isinstance(node, ast.Expr):
            for call in _inside([node]):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                    yield call.func.id, False
                elif isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    of = call.func.value
                    if isinstance(of, ast.Name) and of.id in first:
                        yield call.func.attr, True


def _kind(loop: ast.While | ast.For, library: bool) -> str:
    nodes = list(_inside([loop]))
    if library:
        worker = _may_be_endless(loop) and not (_only_asks(loop) or _asks_how_many(loop))
        return (TAKES if any(map(_takes, nodes)) else TICKS) if worker else ""
    if not _may_be_endless(loop) or _sees_its_end(loop) or _leaves(loop.body) or not any(map(_is_work, nodes)):
        return ""
    return TAKES if any(map(_takes, nodes)) else TICKS if any(map(_ticks, nodes)) else ""


def _only_asks(loop: ast.While | ast.For) -> bool:
    """`while cursor.nextset(): pass`, as the drivers of databases have it."""
    return all(isinstance(statement, ast.Pass) for statement in loop.body)


def _may_be_endless(loop: ast.While | ast.For) -> bool:
    if isinstance(loop, ast.While):
        return True
    maker = _name_of(loop.iter)
    return maker in _ENDLESS or (maker == "iter" and isinstance(loop.iter, ast.Call) and len(loop.iter.args) == 2)


def _sees_its_end(loop: ast.While | ast.For) -> bool:
    """True when it asks for what it changes itself: how often it went round, or how much is left."""
    if isinstance(loop, ast.For):
        return False
    stored = {node.id for node in _inside(loop.body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return _asks_how_many(loop) or any(
        isinstance(node, ast.Name) and node.id in stored for node in _inside([loop.test])
    )


def _asks_how_many(loop: ast.While | ast.For) -> bool:
    """True when it goes on for as long as something is left, or waits for room, as a queue's `put` does."""
    return isinstance(loop, ast.While) and any(
        _name_of(node) in ("empty", "full", "len", "qsize", "_qsize") for node in _inside([loop.test])
    )


def _leaves(body: list[ast.stmt]) -> bool:
    """True when the loop is left once its body has gone well."""
    last = body[-1]
    if isinstance(last, (ast.Break, ast.Return, ast.Raise)):
        return True
    if isinstance(last, ast.Try):
        return _leaves(last.orelse or last.body)
    if isinstance(last, (ast.With, ast.AsyncWith)):
        return _leaves(last.body)
    return isinstance(last, ast.If) and bool(last.orelse) and _leaves(last.body) and _leaves(last.orelse)


def _is_work(node: ast.AST) -> bool:
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return any(isinstance(item.context_expr, ast.Call) for item in node.items)
    if not isinstance(node, ast.Expr):
        return False
    value = node.value.value if isinstance(node.value, ast.Await) else node.value
    return (
        isinstance(value, ast.Call) and f" {_name_of(value)} " not in _NO_WORK and not (_ticks(value) or _takes(value))
    )


def _ticks(node: ast.AST) -> bool:
    name = _name_of(node)
    return "sleep" in name or "wait" in name


def _takes(node: ast.AST) -> bool:
    if _name_of(node) == "iter" and isinstance(node, ast.Call):
        return any(isinstance(argument, ast.Attribute) for argument in node.args)
    return f" {_name_of(node) or 0} " in _TAKING or _is_get_of_a_queue(node)


def _is_get_of_a_queue(node: ast.AST) -> bool:
    """`get()`, `get(True)` or `get(timeout=1)`; what has a key or a URL is a mapping's or a client's."""
    if _name_of(node) != "get" or not isinstance(node, ast.Call):
        return False
    first = node.args[0] if node.args else None
    keywords = {keyword.arg for keyword in node.keywords}
    return (first is None or (isinstance(first, ast.Constant) and isinstance(first.value, bool))) and keywords <= {
        "block",
        "timeout",
    }


def _name_of(node: ast.AST) -> str:
    """The last part of the name of what is called; "" for anything but a call."""
    if not isinstance(node, ast.Call):
        return ""
    return (
        node.func.attr
        if isinstance(node.func, ast.Attribute)
        else node.func.id
        if isinstance(node.func, ast.Name)
        else ""
    )
