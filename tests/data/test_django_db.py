"""What it does is shown in processes of their own (tests/boundaries/data.py): Django takes one configuration a process."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("django")

from django.db.backends.base.base import BaseDatabaseWrapper

from tests.contracts import PatchContract


class TestDjangoDatabases(PatchContract):
    name = "django_db"

    def owners(self) -> list[Any]:
        return [BaseDatabaseWrapper]
