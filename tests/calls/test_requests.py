from __future__ import annotations

from typing import Any

import pytest
import requests
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.trace import StatusCode
from requests import get as get_imported_before

import tracefill
from tests.calls.client_contract import (
    ClientContract,
    Server,
    clients,
    only_client,
    server,
    traceparent_of,
    tracer,
)

__all__ = ["server"]

session_made_before = requests.Session()


class TestRequests(ClientContract):
    name = "requests"
    contrib = RequestsInstrumentor

    def owners(self) -> list[Any]:
        return [requests.Session, requests.sessions.SessionRedirectMixin, requests.sessions]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        return requests.get(url, headers=headers, timeout=30).status_code

    def test_what_was_there_before_install_is_traced(self, server: Server, spans: Any) -> None:
        get_imported_before(server.url, timeout=30)
        session_made_before.get(server.url, timeout=30)
        assert len(clients(spans)) == 2

    def test_prepared_request_sent_twice_is_sent_two_positions_and_not_changed(
        self, server: Server, spans: Any
    ) -> None:
        prepared = requests.Request("GET", server.url).prepare()
        with requests.Session() as session:
            for name in "ab":
                with tracer.start_as_current_span(name):
                    session.send(prepared)
        assert "traceparent" not in prepared.headers
        assert [server.headers("traceparent", i) for i in (0, 1)] == [[traceparent_of(s)] for s in clients(spans)]

    def test_request_made_in_a_response_hook_is_the_callers_own(self, server: Server, spans: Any) -> None:
        def hook(response: requests.Response, **_: Any) -> None:
            requests.get(server.url + "/token", timeout=30)

        with tracer.start_as_current_span("near") as near:
            requests.get(server.url, hooks={"response": hook}, timeout=30)
        assert [span.parent.span_id for span in clients(spans)] == [near.get_span_context().span_id] * 2
        assert len(server.received) == 2
        assert all(server.headers("traceparent", i) for i in (0, 1))

    def test_request_made_while_a_body_is_sent_is_a_span_of_its_own(self, server: Server, spans: Any) -> None:
        class Body:
            def __init__(self) -> None:
                self.left = [b"ab"]

            def __len__(self) -> int:
                return 2

            def read(self, *_: Any) -> bytes:
                requests.get(server.url + "/part", timeout=30)
                return self.left.pop() if self.left else b""

        requests.post(server.url, data=Body(), timeout=30)
        sent = {path: next(v for k, v in headers if k == "traceparent") for _, path, headers in server.received}
        assert len(set(sent.values())) == 2
        assert set(sent) == {"/", "/part"}

    def test_too_many_redirects_are_an_error_of_the_last_span_only(self, server: Server, spans: Any) -> None:
        with requests.Session() as session:
            session.max_redirects = 1
            with pytest.raises(requests.TooManyRedirects):
                session.get(server.url + "/redirect/3")
        assert [span.status.status_code for span in clients(spans)] == [StatusCode.UNSET] * 2

    def test_urls_that_are_excluded_are_left_alone(
        self, server: Server, spans: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import re

        from tracefill.calls import requests as integration

        monkeypatch.setattr(integration._client, "_excluded", re.compile("health").search)
        requests.get(server.url + "/health", timeout=30)
        assert clients(spans) == []
        assert server.headers("traceparent") == []

    def test_subclass_with_a_send_of_its_own_is_traced(self, server: Server, spans: Any) -> None:
        class Session(requests.Session):
            def send(self, request: Any, **kwargs: Any) -> Any:
                return super().send(request, **kwargs)

        with Session() as session:
            session.get(server.url)
        assert server.headers("traceparent") == [traceparent_of(only_client(spans))]

    def test_what_cannot_be_sent_fails_as_it_would_have(self) -> None:
        with pytest.raises(ValueError, match="PreparedRequest"):
            requests.Session().send(requests.Request("GET", "http://shop/"))
        assert "requests" in tracefill.installed()
