"""Sources behind a URL: a Jaeger, a ClickHouse, or a file of any format that a web server hands out."""

from __future__ import annotations

from urllib.parse import urlsplit

from tracefill.audit.readers import clickhouse, jaeger_api
from tracefill.audit.readers.batch import Tick
from tracefill.audit.readers.fetching import shown
from tracefill.audit.readers.records import SourceError
from tracefill.audit.spans import Spans

CLICKHOUSE_PORTS = (8123, 8443)


def read_url(url: str, tick: Tick) -> Spans:
    """The spans behind the URL. Raises `SourceError` when nobody answers there, or something else than expected."""
    parts = urlsplit(url)
    if parts.scheme in clickhouse.SCHEMES or (parts.scheme in ("http", "https") and parts.port in CLICKHOUSE_PORTS):
        return clickhouse.read_url(url, tick)
    if parts.scheme in ("http", "https"):
        return jaeger_api.read_url(url, tick)
    raise SourceError(f"{shown(url)}: expected http://, https:// or clickhouse://, came {parts.scheme}://")
