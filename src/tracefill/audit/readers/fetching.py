"""Answers of HTTP servers, as blocks of bytes."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit, urlunsplit

from tracefill.audit.readers.records import SourceError
from tracefill.audit.readers.sources import begins

BLOCK_BYTES = 1 << 16
TIMEOUT_SECONDS = 600  # a database may think for minutes before it says anything


class NotFound(SourceError):
    """The server answered 404."""


def fetch(
    url: str, expected: str, *, headers: Mapping[str, str] | None = None, data: bytes | None = None
) -> Iterator[bytes]:
    """The body of the answer, as it comes; asked for by POST when there is data to send.

    Raises `SourceError`, before the first block, when nobody answers or the answer is an error; `expected` says in it
    what we came for.
    """
    request = urllib.request.Request(url, data, {"Accept": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            while block := answer.read(BLOCK_BYTES):
                yield block
    except urllib.error.HTTPError as error:
        kind = NotFound if error.code == http.HTTPStatus.NOT_FOUND else SourceError
        raise kind(f"{shown(url)}: expected {expected}, came {error.code} {error.reason}: {_said(error)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise SourceError(f"{shown(url)}: expected {expected}, but nothing answers: {reason}") from None


def shown(url: str) -> str:
    """The URL without user and password.

    >>> shown("clickhouse://reader:secret@db:8123/otel")
    'clickhouse://db:8123/otel'
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return begins(error.read(BLOCK_BYTES))
    except (OSError, http.client.HTTPException):
        return "nothing"
