"""The environment of a program that is started: TRACEPARENT, TRACESTATE and BAGGAGE of now, in a copy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tracefill.context import environment

__all__ = ["VARIABLES", "carried", "with_context"]

VARIABLES = ("TRACEPARENT", "TRACESTATE", "BAGGAGE")


def carried() -> dict[str, str]:
    """The variables of now; none where there is nothing to carry."""
    return environment({})


def with_context(env: Mapping[Any, Any] | None) -> Mapping[Any, Any] | None:
    """`env` (None: this process's) as it is where there is nothing to carry, else a copy with the position of now."""
    variables = carried()
    if not variables:
        return env
    base = os.environ if env is None else env
    return {name: value for name, value in base.items() if os.fsdecode(name).upper() not in VARIABLES} | variables
