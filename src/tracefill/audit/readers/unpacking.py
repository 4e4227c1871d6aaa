"""Compressed files and frames, gzip and zstd, unpacked block by block."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from tracefill.audit.readers.records import CutShort, DamagedRecord, SourceError


def _zstd_module() -> Any:
    """Python 3.14 brings it, before that a package does; None when there is neither."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return import_module(name)
    return None


zstd = _zstd_module()
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PACKING_ERRORS = (zlib.error, zstd.ZstdError) if zstd else (zlib.error,)
UNPACKED_BYTES = 1 << 22  # of one packed block at a time: a small file may hold a very large one


def is_packed(head: bytes) -> bool:
    """Whether a file that begins like this is compressed."""
    return head.startswith(GZIP_MAGIC) or is_zstd(head)


def is_zstd(text: bytes) -> bool:
    return text.startswith(ZSTD_MAGIC)


def unpacked(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks as they are, or unpacked when the first says so.

    Raises `CutShort` where the compressed stream ends early or makes no sense.
    """
    blocks = iter(blocks)
    first = next(blocks, b"")
    if first.startswith(GZIP_MAGIC):
        yield from _unpack(first, blocks, _gzip, "gzip")
    elif is_zstd(first):
        yield from _unpack(first, blocks, _zstd, "zstd")
    else:
        yield first
        yield from blocks


def unpack_frame(frame: bytes) -> bytes:
    """What a zstd frame holds. Raises `DamagedRecord`."""
    try:
        return b"".join(_unpack(frame, iter(()), _zstd, "zstd"))
    except CutShort as cut:
        raise DamagedRecord(str(cut)) from None


def _unpack(text: bytes, blocks: Iterator[bytes], decompressor: Callable[[], Any], name: str) -> Iterator[bytes]:
    """Streams may follow each other, as `cat a.gz b.gz` makes them."""
    while text:
        stream = decompressor()
        while not stream.eof:
            hungry = getattr(stream, "needs_input", True)  # zlib keeps nothing back: it gives the rest of its input
            if hungry and not text and not (text := next(blocks, b"")):
                raise CutShort(f"unexpected end of the {name} stream")
            try:
                piece = stream.decompress(text, UNPACKED_BYTES)
            except PACKING_ERRORS as error:
                raise CutShort(f"not {name}: {error}") from None
            if piece:
                yield piece
            text = getattr(stream, "unconsumed_tail", b"")
        text = stream.unused_data.lstrip(b"\0") or next(blocks, b"")


def _gzip() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _zstd() -> Any:
    if zstd is None:
        raise SourceError("a file is compressed with zstd: pip install 'tracefill[audit]' (or unpack it with zstd -d)")
    return zstd.ZstdDecompressor()
