"""Service call: raw greenlets; gevent without its monkey patches, and with those that come after install()."""

import threading

import greenlet

from tests.boundaries import Program, boundary

CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]

Imported = greenlet.greenlet


@boundary("raw greenlet.greenlet", expect="direct")
def raw(b: Program) -> None:
    for key in "ab":
        with b.near(key):
            greenlet.greenlet(b.far).switch(key)
            greenlet.greenlet(run=b.far).switch(key)
            Imported(b.far).switch(key)
    greenlet.greenlet(b.clean).switch("made outside")


@boundary("two greenlets that switch to each other, each in its own span", expect="direct")
def turns(b: Program) -> None:
    main = greenlet.getcurrent()

    def work(key: str) -> None:
        for _ in range(3):
            b.far(key)
            main.switch()

    made = []
    for key in "ab":
        with b.near(key):
            made.append(greenlet.greenlet(work))
            made[-1].switch(key)
    for _ in range(3):
        for each in made:
            each.switch()


@boundary("a greenlet made in one request, first switched to in another", expect="direct")
def later(b: Program) -> None:
    with b.near("a"):
        made = greenlet.greenlet(b.far)
    with b.near("b"):
        made.switch("a")
        b.far("b")


@boundary("greenlet subclass overriding run()", expect="direct")
def subclass(b: Program) -> None:
    class Job(greenlet.greenlet):
        def run(self) -> None:
            b.far()

    with b.near():
        Job().switch()


@boundary("a greenlet from a greenlet", expect="connected")
def hops(b: Program) -> None:
    def hop(left: int) -> None:
        with b.span(f"hop {left}"):
            greenlet.greenlet(hop).switch(left - 1) if left else b.far()

    with b.near():
        greenlet.greenlet(hop).switch(3)


@boundary("a greenlet that fails, and one that is thrown away half-way", expect="direct")
def failing(b: Program) -> None:
    def fail() -> None:
        with b.span("bad"):
            raise ValueError

    def leave() -> None:
        with b.span("half"):
            greenlet.getcurrent().parent.switch()

    with b.near():
        try:
            greenlet.greenlet(fail).switch()
        except ValueError:
            b.far()
        half = greenlet.greenlet(leave)
        half.switch()
        del half
        b.far()


@boundary("gevent without monkey patches: spawn, pool, threadpool", expect="direct")
def gevent_plain(b: Program) -> None:
    import gevent
    import gevent.pool

    for key in "ab":
        with b.near(key):
            gevent.spawn(b.far, key).join()
            gevent.pool.Pool(2).map(b.far, [key] * 3)
            gevent.get_hub().threadpool.spawn(b.far, key).get()


@boundary("gevent's monkey patches after install(): spawn, pool.map, a thread, a thread's pool", expect="direct")
def gevent_patched_late(b: Program) -> None:
    from gevent import monkey

    monkey.patch_all()
    import gevent
    import gevent.pool

    for key in "ab":
        with b.near(key):
            gevent.spawn(b.far, key).join()
            gevent.pool.Pool(2).map(b.far, [key] * 3)
            thread = threading.Thread(target=b.far, args=(key,))
            thread.start()
            thread.join()
            gevent.get_hub().threadpool.spawn(b.far, key).get()


@boundary("eventlet without monkey patches: spawn and GreenPool", expect="direct")
def eventlet_plain(b: Program) -> None:
    import eventlet

    for key in "ab":
        with b.near(key):
            eventlet.spawn(b.far, key).wait()
            list(eventlet.GreenPool(2).imap(b.far, [key] * 3))
