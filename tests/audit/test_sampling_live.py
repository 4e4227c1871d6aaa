"""What a live collector serves, against the file."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.audit import sampling_server
from tests.audit.sampling_files import files
from tests.audit.sampling_server import StrategyServer
from tracefill.audit.sampling import live
from tracefill.audit.sampling.command import examine
from tracefill.audit.sampling.strategies import effective, parse

OLD = {"default_strategy": {"type": "probabilistic", "param": 0.5}}
NEW = {"service_strategies": [{"service": "orders", "type": "probabilistic", "param": 0.25}]}


@pytest.fixture(scope="module")
def server() -> Iterator[StrategyServer]:
    with sampling_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def laptop() -> Iterator[StrategyServer]:
    with sampling_server.running(default_probability=1) as server:
        yield server


def text(*documents: dict[str, Any]) -> bytes:
    """One file of several parts; the list of services comes last."""
    joined = {key: value for document in documents for key, value in document.items()}
    return json.dumps(joined | {"service_strategies": joined.get("service_strategies", [])}).encode()


def of_server(file: bytes, server: StrategyServer) -> list[Any]:
    url = server.sampling.removesuffix("/sampling")
    return [finding for finding in examine(parse(file), url=url).findings if finding.cause.startswith("server_")]


def test_a_server_that_has_loaded_the_file_agrees_with_it(server: StrategyServer) -> None:
    server.load(text(OLD, NEW))
    assert of_server(text(OLD, NEW), server) == []


def test_a_server_with_an_older_file_is_found_with_both_answers(server: StrategyServer) -> None:
    server.load(text(OLD))
    (finding,) = of_server(text(OLD, NEW), server)
    assert (finding.cause, finding.service, finding.conflict) == ("server_differs", "orders", True)
    assert finding.evidence["file"] == effective(parse(text(OLD, NEW)), "orders")
    assert finding.evidence["server"] == server.answer("orders")
    assert finding.share_dropped == 0


def test_what_a_server_drops_that_the_file_does_not_is_counted(server: StrategyServer) -> None:
    server.load(text(NEW))
    file = text(OLD | {"service_strategies": [{"service": "orders", "type": "probabilistic", "param": 1}]})
    orders, others = of_server(file, server)
    assert (orders.service, orders.share_dropped) == ("orders", 0.75)
    assert (others.service, others.share_dropped) == (None, pytest.approx(0.998))


def test_another_default_probability_of_the_server_is_recognised(laptop: StrategyServer) -> None:
    file = text({"service_strategies": [{"service": "a"}, {"service": "b", "type": "probabilistic", "param": 0.5}]})
    laptop.load(file)
    (finding,) = of_server(file, laptop)
    assert (finding.cause, finding.evidence["server"], finding.conflict) == ("server_default_differs", 1, False)
    report = examine(parse(file), url=laptop.sampling)
    assert report.default_probability == 1
    assert report.document()["served"]["services"]["a"] == laptop.answer("a")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(file=files())
def test_no_file_differs_from_what_it_makes_a_server_say(server: StrategyServer, file: str) -> None:
    server.load(file.encode())
    assert of_server(file.encode(), server) == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(file=files())
def test_the_document_holds_the_pages_of_the_server(server: StrategyServer, file: str) -> None:
    server.load(file.encode())
    served = examine(parse(file)).document()["served"]
    assert served["services"] == {service: server.answer(service) for service in served["services"]}
    assert served["others"] == server.answer("nobody at all")


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(live.LiveError, match="not a sampling server"):
        live.ask("http://127.0.0.1:1", "orders")


@pytest.mark.parametrize("url", ["collector:5778", "file:///etc/passwd", "ftp://collector", ""])
def test_what_is_no_address_of_a_server_is_an_error(url: str) -> None:
    with pytest.raises(live.LiveError, match="expected http"):
        live.ask(url, "orders")


@pytest.fixture
def other_server() -> Iterator[tuple[str, dict[str, tuple[int, str]]]]:
    """A server of another kind: its URL, and its pages by path, with their status."""
    pages: dict[str, tuple[int, str]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = pages.get(self.path.partition("?")[0], (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}", pages
        web.shutdown()


# Jaeger before version 2 and the Collector's extension write the type's name and leave zeros out.
BY_NAME = {
    "strategyType": "PROBABILISTIC",
    "probabilisticSampling": {"samplingRate": 0.5},
    "operationSampling": {
        "defaultSamplingProbability": 0.5,
        "perOperationStrategies": [{"operation": "/health", "probabilisticSampling": {}}],
    },
}
LISTED = {"type": "probabilistic", "param": 0.5} | {
    "operation_strategies": [{"operation": "/health", "type": "probabilistic", "param": 0}]
}


def test_the_page_of_an_older_server_is_read_where_it_is(other_server: tuple[str, dict[str, tuple[int, str]]]) -> None:
    url, pages = other_server
    pages["/api/sampling"] = (200, json.dumps(BY_NAME))
    file = parse(json.dumps({"default_strategy": LISTED}))
    assert [f.cause for f in examine(file, url=url).findings] == []
    assert [f.cause for f in examine(file, url=f"{url}/api/sampling").findings] == []


@pytest.mark.parametrize(
    "page",
    [(200, "<html>"), (200, "[]"), (200, "{}"), (200, "null"), (400, ""), (404, ""), (200, '{"strategyType": 0}')],
)
def test_a_server_of_another_kind_is_an_error(
    other_server: tuple[str, dict[str, tuple[int, str]]], page: tuple[int, str]
) -> None:
    url, pages = other_server
    pages["/sampling"] = pages["/api/sampling"] = page
    with pytest.raises(live.LiveError):
        live.ask(url, "orders")


def test_a_server_with_an_error_of_its_own_gives_nothing(
    other_server: tuple[str, dict[str, tuple[int, str]]],
) -> None:
    url, pages = other_server
    pages["/sampling"] = (500, "cannot marshall to JSON")
    assert live.ask(url, "orders") is None
    (finding,) = [f for f in examine(parse(text(OLD)), url=url).findings if f.conflict]
    assert (finding.cause, finding.evidence["server"]) == ("server_differs", None)
