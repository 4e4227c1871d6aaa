"""Tasks on uvloop's event loop: see `asyncio.py`.

import tracefill
tracefill.install(only=["uvloop"])
uvloop.run(main())
"""

from __future__ import annotations

from tracefill.handoff.tasks import create_task
from tracefill.wrapping import Patches

LIBRARIES = ("uvloop",)

_patches = Patches()


def patch() -> None:
    import uvloop

    _patches.wrap(uvloop.Loop, "create_task", create_task)


def unpatch() -> None:
    _patches.undo()
