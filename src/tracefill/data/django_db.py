"""Django's databases (4.2 and later): what Django sends when it connects is no statement of the program's.

    import tracefill
    tracefill.install(only=["django_db", "sqlite3"])
    Order.objects.get(id=17)            # the driver's span "SELECT", and no PRAGMA beside it when the connection is new

The statements of the program are those of the driver, ours or contrib's. Receivers of `connection_created` are the program's code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracefill.data import statements
from tracefill.wrapping import Patches

LIBRARIES = ("django.db.backends.base.base",)

_patches = Patches()


def patch() -> None:
    from django.db.backends.base.base import BaseDatabaseWrapper

    _patches.wrap(BaseDatabaseWrapper, "connect", _covers)


def unpatch() -> None:
    _patches.undo()


def _covers(original: Any) -> Callable[..., Any]:
    """The backends' classes are imported late: each is covered when it connects for the first time."""

    def connect(self: Any, *arguments: Any, **named: Any) -> Any:
        if _patches.active:
            for kind in type(self).__mro__:
                for name in ("get_new_connection", "init_connection_state"):
                    if name in vars(kind):
                        _patches.wrap(kind, name, statements.quietly)
        return original(self, *arguments, **named)

    return connect
