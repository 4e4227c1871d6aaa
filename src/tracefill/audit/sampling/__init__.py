"""``tracefill sampling``: where the sampling rules of a system drop spans in silence, by which rule, and what share.

It compares what a strategies file says with what Jaeger serves for it, with the samplers of the services, with what a
live collector serves (``--url``) and with what exported spans show (``--spans``).

The document of ``--json``, version 1 (within it fields are added, never renamed or given another meaning)::

    schema      "tracefill.sampling/1"
    input       strategies, default_sampling_probability, url, spans (how many; null: none asked for), calls_known
    served      services: for each known name the page that Jaeger answers at /sampling?service=NAME, null where it
                answers with an error; others: the page for every other name
    services    service, sampler (the setting), given (false: taken to ask Jaeger and to follow its caller),
                parent_based, rules: operation (null: any other), rate or max_traces_per_second
    calls       from, to: the calls known of, from --call and from the spans
    chains      for each service where traces begin and each of its rules: from, operation, services, recorded (the
                share of its traces that it records), whole (the share that all these services record)
    findings    cause, conflict, what, service, operation, from (the caller), rule, share_dropped, evidence (numbers),
                cure: text, config
    conflicts   how many of the findings are conflicts
    corrected   the strategies file that does what this one was meant to do (what --fix writes)

Shares and rates are 0..1; null where only the traffic could tell. The causes, with their meaning, are
:data:`tracefill.audit.sampling.finding.CAUSES`.
"""

from tracefill.audit.sampling.command import add_arguments, run

__all__ = ["add_arguments", "run"]
