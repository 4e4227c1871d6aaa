"""anyio's memory object streams: an item brings its producer's context, and the stream stays what it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from opentelemetry import trace

import tracefill
from tests.contracts import BoundaryContract, PatchContract, tracer
from tracefill import snapshots


class TestPatch(PatchContract):
    name = "anyio_streams"

    def owners(self) -> list[Any]:
        return [MemoryObjectSendStream, MemoryObjectReceiveStream]


class TestStream(BoundaryContract):
    """The worker's task is there before the item, in a context of its own."""

    name = "anyio_streams"
    size = 0

    def cross(self, work: Callable[[], Any]) -> None:
        async def program() -> None:
            send, receive = anyio.create_memory_object_stream[Any](self.size)

            async def worker() -> None:
                with tracefill.context.scope({}):  # type: ignore[arg-type]
                    (await receive.receive())()

            async with anyio.create_task_group() as group, send, receive:
                group.start_soon(worker)
                await anyio.sleep(0)
                await send.send(work)

        anyio.run(program)


class TestBufferedStream(TestStream):
    size = 1


@pytest.fixture
def installed() -> Any:
    tracefill.install(only=["anyio_streams"])
    yield
    tracefill.uninstall()


@pytest.mark.usefixtures("installed")
def test_a_stream_stays_what_it_was() -> None:
    gc.collect()
    before = snapshots.stats().in_use

    async def program() -> None:
        send, receive = anyio.create_memory_object_stream[Any](1)
        item = object()
        with tracer.start_as_current_span("near"):
            send.send_nowait(item)
            with pytest.raises(anyio.WouldBlock):
                send.send_nowait("no room")
            with anyio.move_on_after(0.001):
                await send.send("cancelled")
            assert receive.receive_nowait() is item
            with pytest.raises(anyio.WouldBlock):
                receive.receive_nowait()
            send.close()
            with pytest.raises(anyio.EndOfStream):
                await receive.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await send.send("too late")
        receive.close()
        assert not trace.get_current_span().get_span_context().is_valid

    anyio.run(program)
    gc.collect()
    assert snapshots.stats().in_use == before
