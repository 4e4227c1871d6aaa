"""What the user names: files, folders, patterns and standard input, as blocks of bytes of a known format."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tracefill.audit.readers import jaeger, otlp_json, otlp_proto, zipkin
from tracefill.audit.readers.batch import SpanBatch
from tracefill.audit.readers.records import CutShort, SourceError
from tracefill.audit.readers.unpacking import is_packed, unpacked

BLOCK_BYTES = 1 << 22
HEAD_BYTES = 1 << 16
SHOWN_BYTES = 200

BlockReader = Callable[[Iterable[bytes], str, SpanBatch], int]

FORMATS: dict[str, BlockReader] = {
    "OTLP JSON lines": otlp_json.read_lines,
    "OTLP JSON": otlp_json.read_documents,
    "OTLP protobuf frames": otlp_proto.read_frames,
    "OTLP protobuf": otlp_proto.read_message,
    "Jaeger": jaeger.read,
    "Zipkin": zipkin.read,
}
"""Each reads blocks of bytes into a batch and returns the number of records; the name is for the user."""

TABLES = ("Parquet", "DuckDB")
"""Formats that are read by columns, from a file and not from a stream."""

OTLP_MEMBER = re.compile(rb'(?<!\\)"(?:resource(?:Spans|Metrics|Logs|Profiles)|scopeSpans)"\s*:')
JAEGER_MEMBER = re.compile(rb'(?<!\\)"(?:traceID|processes|data)"\s*:')
ZIPKIN_MEMBER = re.compile(rb'(?<!\\)"(?:traceId|localEndpoint)"\s*:')


def expand(name: str) -> list[Path]:
    """The files that a path, a folder or a pattern names, in order. Raises `SourceError` when there is none.

    >>> expand("nowhere/*.jsonl")
    Traceback (most recent call last):
    tracefill.audit.readers.records.SourceError: nowhere/*.jsonl: no such file or folder
    """
    path = Path(name)
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _is_data(file.relative_to(path)) and file.is_file()]
    elif path.exists():
        return [path]
    else:
        found = [Path(file) for file in sorted(glob.glob(name, recursive=True)) if os.path.isfile(file)]
    if not found:
        raise SourceError(f"{name}: {'the folder is empty' if path.is_dir() else 'no such file or folder'}")
    return found


def _is_data(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def recognise(head: bytes) -> str | None:
    """The format of what begins like this, by its content; None when it looks like none of them.

    >>> recognise(b'{"resourceSpans":[]}'), recognise(b'[{"traceId":"1"}]'), recognise(b"# Notes"), recognise(b"PAR1")
    ('OTLP JSON lines', 'Zipkin', None, 'Parquet')
    """
    if head.startswith(b"PAR1"):
        return "Parquet"
    if head[8:12] == b"DUCK":
        return "DuckDB"
    if head.startswith(b"\0"):
        return "OTLP protobuf frames"
    return _json_format(head.lstrip()) or ("OTLP protobuf" if head.startswith(b"\x0a") else None)


def _json_format(head: bytes) -> str | None:
    if OTLP_MEMBER.search(head):
        return "OTLP JSON" if head.partition(b"\n")[0].strip() in (b"{", b"[") else "OTLP JSON lines"
    if head.startswith(b"[") and (ZIPKIN_MEMBER.search(head) or head[1:].lstrip().startswith(b"]")):
        return "Zipkin"
    if head.startswith(b"{") and JAEGER_MEMBER.search(head):
        return "Jaeger"
    return None


def file_blocks(path: Path, tick: Callable[[int], None]) -> Iterator[bytes]:
    """The file's text, unpacked; `tick` is told how many bytes of the file each step took."""
    with path.open("rb") as file:
        yield from stream_blocks(file, tick)


def stream_blocks(file: BinaryIO, tick: Callable[[int], None]) -> Iterator[bytes]:
    """The stream's text, unpacked; `tick` as in `file_blocks`."""
    return _without_mark(unpacked(counted(iter(lambda: file.read(BLOCK_BYTES), b""), tick)))


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Some editors put U+FEFF in front of a file in UTF-8."""
    yield next(blocks, b"").removeprefix(b"\xef\xbb\xbf")
    yield from blocks


def counted(blocks: Iterable[bytes], tick: Callable[[int], None]) -> Iterator[bytes]:
    """The same blocks; `tick` is told the length of each when it has been used."""
    for block in blocks:
        yield block
        tick(len(block))


def range_blocks(path: Path, start: int, stop: int, tick: Callable[[int], None]) -> Iterator[bytes]:
    """The lines that begin in this range of a plain file's bytes."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        lines = _lines_up_to(stop, file, tick)
        yield from lines if start else _without_mark(lines)


def _lines_up_to(stop: int, file: BinaryIO, tick: Callable[[int], None]) -> Iterator[bytes]:
    last = b"\n"
    while (left := stop - file.tell()) > 0 and (block := file.read(min(left, BLOCK_BYTES))):
        yield block
        tick(len(block))
        last = block[-1:]
    if last != b"\n":
        rest = file.readline()
        yield rest
        tick(len(rest))


def read_stream(blocks: Iterable[bytes], file: str, batch: SpanBatch, otherwise: str = "") -> None:
    """Read blocks whose format only their beginning tells.

    Raises `SourceError` when it tells of none, unless there is one to take `otherwise`, or of columns.
    """
    blocks = iter(blocks)
    begin = b""
    while len(begin) < HEAD_BYTES and (block := next(blocks, b"")):
        begin += block
    kind = recognise(begin) or otherwise
    if kind not in FORMATS:
        raise SourceError(f"{file}: expected spans in {', '.join(FORMATS)}; came {kind or begins(begin)}")
    FORMATS[kind](itertools.chain([begin], blocks), file, batch)


def begins(text: bytes) -> str:
    """How a text begins, for people."""
    shown = " ".join(text[:SHOWN_BYTES].decode(errors="replace").split())
    return repr(shown) if shown else "nothing"


def head_of(path: Path) -> bytes:
    """How the file begins, unpacked; empty when there is nothing in it, or nothing that can be unpacked."""
    with path.open("rb") as file:
        head = b""
        with suppress(CutShort):
            for block in _without_mark(unpacked([file.read(HEAD_BYTES)])):
                head += block
        return head[:HEAD_BYTES]


def is_plain(path: Path) -> bool:
    """Whether the file can be read from its middle, because it is not compressed."""
    with path.open("rb") as file:
        return not is_packed(file.read(4))
