"""Programs that are started find TRACEPARENT, TRACESTATE and BAGGAGE in their environment, and one that is started so joins.

    tracefill.install(subprocess=True)
    subprocess.run(["backup", "--full"])        # backup's first span hangs below the current one

`subprocess`, `asyncio.create_subprocess_*`, `os.system`, `os.popen`, `os.spawn*`, `os.posix_spawn*` and `os.exec*`, with an
environment of the caller's own too. Asked for by name, because the started program sees the difference. Without a patch:
`subprocess.run(command, env=tracefill.context.environment())`.

A program that finds these variables when `install(subprocess=True)` runs has them as its context from then on: its roots, and
those of the threads it starts, hang below the span that started it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any

from tracefill.context import Scope, current, extract, scope
from tracefill.handoff.child_environment import VARIABLES, carried, with_context
from tracefill.wrapping import Patches

__all__ = ["patch", "unpatch"]

OPT_IN = True

_patches = Patches()
_joined: Scope | None = None


def _takes_env(position: int) -> Any:
    """For a function whose argument at `position` is `env`."""

    def make(original: Any) -> Any:
        def start(*args: Any, **kwargs: Any) -> Any:
            if len(args) > position:
                args = (*args[:position], with_context(args[position]), *args[position + 1 :])
            else:
                kwargs["env"] = with_context(kwargs.get("env"))
            return original(*args, **kwargs)

        return start

    return make


def _execv(original: Any) -> Any:
    def execv(path: Any, argv: Any, /) -> Any:
        return os.execve(path, argv, with_context(None) or os.environ) if carried() else original(path, argv)

    return execv


def _system(original: Any) -> Any:
    def system(command: Any) -> Any:
        variables = carried()
        if not variables:
            return original(command)
        # The environment of this process is every thread's; the shell's own is this command's.
        exports = "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        return original(os.fsencode(exports) + b"\n" + os.fsencode(command))

    return system


def _join() -> None:
    global _joined
    left = extract({name.lower(): os.environ[name] for name in VARIABLES if name in os.environ})
    if left and not current():
        _joined = scope(left)
        _joined.__enter__()


def patch() -> None:
    _patches.wrap(subprocess.Popen, "__init__", _takes_env(11))
    for name in ("posix_spawn", "posix_spawnp", "execve"):
        if hasattr(os, name):
            _patches.wrap(os, name, _takes_env(2))
    _patches.wrap(os, "execv", _execv)
    if os.name == "posix":
        _patches.wrap(os, "system", _system)
    _join()


def unpatch() -> None:
    global _joined
    _patches.undo()
    if _joined is not None:
        _joined.__exit__(None, None, None)
        _joined = None
