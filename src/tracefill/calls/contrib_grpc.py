"""Contrib's gRPC clients, imported after install(): see `tracefill.calls.rpc_contrib`."""

from __future__ import annotations

from tracefill.calls.rpc_contrib import PACKAGE, step_aside, step_back

__all__ = ["LIBRARIES", "patch", "unpatch"]

LIBRARIES = (PACKAGE,)


def patch() -> None:
    step_aside()


def unpatch() -> None:
    step_back()
