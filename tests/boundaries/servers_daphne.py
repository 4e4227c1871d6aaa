"""Entry: ASGI servers. daphne calls its application by the names that ASGI gives the arguments; one server a process."""

import os
import threading
from typing import Any

from tests.boundaries import Program, boundary
from tests.calls.running import ask, here, wait_for

CONTRIB = ["opentelemetry.instrumentation.fastapi:FastAPIInstrumentor"]


def served(b: Program, app: Any) -> None:
    """Two requests to the application on daphne."""
    from daphne.server import Server
    from twisted.internet import reactor

    server = Server(application=app, endpoints=["tcp:port=0:interface=127.0.0.1"], signal_handlers=False, verbosity=0)
    failed = []

    def request() -> None:
        try:
            wait_for(lambda: server.listening_addresses)
            _, port = server.listening_addresses[0]
            for key in "ab":
                with b.near(key):
                    assert ask(port, f"/{key}", here()).status == 200
        except BaseException as error:
            failed.append(error)
        finally:
            reactor.callFromThread(reactor.stop)

    client = threading.Thread(target=request)
    client.start()
    server.run()
    client.join()
    assert not failed, failed


async def plain(scope: Any, receive: Any, send: Any) -> None:
    Program().far(scope["path"][1:])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


@boundary("ASGI application on daphne")
def application(b: Program) -> None:
    if "contrib" in os.environ["BOUNDARY_MODE"]:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        served(b, OpenTelemetryMiddleware(plain))
    else:
        served(b, plain)


@boundary("FastAPI on daphne")
def framework(b: Program) -> None:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/{key}")
    def show(key: str) -> str:
        b.far(key)
        return "done"

    served(b, app)


@boundary("gateway on daphne")
def gateway(b: Program) -> None:
    from tracefill.calls.asgi import Middleware
    from tracefill.gateway.asgi import Gateway

    served(b, Gateway(Middleware(plain)))
