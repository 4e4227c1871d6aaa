"""Id generators: `OTEL_PYTHON_ID_GENERATOR=tracefill`, or `tracefill_time_ordered`.

>>> from tracefill.ids import FastIdGenerator
>>> 0 < FastIdGenerator().generate_trace_id() < 2**128
True

Safe to use from many threads, and after a fork: the child takes new entropy before its first id. Neither is a source of secrets.
"""

from __future__ import annotations

from tracefill._codec import RandomIds, TimeOrderedIds

try:  # the SDK insists on its own base class; without the SDK nobody asks for one
    from opentelemetry.sdk.trace.id_generator import IdGenerator
except ImportError:
    IdGenerator = object  # type: ignore[assignment,misc]

__all__ = ["FastIdGenerator", "TimeOrderedIdGenerator"]


class FastIdGenerator(RandomIds, IdGenerator):
    """Random ids; says so, and the SDK then sets the W3C random flag (level 2, section 3.2.2.5.2)."""


class TimeOrderedIdGenerator(TimeOrderedIds, IdGenerator):
    """Trace ids that sort by the time they were made: 48 bits of Unix milliseconds, then 80 random bits.

    The last 56 bits are random, as the W3C random flag and ratio samplers ask.
    """
