"""``tracefill doctor``: what loses the context in this environment, and the cure.

It asks the things themselves rather than their settings: the propagator is given headers of every format, the sampler
traces to decide about, the id generator for ids, and an application a request.

| module            | what it looks at                                                             |
|-------------------|------------------------------------------------------------------------------|
| `settings.py`     | the variables that name plug-ins: is there one of that name                  |
| `headers.py`      | the propagator: what it reads and writes, and what arrives that nobody reads |
| `provider.py`     | provider, resource, sampler, ids                                             |
| `integrations.py` | contrib's instrumentors, our patches, the libraries that neither knows       |
| `requests.py`     | what becomes of a request to an application                                  |
| `complaints.py`   | what OpenTelemetry logged while the application was being imported           |
| `metrics.py`      | the core's counters as OpenTelemetry metrics                                 |

In a running service:

    from tracefill.audit.doctor import examine

    for finding in examine().findings:
        log.warning("%s: %s; cure: %s", finding.cause, finding.what, finding.cure)
"""

from tracefill.audit.doctor.command import add_arguments, run
from tracefill.audit.doctor.examination import Examination, examine
from tracefill.audit.doctor.metrics import observe

__all__ = ["Examination", "add_arguments", "examine", "observe", "run"]
