"""Header values made up from the vectors: as they are, changed in a few places, or hostile from the start."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.codec.reference import ORACLES, Position, Value
from tests.codec.vectors import load

# Delimiters, the neighbours of digits and letters in ASCII, white space, controls, and digits and letters beyond ASCII.
LETTERS = [*"-:;,=%.?+_*/@`gGzZ{[|~\"'\\", *"0123456789abcdefABCDEFdDtTrR", *" \t\n\r\v\f\0\x1f\x7f"]
LETTERS += [*"\x80\xa0\xff", *"\u0661\u0663\uff11\uff41\U0001d7ce\xb2\u2167\u0131\u017f", "\ud800", "\ufeff"]
FRAGMENTS = [
    "00-",
    "-01",
    "-d",
    "%3A",
    "%3a",
    "%20",
    "%",
    ";p=1",
    "Root=",
    ";Sampled=?",
    "_dd.p.tid=",
    "true",
    "0" * 16,
]
DECISIONS = ["defer", "deny", "accept", "debug"]
LONGEST_SEED = 1500  # the vectors have longer ones; they are slow to mutate and are tested by themselves


class Inputs:
    """Values for one format, or header lines for `baggage`: `next_values()` gives the next of them."""

    def __init__(self, name: str, random: Random) -> None:
        self.name, self.random = name, random
        self.seeds = [tuple(vector["values" if "values" in vector else "headers"]) for vector in load(name)]
        if name == "tracecontext":
            self.seeds += [(self.seeds[0][0], vector["values"][0]) for vector in load("tracestate")]
        self.seeds = [seed for seed in self.seeds if all(len(value or "") <= LONGEST_SEED for value in seed)]
        self.pieces: list[Value] = [value for seed in self.seeds for value in seed if value]

    def next_values(self) -> tuple[Value, ...]:
        kind = self.random.randrange(10)
        values = self.written() if kind < 4 and self.name in ORACLES else self.random.choice(self.seeds)
        if kind in (0, 1, 2):
            return values
        if kind == 9:
            return tuple(self.hostile() for _ in values)
        return self.mutated(values)

    def written(self) -> tuple[Value, ...]:
        """What the oracle writes for ids and decisions of all sizes."""
        random = self.random
        trace_id, span_id = (
            random.getrandbits(random.choice((8, 64, 65, 128))),
            random.getrandbits(random.choice((4, 64))),
        )
        decision, flags = random.choice(DECISIONS), random.choice((0, 1, 2, 3, 9, 255))
        return ORACLES[self.name].encode(Position(trace_id, span_id, decision, flags, None, "congo=t61rcWkgMzE,rojo=1"))

    def mutated(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        changed = list(values)
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            place = self.random.randrange(len(changed)) if changed else 0
            changed[place : place + 1] = [self.edited(changed[place] if changed else None)]
        return tuple(changed)

    def edited(self, value: Value) -> Value:
        if value is None or self.random.random() < 0.03:
            return self.random.choice([None, "", *self.pieces])
        if isinstance(value, bytes):
            return self.edited_text(value.decode("latin-1")).encode("latin-1", "replace")
        text = self.edited_text(value)
        return text if self.random.random() < 0.9 else text.encode("utf-8", "surrogatepass")

    def edited_text(self, text: str) -> str:
        """One edit of the kinds that parsers get wrong."""
        start, end = sorted(self.random.randrange(len(text) + 1) for _ in range(2))
        letter = self.random.choice(LETTERS)
        edits: list[Callable[[], str]] = [
            lambda: text[:start] + letter + text[start + 1 :],
            lambda: text[:start] + letter + text[start + 1 :],
            lambda: text[:start] + letter + text[start:],
            lambda: text[:start] + text[start + 1 :],
            lambda: text[:start] + text[end:],
            lambda: text[:end] + text[start:],
            lambda: text[:start],
            lambda: text[start:],
            lambda: text[:start] + text[start:end].swapcase() + text[end:],
            lambda: text[:start] + self.random.choice(FRAGMENTS) + text[start:],
            lambda: letter + text,
            lambda: text + letter,
            lambda: text + "," + text,
            lambda: text[:start] + "0" * (end - start) + text[end:],
            lambda: text.replace("-", letter),
        ]
        return self.random.choice(edits)()

    def hostile(self) -> Value:
        size = self.random.choice((0, 1, 15, 16, 17, 27, 29, 53, 55, 56, 300, 9000))
        if self.random.random() < 0.5:
            return self.random.randbytes(size)
        return self.random.choice(LETTERS) * size if size > 100 else "".join(self.random.choices(LETTERS, k=size))
