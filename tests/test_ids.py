"""Id generators: random where they say so, never zero, never shared with a forked child."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tracefill import _codec
from tracefill.ids import FastIdGenerator, TimeOrderedIdGenerator

GENERATORS = [FastIdGenerator(), TimeOrderedIdGenerator()]


@pytest.mark.parametrize("generator", GENERATORS)
def test_ids_are_in_range_and_differ(generator: FastIdGenerator) -> None:
    traces = {generator.generate_trace_id() for _ in range(10_000)}
    spans = {generator.generate_span_id() for _ in range(10_000)}
    assert len(traces) == len(spans) == 10_000
    assert all(0 < trace < 1 << 128 for trace in traces)
    assert all(0 < span < 1 << 64 for span in spans)


@pytest.mark.parametrize("generator", GENERATORS)
def test_every_one_of_the_last_56_bits_is_set_half_of_the_time(generator: FastIdGenerator) -> None:
    assert generator.is_trace_id_random()
    ids = [generator.generate_trace_id() for _ in range(4000)]
    for bit in range(56):
        # Six standard deviations of a fair coin thrown 4,000 times are 190.
        assert abs(sum(trace >> bit & 1 for trace in ids) - 2000) < 190


def test_time_ordered_ids_begin_with_the_milliseconds_of_now() -> None:
    before = time.time_ns() // 1_000_000
    trace_id = TimeOrderedIdGenerator().generate_trace_id()
    assert before <= trace_id >> 80 <= time.time_ns() // 1_000_000


def test_the_sdk_sees_its_own_base_class() -> None:
    id_generator = pytest.importorskip("opentelemetry.sdk.trace.id_generator")
    assert all(isinstance(generator, id_generator.IdGenerator) for generator in GENERATORS)


def test_threads_never_give_out_the_same_id() -> None:
    seen: list[int] = []

    def work() -> None:
        generator = FastIdGenerator()
        seen.extend([generator.generate_span_id() for _ in range(5000)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == len(seen) == 40_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_takes_new_entropy() -> None:
    generator = FastIdGenerator()
    generator.generate_span_id()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, generator.generate_span_id().to_bytes(8, "big"))
        os._exit(0)
    os.wait()
    assert int.from_bytes(os.read(read, 8), "big") != generator.generate_span_id()


@pytest.mark.parametrize("name", _codec.hex_implementations())
def test_each_hex_implementation_reads_and_writes_all_digits(name: str) -> None:
    read, write = _codec.hex_implementations()[name]
    for value in (0, 1, 0x0123456789ABCDEF, 0xFEDCBA9876543210, (1 << 64) - 1, *(1 << bit for bit in range(64))):
        text = write(value)
        assert text == b"%016x" % value
        assert read(text) == value
    for place in range(16):
        for byte in range(256):
            text = b"0" * place + bytes([byte]) + b"0" * (15 - place)
            assert (read(text) is not None) == (byte in b"0123456789abcdef")
