"""One finding of ``tracefill sampling``: what drops spans in silence, where, by which rule, what share, and the cure.

The causes are a closed list. A *conflict* is a rule that does not do what it says, or two that contradict each other;
a *note* says what is easily overlooked. `share_dropped` is the share of what the rule promises that is dropped all the
same (0..1; of a limit: of the traces within it), None where it depends on the traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CAUSES = {
    # in the file alone
    "unknown_type": "Jaeger knows no such type, so it gives the server's default probability",
    "param_missing": "a rule without param has the param 0",
    "limit_cut": "Jaeger cuts a rate limit down to a whole number",
    "limit_out_of_range": "a rate limit that Jaeger cannot tell its clients",
    "probability_out_of_range": "clients refuse a probability that is not between 0 and 1",
    "operation_limit_ignored": "Jaeger leaves out the rate limit of an operation",
    "limit_switched_off": "a list of operations switches the rate limit of the service off",
    "service_repeated": "of two rules for one service the last wins",
    "operation_repeated": "of two rules for one operation the last wins",
    "unnamed_entry": "a rule without a name applies to nothing",
    "key_repeated": "a key that is given twice: the later is written over the earlier",
    "key_unknown": "Jaeger passes over a key that it does not know",
    "null_entry": "a null in a list ends Jaeger's process",
    "default_missing": "services without a rule get the server's default probability",
    "default_operation_applies": "an operation of the default strategy is everybody's",
    # the file against the services
    "name_differs": "names are compared to the letter",
    "never_seen": "a rule for a name that the spans never show",
    "strategy_not_asked": "the service does not ask Jaeger, so its strategy has no effect",
    "sampler_unknown": "no SDK knows this sampler",
    "argument_invalid": "the SDK cannot use the argument of the sampler",
    "argument_missing": "a sampler without the argument that it needs",
    "remote_in_python": "OpenTelemetry's Python SDK has no remote sampler",
    # services against each other
    "not_parent_based": "a service decides for itself about traces that its caller has decided about",
    "independent_decisions": "two samplers that draw from different bits of the id, or from none, seldom agree",
    "decided_upstream": "the service begins no trace, so its own rule is never asked",
    "unequal_roots": "the same service is recorded at different rates, by where its traces begin",
    "nothing_recorded": "the service where traces begin records none",
    # the file against the server, the rules against the spans
    "server_differs": "the server serves something else than the file",
    "server_default_differs": "the server has another default probability",
    "seen_other_rate": "the ids of the traces that begin here show another rate",
    "seen_own_decision": "the ids of the missing spans show a sampler that does not ask its caller",
    "seen_torn": "the ids of the torn traces show a caller that keeps fewer",
}


@dataclass(frozen=True)
class Finding:
    """See the module; `rule` is a path in the file or a setting, `config` the line to change."""

    cause: str
    what: str
    cure: str
    service: str | None = None
    operation: str | None = None
    caller: str | None = None
    rule: str | None = None
    share_dropped: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None
    conflict: bool = True

    def __post_init__(self) -> None:
        assert self.cause in CAUSES, self.cause

    def to_json(self) -> dict[str, Any]:
        """The finding as the document has it."""
        return {
            "cause": self.cause,
            "conflict": self.conflict,
            "what": self.what,
            "service": self.service,
            "operation": self.operation,
            "from": self.caller,
            "rule": self.rule,
            "share_dropped": self.share_dropped,
            "evidence": dict(self.evidence),
            "cure": {"text": self.cure, "config": self.config},
        }


def percent(share: float) -> str:
    """A share in per cent, never rounded up to all or down to none.

    >>> percent(0.999), percent(0.0001), percent(1), percent(0.25)
    ('99.9 %', '0.01 %', '100 %', '25 %')
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    for digits in range(3, 8):
        text = f"{100 * share:.{digits}g}"
        if float(text) not in (0, 100):
            return f"{float(text):g} %"
    return f"{100 * share} %"


def number(value: float) -> int | float:
    """A whole number without its fraction, as one writes it.

    >>> number(2.0), number(0.5)
    (2, 0.5)
    """
    return int(value) if value == int(value) else value
