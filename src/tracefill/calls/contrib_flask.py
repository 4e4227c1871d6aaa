"""Contrib's Flask instrumentation: its span lasts as long as the response.

Contrib ends it when the view has returned: a streamed body, and what is done when the response is closed, come later.
"""

from __future__ import annotations

from tracefill.edge.adoption import adopt_contrib
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = ("opentelemetry.instrumentation.flask",)

_patches = Patches()


def patch() -> None:
    adopt_contrib(_patches, LIBRARIES[0])


def unpatch() -> None:
    _patches.undo()
