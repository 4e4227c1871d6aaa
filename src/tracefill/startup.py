"""`tracefill.setup()`: all that a service needs to be traced, in one call and without a configuration of its own.

    import tracefill

    tracefill.setup(service_name="shop")

makes the TracerProvider with the SDK's own pieces and then calls `install()`. OpenTelemetry's variables say the rest, and are
never overruled but by what is given here: OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_* (default: OTLP to localhost),
OTEL_METRICS_EXPORTER and OTEL_LOGS_EXPORTER (default: none), OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME,
OTEL_EXPERIMENTAL_RESOURCE_DETECTORS (default: all that are installed, but for `process`, whose command lines hold secrets),
OTEL_PROPAGATORS and OTEL_PYTHON_ID_GENERATOR (default: tracefill's), OTEL_CONFIG_FILE (then the file says all of this).
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tracefill._codec import TracefillError
from tracefill.patches import install

__all__ = ["setup"]

_logger = logging.getLogger("tracefill")

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

# What each platform puts into the environment of a program: the variable that gives it away, what is so then, and the variables
# of attributes. https://opentelemetry.io/docs/specs/semconv/resource/cloud/, .../faas/ and .../k8s/ (v1.44.0).
_PLATFORMS: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
    (
        "AWS_LAMBDA_FUNCTION_NAME",
        {"cloud.provider": "aws", "cloud.platform": "aws_lambda"},
        {"cloud.region": "AWS_REGION", "faas.name": "AWS_LAMBDA_FUNCTION_NAME"},
    ),
    (
        "ECS_CONTAINER_METADATA_URI_V4",
        {"cloud.provider": "aws", "cloud.platform": "aws_ecs"},
        {"cloud.region": "AWS_REGION"},
    ),
    (
        "K_SERVICE",
        {"cloud.provider": "gcp", "cloud.platform": "gcp_cloud_run"},
        {"faas.name": "K_SERVICE", "faas.version": "K_REVISION"},
    ),
    (
        "WEBSITE_SITE_NAME",
        {"cloud.provider": "azure", "cloud.platform": "azure.app_service"},
        {"cloud.region": "REGION_NAME"},
    ),
    ("KUBERNETES_SERVICE_HOST", {}, {"k8s.pod.name": "HOSTNAME"}),
)


def setup(
    service_name: str | None = None,
    *,
    service_version: str | None = None,
    environment: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    tags: str | os.PathLike[str] | None = None,
    queues: bool = False,
    subprocess: bool = False,
) -> Any:
    """The TracerProvider, made and in force; every library that is there carries the context from now on.

    `environment`: deployment.environment.name. `attributes`: more of the resource. `tags`: a file for `tags.load()`. `queues`,
    `subprocess`: see `install()`. A provider that is there already is kept. Raises TracefillError, with the cure, when the SDK
    or an exporter is not installed.

        tracefill.setup(service_name="shop", service_version="1.4.2", environment="staging")
    """
    from tracefill import tags as business_tags

    given = {
        "service.name": service_name,
        "service.version": service_version,
        "deployment.environment.name": environment,
    }
    said = {**(attributes or {}), **{name: value for name, value in given.items() if value is not None}}
    if tags is not None:
        business_tags.load(tags)
    if hasattr(_provider(), "add_span_processor"):
        _logger.warning("tracefill.setup(): a TracerProvider is in force already, and is kept as it is")
    else:
        _configure(said)
    install(queues=queues, subprocess=subprocess)
    business_tags.watch()
    return _provider()


def _provider() -> Any:
    # Not before: OpenTelemetry imports this package while it is being imported itself, for its plug-ins.
    from opentelemetry.trace import get_tracer_provider

    return get_tracer_provider()


def _configure(said: Mapping[str, Any]) -> None:
    configurator = _configurator()
    settings: dict[str, Any] = {}
    if os.environ.get("OTEL_CONFIG_FILE"):
        if said:
            _logger.warning("OTEL_CONFIG_FILE is set: it says what tracefill.setup() was given, %s", sorted(said))
    else:
        settings["resource_attributes"] = _resource(said)
        settings["trace_exporter_names"] = _default_exporters()
        if not os.environ.get("OTEL_PYTHON_ID_GENERATOR"):
            from tracefill.ids import FastIdGenerator

            settings["id_generator"] = FastIdGenerator()
        if not os.environ.get("OTEL_PROPAGATORS"):
            from opentelemetry import propagate

            from tracefill.propagators import TracefillPropagator

            propagate.set_global_textmap(TracefillPropagator())
    try:
        configurator.configure(**settings)
    except (RuntimeError, ImportError) as error:
        raise TracefillError(f"tracefill.setup(): {error}{_cure(str(error))}") from error


def _configurator() -> Any:
    try:
        from opentelemetry.sdk._configuration import _OTelSDKConfigurator
    except ImportError as error:
        raise TracefillError(
            "tracefill.setup() needs OpenTelemetry's SDK: `pip install 'tracefill[sdk]' opentelemetry-exporter-otlp-proto-http`"
        ) from error
    make: Any = _OTelSDKConfigurator  # without types of its own
    return make()


def _default_exporters() -> list[str]:
    """The OTLP exporter that is installed, where the variables leave it open; HTTP where both are, as the specification has it."""
    installed = _offered("opentelemetry_traces_exporter")
    if "otlp_proto_http" in installed or "otlp_proto_grpc" not in installed:
        # The SDK's own default is gRPC, whether that is installed or not.
        os.environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if os.environ.get("OTEL_TRACES_EXPORTER"):
        return []
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return ["otlp_proto_http" if protocol == "http/protobuf" else "otlp_proto_grpc"]


def _cure(error: str) -> str:
    if "otlp_proto" in error:
        kind = "grpc" if "otlp_proto_grpc" in error else "http"
        return f": `pip install opentelemetry-exporter-otlp-proto-{kind}`, or say another one in OTEL_TRACES_EXPORTER"
    return ": install what offers it, or say another one in the variable" if "not found" in error else ""


def _resource(said: Mapping[str, Any]) -> dict[str, Any]:
    """Who is being traced: what is said here wins over the variables, and those over what is found."""
    from opentelemetry.sdk.resources import Resource

    with _default("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", ",".join(_detectors())):
        found = dict(Resource.create().attributes)
    found.pop("service.instance.id", None)  # the SDK gives each forked process its own
    resource = {"host.name": socket.gethostname(), "host.arch": platform.machine(), **_platform(), **found, **said}
    if str(resource["service.name"]).startswith("unknown_service"):
        _logger.warning(
            "no service.name: the spans will be those of %r; say tracefill.setup(service_name=...) or set OTEL_SERVICE_NAME",
            resource["service.name"],
        )
    return resource


def _detectors() -> list[str]:
    return sorted(_offered("opentelemetry_resource_detector") - {"otel", "process", "service_instance"})


def _offered(group: str) -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group=group)}


def _platform() -> dict[str, str]:
    """What the environment tells of the cloud; detectors that are installed know more."""
    found: dict[str, str] = {}
    for mark, known, variables in _PLATFORMS:
        if os.environ.get(mark):
            found.update(known)
            found.update({name: os.environ[variable] for name, variable in variables.items() if variable in os.environ})
    if "k8s.pod.name" in found:
        with contextlib.suppress(OSError):
            found["k8s.namespace.name"] = _NAMESPACE.read_text().strip()
    return found


@contextlib.contextmanager
def _default(variable: str, value: str) -> Iterator[None]:
    """The variable has this value for a while, if it has none."""
    if os.environ.get(variable) or not value:
        yield
        return
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]
