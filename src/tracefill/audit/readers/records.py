"""Records: the pieces a file is made of, each whole or damaged.

A format's reader cuts blocks of bytes into records and reads one at a time; a record that is not exactly one document
of its format raises `DamagedRecord` with the reason in words, is counted, named by its number, and left behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import msgspec

from tracefill._codec import TracefillError
from tracefill.audit.readers.json_stream import UnexpectedEnd
from tracefill.audit.spans import Input


class SourceError(TracefillError):
    """A source that cannot be read at all; the text says what was expected and what came."""


class DamagedRecord(Exception):
    """A record that is not exactly one document of its format; the text says why."""


class CutShort(Exception):
    """The file ended, or stopped making sense, where more should have followed; the text says how."""


def read_records(records: Iterable[bytes], read_one: Callable[[bytes], None], file: str, told: Input) -> int:
    """Read every record, counting the damaged ones in `told`; the number of records."""
    number = 0
    try:
        for number, record in enumerate(records, 1):
            _is_read(record, read_one, file, number, told)
    except UnexpectedEnd as end:
        number += 1
        rest = end.args[0]
        if rest and _is_read(rest, read_one, file, number, told):
            number, rest = number + 1, b""
        if not rest:
            told.add_damaged(file, number, "not JSON: unexpected end, the list is not closed")
    except CutShort as cut:
        number += 1
        told.add_damaged(file, number, str(cut))
    return number


def _is_read(record: bytes, read_one: Callable[[bytes], None], file: str, number: int, told: Input) -> bool:
    try:
        read_one(record)
    except DamagedRecord as damage:
        told.add_damaged(file, number, str(damage))
        return False
    return True


def lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""The lines of a file, without their ends.

    >>> list(lines([b"a\nb", b"", b"c\n", b"d"]))
    [b'a', b'bc', b'd']
    """
    begun: list[bytes] = []
    try:
        for block in blocks:
            first, *others = block.split(b"\n")
            begun.append(first)
            if others:
                yield b"".join(begun)
                yield from others[:-1]
                begun = others[-1:]
    except CutShort:
        if not any(begun):
            raise
    if any(begun):  # also where the file was cut short: the line will show it
        yield b"".join(begun)


def parse_json(record: bytes) -> Any:
    """The record as Python objects. Raises `DamagedRecord` unless it is one JSON document in UTF-8.

    >>> parse_json(b'{"a": [1, NaN]}')
    Traceback (most recent call last):
    tracefill.audit.readers.records.DamagedRecord: not JSON: bare NaN
    """
    try:
        return json.loads(record.decode(), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise DamagedRecord(f"not JSON: {_complaint(record, error)}") from None
    except UnicodeDecodeError as error:
        raise DamagedRecord(_not_utf8(record, error)) from None
    except RecursionError:
        raise DamagedRecord("not JSON that anybody wrote: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise DamagedRecord(f"not JSON: {error}") from None


def _refuse(constant: str) -> NoReturn:
    raise DamagedRecord(f"not JSON: bare {constant}")


def _complaint(record: bytes, error: json.JSONDecodeError) -> str:
    if _is_cut_off(record):
        return f"unexpected end at column {len(error.doc) + 1}"
    if error.msg == "Extra data":
        return f"something follows the document at column {error.colno}"
    words = error.msg.removesuffix(" at")
    return f"{words[0].lower()}{words[1:]} at column {error.colno}"


def _is_cut_off(record: bytes) -> bool:
    try:
        msgspec.json.decode(record, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    return False


def _not_utf8(record: bytes, error: UnicodeDecodeError) -> str:
    if error.reason == "unexpected end of data":
        return f"not JSON: unexpected end at column {len(record) + 1}"
    return f"not UTF-8: byte 0x{record[error.start]:02x} at column {error.start + 1}"


JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def json_object(value: Any) -> dict[str, Any]:
    """The value, which has to be an object. Raises `DamagedRecord` when it is something else."""
    if not isinstance(value, dict):
        raise DamagedRecord(f"{_json_name(value)} where an object belongs")
    return value


def json_member(owner: dict[str, Any], name: str) -> dict[str, Any]:
    """The object in this member; an empty one when it is missing or null."""
    value = owner.get(name)
    return {} if value is None else json_object(value)


def json_objects(owner: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in this member's list; none when it is missing or null."""
    values = owner.get(name)
    if values is None:
        return []
    if not isinstance(values, list):
        raise DamagedRecord(f"{_json_name(values)} where a list belongs: {name}")
    return [json_object(value) for value in values]


def json_text(value: Any) -> str:
    """The string; empty when the value is anything else. Half a surrogate pair becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def json_integer(value: Any, otherwise: int = 0) -> int:
    """The number, told as a number or as decimal text.

    >>> json_integer("1767225600000000000"), json_integer(2.0), json_integer(1.5), json_integer([], -1)
    (1767225600000000000, 2, 0, -1)
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError:
        return otherwise


def _json_name(value: Any) -> str:
    return JSON_NAMES.get(type(value), "a number")
