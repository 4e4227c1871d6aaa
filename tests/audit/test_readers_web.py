"""Spans behind a URL: a real Jaeger by both of its query APIs, files on a web server, and servers of something else."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.audit.systems import INTERNAL, SECOND, SERVER, Span, System, table
from tests.audit.test_readers_formats import as_told, content
from tests.audit.written import FILES, batches, otlp_json
from tracefill.audit.readers import SourceError, jaeger_api, read

if TYPE_CHECKING:
    from tests.servers.jaeger import Jaeger


def send(jaeger: Jaeger, spans: list[Span]) -> None:
    for batch in batches(spans):
        body = json.dumps(otlp_json(batch)).encode()
        urllib.request.urlopen(urllib.request.Request(jaeger.otlp, body, {"Content-Type": "application/json"})).read()


def with_prefix(spans: list[Span], prefix: str, begin: int) -> list[Span]:
    """The spans, by services and traces of their own, as if the traffic had begun then."""
    moved = begin - min(span.start for span in spans)
    own = hash(prefix) & 0xFFFF << 100
    return [
        replace(
            span,
            trace_id=span.trace_id ^ own,
            links=[(trace_id ^ own, span_id) for trace_id, span_id in span.links],
            service=f"{prefix}-{span.service}",
            start=span.start + moved,
            end=span.end + moved,
        )
        for span in spans
    ]


@pytest.fixture(scope="module")
def sent(jaeger: Jaeger) -> list[Span]:
    """What Jaeger was sent: ten minutes of a system, half an hour ago."""
    system = System(5, requests=15)
    system.run()
    spans = with_prefix(system.spans, "web", time.time_ns() - 1800 * SECOND)
    send(jaeger, spans)
    return spans


@pytest.mark.parametrize("path", ["", "/", "/api", "/api/traces", "/api/v3", "/api/v3/traces?lookback=2h"])
def test_jaeger_is_asked_for_every_service_and_tells_each_trace_once(
    path: str, jaeger: Jaeger, sent: list[Span]
) -> None:
    found = read([jaeger.url + path])
    told = sent if "v3" in path else as_told(sent, "jaeger.json")
    services = {span.service for span in sent}
    ours = [row for row in content(found) if row[11] in services]
    assert ours == content(table(told))


def test_jaegers_answers_are_asked_for_in_stretches_that_it_gives_whole(
    jaeger: Jaeger, sent: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaeger_api, "TRACES_A_QUERY", 10)
    whole = read([f"{jaeger.url}?service={sent[0].service}"])
    assert len(whole) > 100
    expected = {span.trace_id for span in sent if span.service == sent[0].service}
    assert {
        high << 64 | low
        for high, low in zip(whole["trace_id_high"].tolist(), whole["trace_id_low"].tolist(), strict=True)
    } == expected


def test_spans_that_jaeger_has_twice_are_found_twice(jaeger: Jaeger) -> None:
    now = time.time_ns() - 60 * SECOND
    span = Span(0xABC << 96 | 1, 1, kind=SERVER, service="twice", start=now, end=now + SECOND)
    send(jaeger, [span])
    send(jaeger, [span])
    for path in ("", "/api/v3"):
        assert len(read([f"{jaeger.url}{path}?service=twice"])) == 2


@pytest.mark.parametrize(
    "path", ["/api/traces/{}", "/api/v3/traces/{}", "/api/traces?service={}&limit=1500&lookback=1h"]
)
def test_a_trace_or_a_query_is_fetched_as_it_is(path: str, jaeger: Jaeger, sent: list[Span]) -> None:
    wanted = sent[0].service if "service" in path else f"{sent[0].trace_id:032x}"
    assert len(read([jaeger.url + path.format(wanted)])) > 0


def test_a_stretch_of_time_without_traces_is_empty(jaeger: Jaeger, sent: list[Span]) -> None:
    for path in ("", "/api/v3"):
        query = f"?service={sent[0].service}&since=2026-01-01T00:00:00Z&until=2026-01-01T01:00:00Z"
        assert len(read([jaeger.url + path + query])) == 0


def test_a_trace_that_is_not_there_is_an_error_in_jaegers_words(jaeger: Jaeger) -> None:
    with pytest.raises(SourceError, match=r"expected Jaeger's JSON, came 404 Not Found: .*trace not found"):
        read([f"{jaeger.url}/api/traces/{'1' * 32}"])


@pytest.mark.parametrize("query", ["lookback=soon", "lookback=2y", "since=yesterday"])
def test_a_time_that_nobody_can_read_is_an_error(query: str, jaeger: Jaeger) -> None:
    with pytest.raises(SourceError, match="expected lookback=2h or since=2026"):
        read([f"{jaeger.url}?service=x&{query}"])


# --- other servers ---


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("spans.")])
def test_a_file_of_any_format_may_lie_on_a_web_server(name: str, tmp_path: Path) -> None:
    spans = [Span(1 + number // 5, 1 + number, kind=INTERNAL) for number in range(60)]
    FILES[name](tmp_path / name, spans)
    told: list[int] = []
    with web_server(tmp_path) as url:
        found = read([f"{url}/{name}"], progress=lambda done, total, count: told.append(done))
    assert content(found) == content(table(as_told(spans, name)))
    assert told[-1] == (tmp_path / name).stat().st_size


ANSWERS: dict[str, tuple[str, Callable[[str], str]]] = {
    "a_web_page": ("<!doctype html><title>Shop</title>", lambda url: f"{url}/page"),
    "nothing": ("", lambda url: f"{url}/page"),
    "other_json": ('{"hello": 1}', lambda url: f"{url}/page"),
}


@pytest.mark.parametrize(("text", "of"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_format_of_spans_is_told_with_what_came(text: str, of: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "page").write_text(text)
    with web_server(tmp_path) as url, pytest.raises(SourceError) as caught:
        read([of(url)])
    assert str(caught.value).endswith(f"came {text!r}" if text else "came nothing")
    assert str(caught.value).startswith(f"{url}/page: expected spans in OTLP JSON lines, ")


def test_a_server_that_is_no_jaeger_is_told_apart(tmp_path: Path) -> None:
    with (
        web_server(tmp_path) as url,
        pytest.raises(SourceError, match=r"/api/services: expected .*, came 404 File not found"),
    ):
        read([url])
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "services").write_text("<html>")
    with web_server(tmp_path) as url, pytest.raises(SourceError, match=r"with the names of services, came '<html>'"):
        read([url])


def test_a_port_where_nobody_listens_is_told() -> None:
    with pytest.raises(
        SourceError, match=r"http://127.0.0.1:1/api/services: expected .*, but nothing answers: .*refused"
    ):
        read(["http://127.0.0.1:1"])


@pytest.mark.parametrize("url", ["ftp://host/spans", "s3://bucket/spans", "kafka://host"])
def test_a_scheme_that_we_do_not_speak_is_told(url: str) -> None:
    with pytest.raises(SourceError, match="expected http://, https:// or clickhouse://, came"):
        read([url])


def test_a_password_in_a_url_is_never_shown() -> None:
    with pytest.raises(SourceError) as caught:
        read(["http://me:s3cret@127.0.0.1:1/spans"])
    assert "s3cret" not in str(caught.value)
