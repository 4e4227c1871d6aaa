"""uvloop starts programs by itself, without `subprocess`: see there. uvloop 0.17 and later."""

from __future__ import annotations

from typing import Any

from tracefill.handoff.child_environment import with_context
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

LIBRARIES = ("uvloop",)
OPT_IN = "subprocess"

_patches = Patches()


def _start(original: Any) -> Any:
    async def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await original(self, *args, **{**kwargs, "env": with_context(kwargs.get("env"))})

    return start


def patch() -> None:
    import uvloop

    _patches.wrap(uvloop.Loop, "subprocess_exec", _start)
    _patches.wrap(uvloop.Loop, "subprocess_shell", _start)


def unpatch() -> None:
    _patches.undo()
