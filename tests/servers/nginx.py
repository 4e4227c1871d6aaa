"""nginx, with whatever configuration a test gives it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.servers import Server, ask, missing, program, started

CONFIGURATION = """\
{user}
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port};
        {server}
    }}
}}
"""


class Nginx(Server):
    name = "nginx"
    url_format = "http://127.0.0.1:{port}"

    def prepare(self) -> None:
        self._configure(server="", http="")

    def command(self) -> list[str | Path]:
        return [program("nginx") or "", "-e", "stderr", "-p", self.folder, "-c", self.folder / "nginx.conf"]

    def answers(self) -> bool:
        return ask(self.port, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/")

    def serve(self, server: str, http: str = "") -> str:
        """Serve these directives of a `server` block, beside those of the `http` block, from now on; returns the URL.

        Raises DidNotStart with what nginx says of a configuration that it does not take.
        """
        self._configure(server, http)
        self.restart()
        return self.url

    def _configure(self, server: str, http: str) -> None:
        user = "user root;" if os.geteuid() == 0 else ""  # its workers write into our folder
        text = CONFIGURATION.format(user=user, folder=self.folder, port=self.port, server=server, http=http)
        (self.folder / "nginx.conf").write_text(text)


SERVER = Nginx


def available() -> str | None:
    return missing("nginx")


def start(folder: Path) -> Nginx:
    return started(Nginx(folder))
