"""What a function has in hand at the place where it is now: `for record in records:` - this record, and no longer after the loop.

A list of messages that a program has put together itself says nothing when it is walked. The function that walks it does: the
variable of the loop that is running, an argument, a variable that was set on the way. One that was set in a loop which is over
is a left-over, and not in hand.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

__all__ = ["collects", "values_in_hand"]

_COLLECTING = ("LIST_APPEND", "SET_ADD", "MAP_ADD")


class _Loop(NamedTuple):
    start: int
    end: int  # where it jumps back for the last time
    exit: int  # where the code behind it begins
    handlers: int  # where the code of the first `except` within it begins, which lies behind all other code

    def holds(self, at: int) -> bool:
        return self.start <= at < self.exit or self.handlers <= at <= self.end

    @property
    def size(self) -> int:
        return self.exit - self.start


def values_in_hand(frame: FrameType) -> Iterator[Any]:
    """The values of the variables that are in hand, those of the innermost loop first."""
    names = _names_in_hand(frame.f_code, frame.f_lasti)
    if names:
        held = frame.f_locals
        for name in names:
            if name in held:
                yield held[name]


@lru_cache(2048)
def _names_in_hand(code: CodeType, at: int) -> tuple[str, ...]:
    loops = _loops(code)
    around = sorted((loop for loop in loops if loop.holds(at)), key=lambda loop: loop.size)
    rank: dict[str, int] = {}
    for place, name in _settings(code):
        mine = [loop for loop in loops if loop.holds(place)]
        innermost = min(mine, key=lambda loop: loop.size, default=None)
        if innermost is None:
            rank.setdefault(name, len(around) + 1)
        elif innermost in around:
            rank[name] = min(rank.get(name, len(around)), around.index(innermost))
    for name in _parameters(code):
        rank.setdefault(name, len(around))
    return tuple(sorted(rank, key=lambda name: rank[name]))


@lru_cache(1024)
def _settings(code: CodeType) -> tuple[tuple[int, str], ...]:
    """Where each variable is set."""
    found = []
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_FAST", "STORE_DEREF", "STORE_NAME", "STORE_GLOBAL"):
            found.append((step.offset, step.argval))
        elif step.opname == "STORE_FAST_LOAD_FAST":
            found.append((step.offset, step.argval[0]))
        elif step.opname == "STORE_FAST_STORE_FAST":
            found += [(step.offset, name) for name in step.argval]
    return tuple(found)


def _parameters(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


@lru_cache(1024)
def _loops(code: CodeType) -> tuple[_Loop, ...]:
    ends: dict[int, int] = {}
    exits: dict[int, int] = {}
    for step in dis.get_instructions(code):
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            if step.argval <= step.offset:
                ends[step.argval] = step.offset
            elif step.opname == "FOR_ITER":
                exits[step.offset] = step.argval
    handlers = _handlers(code)
    found = []
    for start, end in _joined(ends, exits).items():
        leave = min(exits.get(start, end + 1), end + 1)
        mine = [target for protected, target in handlers if start <= protected < leave <= target]
        found.append(_Loop(start, end, leave, min(mine, default=end + 1)))
    return tuple(found)


def _joined(ends: dict[int, int], exits: dict[int, int]) -> dict[int, int]:
    """A `while` jumps back to its test and behind it: two ranges that overlap are one loop."""
    joined: dict[int, int] = {}
    last = -1
    for start, end in sorted(ends.items()):
        if last >= 0 and last not in exits and start not in exits and start <= joined[last] < end:
            joined[last] = end
        else:
            joined[start] = end
            last = start
    return joined


def _handlers(code: CodeType) -> list[tuple[int, int]]:
    """What is protected by a `try`, and where its `except` begins. Before 3.11 that is written in place."""
    entries = getattr(dis.Bytecode(code), "exception_entries", ())
    return [(entry.start, entry.target) for entry in entries]


@lru_cache(1024)
def collects(code: CodeType, at: int) -> bool:
    """True where a comprehension asks for its next item: it puts a list together, and handles nothing."""
    around = [loop for loop in _loops(code) if loop.start == at]
    for step in dis.get_instructions(code):
        if around and step.opname in _COLLECTING and around[0].holds(step.offset):
            inner = [loop for loop in _loops(code) if loop.holds(step.offset) and loop.size < around[0].size]
            if not inner:
                return True
    return False
