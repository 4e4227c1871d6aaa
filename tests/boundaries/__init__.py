"""Boundaries: small programs of ordinary user code, each run in a fresh interpreter, judged by the spans it leaves.

A program never touches propagation. It opens a span `near`, crosses a boundary, and opens `far` on the other side:

    @boundary("threading.Thread(target)")
    def thread(b):
        with b.near():
            t = threading.Thread(target=b.far)
            t.start()
            t.join()

`python -m tests.boundaries tests/boundaries/threads.py [--mode MODE] [NAME ...]` runs them and prints the verdicts.

| mode | what is switched on before the program |
|---|---|
| bare | the SDK |
| contrib | the SDK and the contrib instrumentations that the file names |
| tracefill | the SDK and `tracefill.install(queues=True, subprocess=True)`, OTEL_PROPAGATORS and OTEL_PYTHON_CONTEXT=tracefill |
| tracefill+contrib, contrib+tracefill | both, in this order |
"""

from tests.boundaries.program import Program, boundary

__all__ = ["Program", "boundary"]
