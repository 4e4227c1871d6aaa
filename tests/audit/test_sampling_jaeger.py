"""What we say that Jaeger serves for a file is what a real Jaeger serves for it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audit import sampling_server
from tests.audit.sampling_files import SERVICES, files
from tests.audit.sampling_server import StrategyServer
from tracefill.audit.sampling.strategies import DEFAULT_PROBABILITY, UnreadableStrategies, effective, parse, serve


@pytest.fixture(scope="module")
def server() -> Iterator[StrategyServer]:
    with sampling_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def laptop() -> Iterator[StrategyServer]:
    """As Jaeger's all-in-one is configured."""
    with sampling_server.running(default_probability=1) as server:
        yield server


def assert_agree(
    server: StrategyServer, text: str, path: str, default_probability: float = DEFAULT_PROBABILITY
) -> None:
    server.load(text.encode())
    strategies = parse(text)
    for service in SERVICES:
        assert effective(strategies, service, default_probability) == server.answer(service, path), service


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=files(), path=st.sampled_from(["/sampling", "/api/sampling"]))
def test_answers_equal_those_of_jaeger_for_any_file(server: StrategyServer, text: str, path: str) -> None:
    assert_agree(server, text, path)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=files())
def test_answers_equal_those_of_a_jaeger_with_another_default_probability(laptop: StrategyServer, text: str) -> None:
    assert_agree(laptop, text, "/sampling", default_probability=1)


REFUSED = {
    "empty": b"",
    "two_documents": b"{} {}",
    "not_utf_8_mark": b"\xef\xbb\xbf{}",
    "trailing_comma": b'{"service_strategies": [],}',
    "nan": b'{"default_strategy": {"type": "probabilistic", "param": NaN}}',
    "number_too_large": b'{"default_strategy": {"param": 1e400}}',
    "number_as_text": b'{"default_strategy": {"param": "0.5"}}',
    "number_as_truth": b'{"default_strategy": {"param": true}}',
    "type_as_number": b'{"default_strategy": {"type": 1}}',
    "service_as_list": b'{"service_strategies": [[]]}',
    "services_as_object": b'{"service_strategies": {"orders": {"type": "probabilistic", "param": 1}}}',
    "default_as_list": b'{"default_strategy": []}',
    "list_of_rules": b'[{"service": "a"}]',
    "text": b'"nonsense"',
    "control_character": b'{"x": "\x01"}',
    "leading_zero": b'{"x": 01}',
    "python_number": b'{"default_strategy": {"param": 1_0}}',
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_jaeger_refuses_is_refused(server: StrategyServer, text: bytes) -> None:
    server.load(b'{"service_strategies": [{"service": "kept", "type": "probabilistic", "param": 0.25}]}')
    server.offer(text)
    assert server.answer("kept") == {"strategyType": 0, "probabilisticSampling": {"samplingRate": 0.25}}
    with pytest.raises(UnreadableStrategies):
        parse(text)


def named(name: bytes) -> bytes:
    return b'{"service_strategies": [{"service": "' + name + b'", "type": "probabilistic", "param": 0.5}]}'


TAKEN = {
    "half_a_character": named(b"a\xe4\xbd"),
    "half_a_surrogate": named(b"\\ud800b"),
    "surrogate_in_bytes": named(b"\xed\xa0\x80"),
    "whole_surrogates": named(b"\\ud83d\\ude00"),
    "whitespace": b'\r\n\t {"service_strategies": []}',
    "many_digits": b'{"service_strategies": [{"service": "a", "type": "ratelimiting", "param": 1%s}]}' % (b"0" * 300),
    "kelvin_sign": '{"\u212a": 1, "\u017fervice_\u017ftrategie\u017f": []}'.encode(),
    "ligature": '{"default_\ufb06rategy": {"type": "probabilistic", "param": 1}, "service_strategies": []}'.encode(),
    # Go writes the elements of a list over those of the one before it, and finds again what a shorter one left behind.
    "three_lists": b"""{"service_strategies": [{"service": "a", "type": "probabilistic", "param": 0.5},
        {"service": "\\ufffdb", "type": "probabilistic", "param": 0.25}],
        "service_strategies": [{"param": 0.125}], "service_strategies": [{}, {"param": 0.75}, {}]}""",
    "emptied_list": b"""{"service_strategies": [{"service": "a", "type": "probabilistic", "param": 0.5}],
        "service_strategies": [], "service_strategies": [{"param": 1}]}""",
}
NAMES = ["a", "a\ufffd", "a\ufffd\ufffd", "\ufffdb", "\ufffd" * 3, "\U0001f600"]


@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN)
def test_odd_texts_that_jaeger_takes_are_read_as_it_does(server: StrategyServer, text: bytes) -> None:
    server.load(text)
    strategies = parse(text)
    assert [effective(strategies, name) for name in NAMES] == [server.answer(name) for name in NAMES]


@pytest.mark.parametrize("text", [b"null", b"{}", b'{"default_strategy": null, "service_strategies": null}'])
def test_a_file_that_says_nothing_gives_the_servers_default(server: StrategyServer, text: bytes) -> None:
    server.offer(text)
    assert (
        server.answer("a")
        == effective(parse(text), "a")
        == {
            "strategyType": 0,
            "probabilisticSampling": {"samplingRate": DEFAULT_PROBABILITY},
        }
    )


@pytest.mark.parametrize("per_second", [2.7, 32768, 40000, 3e9])
def test_grpc_has_32_bits_for_a_limit(server: StrategyServer, per_second: float) -> None:
    text = json.dumps({"service_strategies": [{"service": "a", "type": "ratelimiting", "param": per_second}]})
    server.load(text.encode())
    limit = serve(parse(text)).answer("a").per_second
    assert limit is not None
    assert server.answer_by_grpc("a") == b"\x08\x01" + _message(3, b"\x08" + _varint(limit % 2**64))


def _message(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def _varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


NULLS = [
    b'{"service_strategies": [null]}',
    b'{"default_strategy": {"type": "probabilistic", "param": 1, "operation_strategies": [null]}}',
    b'{"service_strategies": [{"service": "a", "operation_strategies": [null]}]}',
]


@pytest.mark.parametrize("text", NULLS)
def test_a_null_in_a_list_ends_jaeger(text: bytes) -> None:
    assert effective(parse(text), "a") is None
    with sampling_server.running() as server:
        server.offer(text)
        assert server.has_ended()
