"""JSON of any size, read one value at a time.

The stream only finds where a value ends (brackets counted, strings stepped over, a block at a time in numpy); whether
the value is JSON is for whoever decodes it to say. So a damaged element costs itself and not the rest of the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

NOT_SPACE = re.compile(rb"[^ \t\r\n]")
QUOTE, BACKSLASH = ord('"'), ord("\\")
IS_MARK = np.isin(np.arange(256), list(b"[]{},:"))
DEEPER = np.isin(np.arange(256), list(b"[{")).astype(np.int64) - np.isin(np.arange(256), list(b"]}"))


class UnexpectedEnd(ValueError):
    """The text ended inside a value; ``args[0]`` is what there was of the value."""


class JsonStream:
    """The values of a JSON text, one after another, as bytes.

    >>> stream = JsonStream([b'{"total": 2, "data": [{"a": "]"}, [', b'1, 2]], "errors": null}'])
    >>> stream.enter(b"{"), stream.enter_member("data")
    (True, True)
    >>> list(stream.elements())
    [b'{"a": "]"}', b'[1, 2]']
    """

    def __init__(self, blocks: Iterable[bytes]):
        self._blocks = iter(blocks)
        self._text = b""
        self._at = 0
        self._level = 0  # brackets stepped into
        self._commas = True  # whether commas and colons end a value
        self._marks = _Marks()
        self._ends: Iterator[int] = iter(())

    def peek(self) -> bytes:
        """The next byte that is no white space; empty at the end of the text."""
        while not (found := NOT_SPACE.search(self._text, self._at)):
            self._at = len(self._text)
            if not self._more():
                return b""
        self._at = found.start()
        return found.group()

    def enter(self, bracket: bytes) -> bool:
        """Step over this bracket when it is the next thing; False when something else is."""
        if self.peek() != bracket:
            return False
        self._at += 1
        self._level += int(DEEPER[ord(bracket)])
        self._find_ends()
        return True

    def enter_member(self, name: str) -> bool:
        """Step into the list that this member of the object holds; False at the object's end, when none does."""
        while not self.enter(b"}"):
            key = self._value()
            if self.peek() == b":":
                self._at += 1
                if key == b'"%s"' % name.encode() and self.enter(b"["):
                    return True
                self._value()
            self._separate(b"}")
        return False

    def elements(self) -> Iterator[bytes]:
        """What is left of the list stepped into. Raises `UnexpectedEnd` when the text ends before the list does."""
        while not self.enter(b"]"):
            yield self._value()
            self._separate(b"]")

    def documents(self) -> Iterator[bytes]:
        """Whole objects and lists, as they follow each other. Raises `UnexpectedEnd` when the last is cut off."""
        self._commas = False
        while self.peek():
            self._find_ends()
            yield self._value() + self._text[self._at : self._at + 1]
            self._at += 1

    def _separate(self, closing: bytes) -> None:
        """Step over the comma, or over a mark that has no business here; else nothing would move on."""
        if self.peek() not in (closing, b""):
            self._at += 1

    def _value(self) -> bytes:
        """The text up to the next comma or colon of this level, or to the bracket that closes the level."""
        while (end := next((end for end in self._ends if end >= self._at), None)) is None:
            if not self._more():
                rest, self._at = self._text[self._at :], len(self._text)
                raise UnexpectedEnd(rest)
        begin, self._at = self._at, end
        return self._text[begin:end].rstrip()

    def _more(self) -> bool:
        block = next(self._blocks, b"")
        self._text, self._at = self._text[self._at :] + block, 0
        self._marks.scan(block, len(self._text) - len(block))
        self._find_ends()
        return bool(block)

    def _find_ends(self) -> None:
        """Where values of this level may end; of documents only the last bracket is an end."""
        ends = self._marks.between(self._level) if self._commas else self._marks.closing(0)
        self._ends = iter(ends[np.searchsorted(ends, self._at) :].tolist())


class _Marks:
    """Where the last block of the text has brackets, commas and colons outside of strings, and how deep they are."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.scan(b"", 0)

    def scan(self, block: bytes, begin: int) -> None:
        """Take the block that follows; `begin` is its place in the text."""
        characters = np.frombuffer(block, np.uint8)
        positions = np.flatnonzero(IS_MARK[characters] & ~self._inside_strings(block))
        self._characters = characters[positions]
        depths = np.cumsum(DEEPER[self._characters]) + self._depth
        self._depth = int(depths[-1]) if len(depths) else self._depth
        self._depths, self._positions = depths, positions + begin

    def between(self, level: int) -> npt.NDArray[np.int64]:
        """The places of this level's commas and colons, and of the brackets that close it."""
        parting = (self._depths == level) & (DEEPER[self._characters] == 0)
        places: npt.NDArray[np.int64] = self._positions[parting | self._closes(level - 1)]
        return places

    def closing(self, level: int) -> npt.NDArray[np.int64]:
        """The places of the brackets after which no deeper one is open."""
        return self._positions[self._closes(level)]

    def _closes(self, level: int) -> npt.NDArray[np.bool_]:
        closes: npt.NDArray[np.bool_] = (self._depths <= level) & (DEEPER[self._characters] < 0)
        return closes

    def _inside_strings(self, block: bytes) -> npt.NDArray[np.bool_]:
        if self._escaped and block:
            block = b"_" + block[1:]
        if b"\\" in block:  # pairs first: what then still stands before a quote escapes it
            block = block.replace(b"\\\\", b"__")
            self._escaped = block.endswith(b"\\")
            block = block.replace(b'\\"', b"__")
        else:
            self._escaped = self._escaped and not block
        quotes = np.frombuffer(block, np.uint8) == QUOTE
        inside = np.logical_xor.accumulate(quotes) ^ self._in_string
        self._in_string = bool(inside[-1]) if len(inside) else self._in_string
        return inside
