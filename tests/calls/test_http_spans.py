"""The names and attributes that servers and clients share."""

from __future__ import annotations

import time

import pytest

from tracefill.calls import http_spans


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://shop/orders", "http://shop/orders"),
        ("http://me@shop/orders", "http://REDACTED:REDACTED@shop/orders"),
        ("http://me:p@ss@shop/orders", "http://REDACTED:REDACTED@shop/orders"),
        ("http://shop/orders@home", "http://shop/orders@home"),
        ("http://shop?mail=a@b", "http://shop?mail=a@b"),
        ("/orders?sig=1&Signature=2&signature=3", "/orders?sig=REDACTED&Signature=REDACTED&signature=3"),
        ("/orders?design=1&x-sig=2", "/orders?design=1&x-sig=2"),
        ("/orders?X-Amz-Signature=1#sig=2", "/orders?X-Amz-Signature=REDACTED#sig=2"),
        ("", ""),
    ],
)
def test_secrets_of_a_url_are_not_shown(url: str, shown: str) -> None:
    assert http_spans.redacted_url(url) == shown


def test_redaction_is_linear_in_the_length() -> None:
    started = time.perf_counter()
    http_spans.redacted_url("http://h/?" + "sig=&" * 200_000 + "@" * 200_000)
    assert time.perf_counter() - started < 10


def test_excluded_urls_of_the_library_win_over_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", "everything")
    monkeypatch.setenv("OTEL_PYTHON_FLASK_EXCLUDED_URLS", "health, metrics$")
    flask, django = http_spans.excluded_urls("FLASK"), http_spans.excluded_urls("DJANGO")
    assert flask is not None
    assert django is not None
    assert flask("http://shop/health")
    assert flask("http://shop/metrics")
    assert not flask("http://shop/metrics/everything")
    assert django("http://shop/everything")


def test_an_empty_variable_excludes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXCLUDED_URLS", " , ")
    assert http_spans.excluded_urls("FLASK") is None


def test_captured_headers_hide_secrets_and_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "x-.*,Cookie")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", "x-card")
    capture = http_spans.header_capture("server", "request")
    assert capture is not None
    assert capture(
        [(b"x-long", b"v" * 5000), (b"X-Card", b"4111"), (b"cookie", b"a=b"), (b"host", b"shop"), (b"x-bytes", b"\xff")]
    ) == {
        "http.request.header.x-long": ["v" * 1024],
        "http.request.header.x-card": ["[REDACTED]"],
        "http.request.header.cookie": ["[REDACTED]"],
        "http.request.header.x-bytes": ["\xff"],
    }


def test_nothing_is_captured_unless_asked() -> None:
    assert http_spans.header_capture("client", "response") is None
