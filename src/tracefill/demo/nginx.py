"""nginx before the gateway, by the configuration of docs/nginx.conf: one id in X-Request-ID, in traceparent and in its log."""

from __future__ import annotations

import json
from pathlib import Path

from tracefill.demo.processes import Processes, free_port, program

# The directives of docs/nginx.conf (which says why), as they are there.
TRACED = r"""
map $http_traceparent $given_trace_id {
    default "";
    "~^00-(?!0{32})(?<its_trace_id>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$" $its_trace_id;
}
map $http_x_request_id $given_request_id {
    default "";
    "~^(?!0{32})(?<its_request_id>[0-9a-f]{32})$" $its_request_id;
}
map $http_b3$http_x_b3_traceid $given_b3_id {
    default "";
    "~^(?!0{32})(?<b3_long>[0-9a-f]{32})(-|$)" $b3_long;
    "~^(?!0{16})(?<b3_short>[0-9a-f]{16})(-|$)" 0000000000000000$b3_short;
}
map $given_trace_id:$given_b3_id:$given_request_id $trace_id {
    default $request_id;
    "~^(?<by_trace>[0-9a-f]{32}):" $by_trace;
    "~^:(?<by_b3>[0-9a-f]{32}):" $by_b3;
    "~^::(?<by_request>[0-9a-f]{32})$" $by_request;
}
map $trace_id $new_parent_id {
    "~^(?!0{16})(?<first_half>[0-9a-f]{16})" $first_half;
    default 00f067aa0ba902b7;
}
map $given_trace_id:$given_b3_id $traceparent {
    default $http_traceparent;
    "~^:[0-9a-f]{32}$" "";
    ":" 00-$trace_id-$new_parent_id-03;
}
log_format traced escape=json
    '{"time":"$time_iso8601","request_id":"$trace_id","traceparent":"$traceparent","sent_request_id":"$http_x_request_id",'
    '"status":$status,"method":"$request_method","uri":"$uri","seconds":$request_time,"upstream_seconds":"$upstream_response_time"}';
"""

CONFIGURATION = """\
daemon off;
master_process off;
pid PREFIX/nginx.pid;
error_log stderr;
events {}
http {
    TRACED
    client_body_temp_path PREFIX;
    proxy_temp_path PREFIX;
    fastcgi_temp_path PREFIX;
    uwsgi_temp_path PREFIX;
    scgi_temp_path PREFIX;
    server {
        listen 127.0.0.1:PORT;
        access_log PREFIX/access.log traced;
        location / {
            proxy_set_header X-Request-ID $trace_id;
            proxy_set_header traceparent $traceparent;
            proxy_pass http://GATEWAY;
        }
    }
}
"""


def start(processes: Processes, folder: Path, gateway: str) -> str:
    """nginx before the gateway at `host:port`; returns its own, and logs to `folder`/access.log. Raises CannotStart."""
    port = str(free_port())
    text = CONFIGURATION
    for word, value in {"TRACED": TRACED, "PREFIX": str(folder), "PORT": port, "GATEWAY": gateway}.items():
        text = text.replace(word, value)
    (folder / "nginx.conf").write_text(text)
    command = (str(program("nginx")), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"))
    processes.start("nginx", "keeper", port, *command, environment={})
    processes.wait("nginx")
    return f"127.0.0.1:{port}"


def logged(folder: Path, trace_id: str) -> str | None:
    """What the log has under this id, in words; None when that is nothing."""
    log = folder / "access.log"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        entry = json.loads(line)
        if entry["request_id"] == trace_id:
            return f"{entry['method']} {entry['uri']} {entry['status']}"
    return None
