"""What a live collector serves, and where it is something else than the file."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from tracefill._codec import TracefillError
from tracefill.audit.sampling.finding import Finding, number
from tracefill.audit.sampling.samplers import INITIAL_RATE, by_ratio, told
from tracefill.audit.sampling.strategies import Answer, Strategies, serve
from tracefill.audit.sampling.strategy_findings import dropped

NOBODY = "a service that no strategy names"
TIMEOUT_S = 10

Answers = Mapping[str, Answer | None]


class LiveError(TracefillError):
    """A collector that does not answer as a sampling server does; the message says how."""


class _NoSuchPage(LiveError):
    """404."""


def asked(url: str, services: Iterable[str]) -> dict[str, Answer | None]:
    """The answers of a collector to these services and to one that it does not know; see `ask`."""
    return {service: ask(url, service) for service in [*services, NOBODY]}


def ask(url: str, service: str) -> Answer | None:
    """The answer of a collector to a service; None where it has an error of its own (5xx).

    Raises LiveError where it does not answer, or with something else.
    """
    base = url.rstrip("/")
    if urlsplit(base).path.endswith("sampling"):
        return _answer(base, service)
    try:
        return _answer(f"{base}/sampling", service)
    except _NoSuchPage:  # before version 2 it was at another place
        return _answer(f"{base}/api/sampling", service)


def _answer(page: str, service: str) -> Answer | None:
    try:
        return Answer.of_page(_json(f"{page}?{urlencode({'service': service})}"))
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            return None
        raise (_NoSuchPage if error.code == 404 else LiveError)(f"{page}: {error}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LiveError(f"{page} is not a sampling server: {error}") from None


def _json(url: str) -> Any:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("expected http://HOST:PORT")
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        return json.load(response)


def compare(strategies: Strategies, answers: Answers, probability: float) -> tuple[float, list[Finding]]:
    """The server's default probability, as its answers show it, and where they are not those of the file."""
    candidates = [probability, *sorted(_probabilities(answers) - {probability})]
    best = min(candidates, key=lambda candidate: len(_differing(strategies, answers, candidate)))
    findings = [] if best == probability else [_other_default(probability, best)]
    expected = serve(strategies, best)
    differing = _differing(strategies, answers, best)
    return best, findings + [_difference(name, expected.answer(name), answers[name]) for name in differing]


def _differing(strategies: Strategies, answers: Answers, probability: float) -> list[str]:
    expected = serve(strategies, probability)
    return [name for name, answer in answers.items() if _shown(expected.answer(name)) != answer]


def _shown(answer: Answer) -> Answer | None:
    """An answer as the page shows it."""
    return None if answer.http is None else Answer.of_page(answer.http)


def _probabilities(answers: Answers) -> set[float]:
    rates = set()
    for answer in answers.values():
        if answer is not None:
            rates.add(answer.probability)
            operations = answer.operations
            rates |= set() if operations is None else {operations.rest, *(rate for _, rate in operations.rates)}
    return {rate for rate in rates if rate is not None and 0 <= rate <= 1}


def _other_default(probability: float, found: float) -> Finding:
    return Finding(
        "server_default_differs",
        f"the server's default probability is {number(found)}, not {number(probability)}: "
        "it decides wherever this file leaves something open",
        "give every service a rule, so that no server's default decides",
        rule="default_sampling_probability",
        evidence={"server": found, "taken": probability},
        config=f"default_sampling_probability: {number(probability)}",
        conflict=False,
    )


def _difference(name: str, file: Answer, server: Answer | None) -> Finding:
    who = "every other service" if name == NOBODY else name
    rates = [told(answer, None, by_ratio(INITIAL_RATE)).rate for answer in (file, server or file)]
    served = f"answers {who} with an error" if server is None else f"serves {who} something else than the file says"
    return Finding(
        "server_differs",
        f"the server {served}: {_in_short(server)}, not {_in_short(_shown(file))}",
        "have the server load this file (it reads it at its start, or by reload_interval)",
        service=None if name == NOBODY else name,
        rule="--url",
        share_dropped=dropped(*rates),
        evidence={"file": file.http, "server": None if server is None else server.http},
    )


def _in_short(answer: Answer | None) -> str:
    if answer is None:
        return "an error"
    rule = f"{number(answer.probability)}" if answer.probability is not None else f"{answer.per_second} a second"
    return rule if answer.operations is None else f"{rule} with {len(answer.operations.rates)} operations"
