"""Greenlets as the greenlet package makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import greenlet

import tracefill
from tests.contracts import BoundaryContract, PatchContract, tracer


class TestGreenlet(PatchContract, BoundaryContract):
    name = "greenlet"

    def owners(self) -> list[Any]:
        return [greenlet.greenlet]

    def cross(self, work: Callable[[], Any]) -> None:
        greenlet.greenlet(work).switch()

    def test_uninstall_leaves_no_patched_attribute(self) -> None:
        tracefill.uninstall()
        super().test_uninstall_leaves_no_patched_attribute()

    def test_install_twice_is_install_once(self) -> None:
        tracefill.uninstall()
        super().test_install_twice_is_install_once()

    def test_a_greenlet_is_what_it_was(self) -> None:
        with tracer.start_as_current_span("near"):
            made = greenlet.greenlet(divmod)
            assert made.switch(7, 2) == (3, 1)
            assert made.dead
            assert greenlet.greenlet(run=len, parent=greenlet.getcurrent()).switch("abc") == 3
            assert not greenlet.greenlet()
