"""A gRPC server that is not grpcio's: it shows what clients put on the wire, and answers each call with `ok`."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events

Headers = list[tuple[str, bytes]]

_ANSWER = struct.pack(">BI", 0, 2) + b"ok"


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[Headers]]]:
    """Its address, and the headers of the calls that have come in; those of `-bin` keys are decoded."""
    calls: list[Headers] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, calls), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", calls


def _accept(server: socket.socket, calls: list[Headers]) -> None:
    with contextlib.suppress(OSError):  # the end of the test
        while True:
            connection, _ = server.accept()
            with connection:
                _serve(connection, calls)


def _serve(connection: socket.socket, calls: list[Headers]) -> None:
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    http.initiate_connection()
    connection.sendall(http.data_to_send())
    while data := connection.recv(65536):
        for event in http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                calls.append([(str(name), _decoded(str(name), str(value))) for name, value in event.headers or ()])
            elif isinstance(event, h2.events.StreamEnded):
                http.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                http.send_data(event.stream_id, _ANSWER)
                http.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        connection.sendall(http.data_to_send())


def _decoded(name: str, value: str) -> bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4)) if name.endswith("-bin") else value.encode()
