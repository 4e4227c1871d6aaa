"""The command ``tracefill doctor``: its arguments, the application it looks at, and what it prints."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import operator
import os
import sys
import traceback
from typing import Any

from tracefill.audit.doctor import complaints, request, settings
from tracefill.audit.doctor.examination import Examination, examined
from tracefill.audit.doctor.finding import Finding

HEALTHY, FINDINGS, UNREADABLE = 0, 1, 2

EXAMPLE = f"""\
examples:
  tracefill doctor
  tracefill doctor --app shop.web:app
  opentelemetry-instrument tracefill doctor --app "shop.web:create_app()" --json

Without --app it looks at what the variables (OTEL_*) and the installed packages
would give a program. With --app it imports the program's module and sends the
application one request (GET {request.PATH}, not exported).

exit code: 0 healthy, 1 findings, 2 the application could not be imported"""


class NotThere(Exception):
    """The application cannot be imported; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``tracefill doctor``."""
    parser.description = "What in this environment loses the context, and its cure."
    parser.epilog = EXAMPLE
    parser.add_argument("--app", metavar="MODULE:ATTR", help="an application, or a function that makes one: m:make()")
    parser.add_argument("--path", default=request.PATH, help="the path of the request (default: %(default)s)")
    parser.add_argument("--host", help="its Host header (default: one that Django allows, or localhost)")
    parser.add_argument("--no-request", action="store_true", help="import the application only")
    parser.add_argument("--json", action="store_true", help="print the document (schema tracefill.doctor/1)")


def run(arguments: argparse.Namespace) -> int:
    """Prints what was found; returns HEALTHY, FINDINGS or UNREADABLE."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever the application prints
            examination = _examined(arguments)
    except NotThere as error:
        print(f"tracefill doctor: {error}", file=sys.stderr)
        return UNREADABLE
    print(json.dumps(examination.document(), indent=2, default=str) if arguments.json else in_words(examination))
    return HEALTHY if examination.healthy else FINDINGS


def _examined(arguments: argparse.Namespace) -> Examination:
    broken = list(settings.findings())  # before anything of it is taken away
    with complaints.listening() as messages:
        settings.forget_unknown_propagators()
        app = _application(arguments.app) if arguments.app else None
        send = None if arguments.no_request else request.Request(arguments.path, arguments.host)
        return examined(broken, app, messages, send)


def _application(name: str) -> Any:
    """The application `module:attribute`, or what `module:attribute()` returns. Raises NotThere."""
    module, colon, attribute = name.partition(":")
    if not module or not colon or not attribute:
        raise NotThere(f"--app: expected MODULE:ATTR such as shop.web:app, found {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found = operator.attrgetter(attribute.removesuffix("()"))(importlib.import_module(module))
        return found() if attribute.endswith("()") else found
    except (Exception, SystemExit) as error:
        where = traceback.format_exception_only(error)[-1].strip()
        raise NotThere(f"--app {name}: {where}") from None


def in_words(examination: Examination) -> str:
    """What a terminal shows: the verdict, the findings each with its cure, the notes, what there is."""
    count = len(examination.findings)
    lines = [f"{count} finding{'' if count == 1 else 's'}" if count else "healthy: nothing here loses the context"]
    for finding in examination.findings:
        lines += ["", *_told(finding)]
    for note in examination.notes:
        lines += ["", *_told(note)]
    return "\n".join([*lines, "", *_there_is(examination.environment)])


def _told(finding: Finding) -> list[str]:
    title = finding.cause.replace("_", " ") + (" (note)" if finding.note else "")
    lines = [title, f"  {finding.what}", f"  cure: {finding.cure}"]
    return [*lines, f"    {finding.config}"] if finding.config else lines


def _there_is(environment: dict[str, Any]) -> list[str]:
    provider, propagator = environment["provider"], environment["propagator"]
    rows = {
        "versions": " ".join(f"{name} {version}" for name, version in environment["releases"].items()),
        "context": environment["context"],
        "reads": ", ".join(propagator["reads"]) or "-",
        "writes": ", ".join(propagator["writes"]) or "-",
        "provider": provider.get("class", "-") if provider["set"] else "none is set in this process",
        "sampler": provider.get("sampler", "-"),
        "ids": provider.get("id_generator", "-"),
        "service": provider.get("resource", {}).get("service.name", "-"),
        "contrib": ", ".join(environment["instrumentors"]) or "-",
        "tracefill": ", ".join(environment["installed"]) or "-",
    }
    return [f"{name:10}{value}" for name, value in rows.items()]
