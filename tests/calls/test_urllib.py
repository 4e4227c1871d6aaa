from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any
from urllib.request import urlopen as urlopen_imported_before

import pytest
from opentelemetry.instrumentation.urllib import URLLibInstrumentor

from tests.calls.client_contract import ClientContract, Server, clients, server

__all__ = ["server"]

opener_made_before = urllib.request.build_opener()


class TestUrllib(ClientContract):
    name = "urllib"
    contrib = URLLibInstrumentor
    raises_for_status = True
    wraps_errors = True

    def owners(self) -> list[Any]:
        return [urllib.request.OpenerDirector]

    def get(self, url: str, headers: dict[str, str] | None = None) -> int:
        request = urllib.request.Request(url)
        request.headers = headers if headers is not None else {}
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()
            return int(response.status)

    def test_what_was_there_before_install_is_traced(self, server: Server, spans: Any) -> None:
        urlopen_imported_before(server.url, timeout=30).close()
        opener_made_before.open(server.url, timeout=30).close()
        assert len(clients(spans)) == 2

    def test_password_prompt_is_answered_beside_the_first_request(self, server: Server, spans: Any) -> None:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, server.url, "me", "secret")
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
        with pytest.raises(urllib.error.HTTPError):
            opener.open(server.url + "/status/401", timeout=30)
        assert len(clients(spans)) == len(server.received)

    def test_other_protocols_are_left_alone(self, spans: Any) -> None:
        with urllib.request.urlopen("data:text/plain,hello") as response:
            assert response.read() == b"hello"
        assert clients(spans) == []
