"""Data layer: every statement is a span (or an event) on the chain of the job that caused it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import queue
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from sqlite3 import connect as connect_imported_before
from typing import Any

from tests.boundaries import Program, boundary

CONTRIB = [
    "opentelemetry.instrumentation.sqlite3:SQLite3Instrumentor",
    "opentelemetry.instrumentation.psycopg:PsycopgInstrumentor",
    "opentelemetry.instrumentation.psycopg2:Psycopg2Instrumentor",
    "opentelemetry.instrumentation.pymysql:PyMySQLInstrumentor",
    "opentelemetry.instrumentation.mysqlclient:MySQLClientInstrumentor",
    "opentelemetry.instrumentation.asyncpg:AsyncPGInstrumentor",
    "opentelemetry.instrumentation.redis:RedisInstrumentor",
    "opentelemetry.instrumentation.threading:ThreadingInstrumentor",
]


# --------------------------------------------------------------------------------------------------------------- sqlite3

opened_before = sqlite3.connect(":memory:", check_same_thread=False)
cursor_made_before = opened_before.cursor()


def shop() -> Any:
    return sqlite3.connect(":memory:", check_same_thread=False)


@boundary("db: sqlite3 cursor.execute", statements={"": 1})
def sqlite_cursor(b: Program) -> None:
    cursor = shop().cursor()
    with b.near():
        assert cursor.execute("select 1").fetchall() == [(1,)]


@boundary("db: sqlite3 connection.execute() shortcut", statements={"a": 1, "b": 1})
def sqlite_connection(b: Program) -> None:
    connection = shop()
    for key in "ab":
        with b.near(key):
            connection.execute("select ?", (1,)).fetchall()


@boundary("db: sqlite3 executemany / executescript", statements={"a": 2, "b": 2})
def sqlite_many(b: Program) -> None:
    connection = shop()
    with b.near("a"):
        connection.executescript("create table t (a); create table u (a)")
        connection.executemany("insert into t values (?)", [(1,), (2,)])
    cursor = connection.cursor()
    with b.near("b"):
        cursor.executescript("create table v (a)")
        cursor.executemany("insert into t values (?)", [(1,), (2,)])
    assert [row for row in cursor.connection.cursor().execute("select count(*) from t")] == [(4,)]


@boundary("db: sqlite3 connection and cursor opened before instrument()", statements={"a": 1, "b": 1})
def sqlite_opened_before(b: Program) -> None:
    with b.near("a"):
        opened_before.execute("select 1")
    with b.near("b"):
        cursor_made_before.execute("select 1")


@boundary("db: from sqlite3 import connect before instrument()", statements={"": 2})
def sqlite_imported_before(b: Program) -> None:
    with b.near(), contextlib.closing(connect_imported_before(":memory:")) as connection:
        connection.execute("select 1")
        connection.cursor().execute("select 2")


@boundary("db: sqlite3 in ThreadPoolExecutor / to_thread", statements={"": 2})
async def sqlite_threads(b: Program) -> None:
    connection = shop()
    with ThreadPoolExecutor(1) as pool, b.near():
        pool.submit(connection.execute, "select 1").result()
        await asyncio.to_thread(connection.execute, "select 1")


@boundary("db: sqlite3 in a pool, after the request's scope was closed", statements={"a": 1, "b": 1})
def sqlite_after_the_end(b: Program) -> None:
    connection, ended = shop(), threading.Event()

    def work() -> None:
        ended.wait()
        connection.execute("select 1")

    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(work)
        ended.set()


@boundary("db: sqlite3 statements of a writer thread fed by a queue", statements={"a": 1, "b": 1})
def sqlite_writer(b: Program) -> None:
    connection = shop()
    waiting: queue.Queue[str | None] = queue.Queue()

    def writer() -> None:
        while (sql := waiting.get()) is not None:
            connection.execute(sql)

    thread = threading.Thread(target=writer)
    for key in "ab":
        with b.near(key):
            if key == "a":
                thread.start()
            waiting.put("select 1")
    waiting.put(None)
    thread.join()


@boundary("db: sqlite3 factory classes with methods of their own", statements={"a": 1, "b": 1})
def sqlite_factories(b: Program) -> None:
    class Cursor(sqlite3.Cursor):
        def execute(self, *arguments: Any) -> Any:
            return super().execute(*arguments)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    connection = sqlite3.connect(":memory:", factory=Connection)
    with b.near("a"):
        connection.execute("select 1")
    with b.near("b"):
        connection.cursor().execute("select 1")


@boundary("db: sqlite3 statement that fails, and the one after it", statements={"": 2})
def sqlite_fails(b: Program) -> None:
    connection = shop()
    with b.near():
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("select nothing from nowhere")
        connection.execute("select 1")


@boundary("db: sqlite3 transaction as a context manager, commit and rollback", statements={"": 2})
def sqlite_transaction(b: Program) -> None:
    connection = shop()
    connection.execute("create table t (a)")
    with b.near():
        with connection:
            connection.execute("insert into t values (1)")
        with contextlib.suppress(ZeroDivisionError), connection:
            connection.execute("insert into t values (2)")
            raise ZeroDivisionError
    assert connection.execute("select a from t").fetchall() == [(1,)]


@boundary("db: sqlite3 rows read by a generator, with the user's own spans between", statements={"": 1})
def sqlite_rows(b: Program) -> None:
    connection = shop()

    def rows() -> Iterator[Any]:
        yield from connection.execute("select 1 union select 2")

    with b.near():
        for _ in rows():
            b.far()


# ------------------------------------------------------------------------------------------------------------ PostgreSQL


def postgres(b: Program) -> str:
    return f"postgresql://postgres@{b.address('postgres')}/postgres"


@boundary("db: psycopg (3) cursor.execute", needs=("postgres",), statements={"a": 1, "b": 1})
def psycopg_cursor(b: Program) -> None:
    import psycopg

    with psycopg.connect(postgres(b)) as connection:
        with b.near("a"):
            connection.cursor().execute("select 1")
        with b.near("b"):
            connection.execute("select 1")


@boundary("db: psycopg (3) AsyncConnection", needs=("postgres",), statements={"a": 1, "b": 1})
async def psycopg_async(b: Program) -> None:
    import psycopg

    async with await psycopg.AsyncConnection.connect(postgres(b)) as connection:
        with b.near("a"):
            await connection.cursor().execute("select 1")
        with b.near("b"):
            task = asyncio.create_task(connection.execute("select 1"))
        await task


@boundary("db: psycopg (3) executemany, server-side cursor, COPY, stream", needs=("postgres",), statements={"": 4})
def psycopg_rest(b: Program) -> None:
    import psycopg

    with psycopg.connect(postgres(b)) as connection:
        cursor = connection.execute("create temporary table t (a int)")
        with b.near(), connection.transaction():
            cursor.executemany("insert into t values (%s)", [(1,), (2,)])
            with connection.cursor("named") as named:
                named.execute("select a from t")
                for _ in named:
                    b.far()
            with cursor.copy("copy t to stdout") as copy:
                for _ in copy:
                    b.far()
            for _ in cursor.stream("select a from t"):
                b.far()


@boundary(
    "db: psycopg (3) from psycopg import connect before instrument(), cursor_factory",
    needs=("postgres",),
    statements={"": 2},
)
def psycopg_factory(b: Program) -> None:
    import psycopg

    class Cursor(psycopg.ClientCursor[Any]):
        pass

    with b.near(), psycopg.Connection.connect(postgres(b), cursor_factory=Cursor) as connection:
        connection.execute("select %s", (1,))
        connection.cursor().execute("select 1")


@boundary("db: psycopg (3) in a pool of threads, connections shared", needs=("postgres",), statements={"a": 2, "b": 2})
def psycopg_threads(b: Program) -> None:
    import psycopg

    with psycopg.connect(postgres(b)) as connection, ThreadPoolExecutor(2) as pool:
        for key in "ab":
            with b.near(key):
                for _ in range(2):
                    pool.submit(connection.execute, "select 1")


@boundary("db: psycopg2 cursor.execute in a thread", needs=("postgres",), statements={"": 1})
def psycopg2_thread(b: Program) -> None:
    import psycopg2

    with contextlib.closing(psycopg2.connect(postgres(b))) as connection, b.near():
        thread = threading.Thread(target=lambda: connection.cursor().execute("select 1"))
        thread.start()
        thread.join()


@boundary("db: psycopg2 server-side cursor + COPY", needs=("postgres",), statements={"": 2})
def psycopg2_copy(b: Program) -> None:
    import psycopg2

    with contextlib.closing(psycopg2.connect(postgres(b))) as connection, b.near():
        cursor = connection.cursor("named")
        cursor.execute("select 1")
        assert cursor.fetchall() == [(1,)]
        connection.cursor().copy_expert("copy (select 1) to stdout", io.StringIO())


@boundary("db: psycopg2 DictCursor, with connection, callproc, execute_batch", needs=("postgres",), statements={"": 3})
def psycopg2_rest(b: Program) -> None:
    import psycopg2
    import psycopg2.extras

    with contextlib.closing(psycopg2.connect(postgres(b))) as connection, b.near(), connection:
        with connection.cursor(cursor_factory=psycopg2.extras.DictCursor) as cursor:
            cursor.execute("select 1 as a")
            cursor.callproc("upper", ("a",))
            psycopg2.extras.execute_batch(cursor, "select %s", [(1,), (2,)])


# ----------------------------------------------------------------------------------------------------------------- MySQL


def mysql(b: Program) -> dict[str, Any]:
    host, _, port = b.address("mariadb").partition(":")
    return {"host": host, "port": int(port), "user": "root", "database": "tracefill"}


@boundary("db: PyMySQL cursor.execute", needs=("mariadb",), statements={"a": 1, "b": 1})
def pymysql_cursor(b: Program) -> None:
    import pymysql

    connection = pymysql.connect(**mysql(b))
    for key in "ab":
        with b.near(key), connection.cursor() as cursor:
            cursor.execute("select %s", (key,))
    connection.close()


@boundary("db: PyMySQL executemany, other cursors, a thread", needs=("mariadb",), statements={"": 4})
def pymysql_rest(b: Program) -> None:
    import pymysql
    import pymysql.cursors

    connection = pymysql.connect(**mysql(b))
    connection.cursor().execute("create temporary table t (a int)")
    with b.near():
        cursor = connection.cursor()
        cursor.executemany("insert into t values (%s)", [(1,), (2,)])
        cursor.executemany("update t set a = %s", [(1,), (2,)])
        connection.cursor(pymysql.cursors.DictCursor).execute("select a from t")
        streaming = connection.cursor(pymysql.cursors.SSCursor)
        thread = threading.Thread(target=streaming.execute, args=("select a from t",))
        thread.start()
        thread.join()
        streaming.close()
    connection.close()


@boundary("db: mysqlclient cursor.execute", needs=("mariadb",), statements={"": 2})
def mysqlclient_cursor(b: Program) -> None:
    import MySQLdb

    connection = MySQLdb.connect(**mysql(b))
    connection.cursor().execute("create temporary table t (a int)")
    with b.near():
        connection.cursor().execute("select 1")
        connection.cursor().executemany("insert into t values (%s)", [(1,), (2,)])
    connection.close()


# --------------------------------------------------------------------------------------------------------------- asyncio


@boundary("db: aiosqlite, one connection for two requests", statements={"a": 2, "b": 2})
async def aiosqlite_requests(b: Program) -> None:
    import aiosqlite

    async with aiosqlite.connect(":memory:") as connection:

        async def request(key: str) -> None:
            with b.near(key):
                await connection.execute("select 1")
                cursor = await connection.cursor()
                await asyncio.sleep(0.01)
                await cursor.execute("select 1")

        await asyncio.gather(request("a"), request("b"))


@boundary("db: aiosqlite connected in the first request, used by the second", statements={"a": 1, "b": 1})
async def aiosqlite_lazy(b: Program) -> None:
    import aiosqlite

    connection = None
    for key in "ab":
        with b.near(key):
            connection = connection or await aiosqlite.connect(":memory:")
            async with connection.execute("select 1") as cursor:
                await cursor.fetchall()
    assert connection is not None
    await connection.close()


@boundary("db: aiosqlite in a task that outlives its request", statements={"a": 1, "b": 1})
async def aiosqlite_after_the_end(b: Program) -> None:
    import aiosqlite

    async with aiosqlite.connect(":memory:") as connection:

        async def work() -> None:
            await asyncio.sleep(0.02)
            await connection.execute("select 1")

        tasks = []
        for key in "ab":
            with b.near(key):
                tasks.append(asyncio.create_task(work()))
        await asyncio.gather(*tasks)


@boundary("db: asyncpg execute, fetch, prepared statement, executemany", needs=("postgres",), statements={"": 4})
async def asyncpg_connection(b: Program) -> None:
    import asyncpg

    connection = await asyncpg.connect(postgres(b))
    await connection.execute("create temporary table t (a int)")
    with b.near():
        await connection.fetch("select 1")
        await connection.execute("select 1")
        await connection.executemany("insert into t values ($1)", [(1,), (2,)])
        await (await connection.prepare("select a from t")).fetch()
    await connection.close()


@boundary("db: asyncpg pool shared by two requests", needs=("postgres",), statements={"a": 2, "b": 2})
async def asyncpg_pool(b: Program) -> None:
    import asyncpg

    async with asyncpg.create_pool(postgres(b), min_size=1, max_size=1) as pool:

        async def request(key: str) -> None:
            with b.near(key):
                await pool.fetchval("select 1")
                async with pool.acquire() as connection:
                    await connection.fetch("select 1")

        await asyncio.gather(request("a"), request("b"))


# ------------------------------------------------------------------------------------------------------------ SQLAlchemy


@boundary("db: SQLAlchemy engine", statements={"a": 1, "b": 1})
def sqlalchemy_engine(b: Program) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine("sqlite://")
    for key in "ab":
        with b.near(key), engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("select 1")).scalar() == 1


@boundary("db: SQLAlchemy async engine (aiosqlite)", statements={"a": 1, "b": 1})
async def sqlalchemy_async(b: Program) -> None:
    import sqlalchemy
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine("sqlite+aiosqlite://")
    for key in "ab":
        with b.near(key):
            async with engine.connect() as connection:
                await connection.execute(sqlalchemy.text("select 1"))
    await engine.dispose()


@boundary("db: SQLAlchemy sessions, ORM: flush, commit, lazy load", statements={"a": 1, "b": 2})
def sqlalchemy_orm(b: Program) -> None:
    import sqlalchemy as sa
    from sqlalchemy import orm

    base = orm.declarative_base()

    class Order(base):  # type: ignore[misc,valid-type]
        __tablename__ = "orders"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String)

    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    base.metadata.create_all(engine)
    with b.near("a"), orm.Session(engine) as session:
        session.add(Order(name="first"))
        session.commit()
    with b.near("b"), orm.Session(engine) as session:
        (order,) = session.query(Order).all()
        session.expire(order)
        assert order.name == "first"


@boundary("db: SQLAlchemy in a pool of threads, after the request's scope was closed", statements={"a": 1, "b": 1})
def sqlalchemy_threads(b: Program) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False})
    ended = threading.Event()

    def work() -> None:
        ended.wait()
        with engine.connect() as connection:
            connection.execute(sa.text("select 1"))

    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(work)
        ended.set()


@boundary("db: SQLAlchemy over each driver of PostgreSQL", needs=("postgres",), statements={"a": 2, "b": 2})
def sqlalchemy_postgres(b: Program) -> None:
    import sqlalchemy as sa

    for key, driver in (("a", "psycopg"), ("b", "psycopg2")):
        engine = sa.create_engine(postgres(b).replace("postgresql", f"postgresql+{driver}"))
        with b.near(key), engine.begin() as connection:
            connection.execute(sa.text("select 1"))
            connection.execute(sa.text("select 2"))
        engine.dispose()


@boundary("db: SQLAlchemy over each driver of MariaDB", needs=("mariadb",), statements={"a": 1, "b": 1})
def sqlalchemy_mariadb(b: Program) -> None:
    import sqlalchemy as sa

    for key, driver in (("a", "pymysql"), ("b", "mysqldb")):
        engine = sa.create_engine(f"mysql+{driver}://root@{b.address('mariadb')}/tracefill")
        with b.near(key), engine.connect() as connection:
            connection.execute(sa.text("select 1"))
        engine.dispose()


@boundary(
    "db: SQLAlchemy async engine (asyncpg), two requests at once", needs=("postgres",), statements={"a": 2, "b": 2}
)
async def sqlalchemy_asyncpg(b: Program) -> None:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(postgres(b).replace("postgresql", "postgresql+asyncpg"), pool_size=1, max_overflow=0)

    async def request(key: str) -> None:
        with b.near(key):
            async with engine.begin() as connection:
                await connection.execute(sa.text("select 1"))
                async for _ in await connection.stream(sa.text("select 2")):
                    b.far(key)

    await asyncio.gather(request("a"), request("b"))
    await engine.dispose()


# ----------------------------------------------------------------------------------------------------------------- Redis


@boundary("db: redis commands, a client made before, a thread", needs=("redis_server",), statements={"a": 2, "b": 2})
def redis_commands(b: Program) -> None:
    import redis

    host, _, port = b.address("redis_server").partition(":")
    client = redis.Redis(host=host, port=int(port))
    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                client.set("a", 1)
                pool.submit(client.get, "a")
    client.close()


@boundary("db: redis pipeline", needs=("redis_server",), statements={"": 1})
def redis_pipeline(b: Program) -> None:
    import redis

    host, _, port = b.address("redis_server").partition(":")
    with redis.Redis(host=host, port=int(port)) as client, b.near():
        client.pipeline().set("a", 1).get("a").execute()


@boundary("db: redis.asyncio", needs=("redis_server",), statements={"a": 2, "b": 2})
async def redis_async(b: Program) -> None:
    import redis.asyncio

    host, _, port = b.address("redis_server").partition(":")
    async with redis.asyncio.Redis(host=host, port=int(port)) as client:

        async def request(key: str) -> None:
            with b.near(key):
                await client.set("a", 1)
                await client.pipeline().get("a").execute()

        await asyncio.gather(request("a"), request("b"))


@boundary(
    "db: redis in a pool, after the request's scope was closed",
    needs=("redis_server",),
    statements={"a": 2, "b": 2},
)
def redis_after_the_end(b: Program) -> None:
    import redis

    host, _, port = b.address("redis_server").partition(":")
    client, ended = redis.Redis(host=host, port=int(port)), threading.Event()

    def work() -> None:
        ended.wait()
        client.set("a", 1)
        client.pipeline().get("a").get("a").execute()

    with ThreadPoolExecutor(1) as pool:
        for key in "ab":
            with b.near(key):
                pool.submit(work)
        ended.set()
    client.close()


# ------------------------------------------------------------------------------------------- after the request's end


@boundary(
    "db: psycopg (3) async, in a task that outlives its request", needs=("postgres",), statements={"a": 1, "b": 1}
)
async def psycopg_after_the_end(b: Program) -> None:
    import psycopg

    async with await psycopg.AsyncConnection.connect(postgres(b)) as connection:

        async def work() -> None:
            await asyncio.sleep(0.02)
            await connection.execute("select 1")

        tasks = []
        for key in "ab":
            with b.near(key):
                tasks.append(asyncio.create_task(work()))
        await asyncio.gather(*tasks)


@boundary("db: asyncpg in a task that outlives its request, COPY", needs=("postgres",), statements={"a": 2, "b": 2})
async def asyncpg_after_the_end(b: Program) -> None:
    import asyncpg

    async with asyncpg.create_pool(postgres(b), min_size=1, max_size=1) as pool:

        async def work() -> None:
            await asyncio.sleep(0.02)
            async with pool.acquire() as connection:
                await connection.fetchval("select 1")
                await connection.copy_from_query("select 1", output=io.BytesIO())

        tasks = []
        for key in "ab":
            with b.near(key):
                tasks.append(asyncio.create_task(work()))
        await asyncio.gather(*tasks)


@boundary(
    "db: PyMySQL in the loop's executor, after the request's scope was closed",
    needs=("mariadb",),
    statements={"a": 1, "b": 1},
)
async def pymysql_after_the_end(b: Program) -> None:
    import pymysql

    connection, ended = pymysql.connect(**mysql(b)), threading.Event()

    def work() -> None:
        ended.wait()
        with connection.cursor() as cursor:
            cursor.execute("select 1")

    with ThreadPoolExecutor(1) as pool:
        running = []
        for key in "ab":
            with b.near(key):
                running.append(asyncio.get_running_loop().run_in_executor(pool, work))
        ended.set()
        await asyncio.gather(*running)
    connection.close()


@boundary("db: SQLAlchemy async sessions in tasks that outlive their requests", statements={"a": 1, "b": 1})
async def sqlalchemy_async_after_the_end(b: Program) -> None:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine("sqlite+aiosqlite://", poolclass=sa.pool.StaticPool)

    async def work() -> None:
        await asyncio.sleep(0.02)
        async with AsyncSession(engine) as session:
            await session.execute(sa.text("select 1"))

    tasks = []
    for key in "ab":
        with b.near(key):
            tasks.append(asyncio.create_task(work()))
    for task in tasks:
        await task
    await engine.dispose()


@boundary("db: SQLAlchemy in to_thread, a connection for both requests", statements={"a": 2, "b": 2})
async def sqlalchemy_to_thread(b: Program) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False})
    with engine.connect() as connection:

        def work() -> None:
            connection.execute(sa.text("select 1"))
            connection.exec_driver_sql("select 2")

        for key in "ab":
            with b.near(key):
                await asyncio.to_thread(work)


@boundary("db: sqlite3 by a Timer, after the request's scope was closed", statements={"a": 1, "b": 1})
def sqlite_timer(b: Program) -> None:
    connection = shop()
    timers = []
    for key in "ab":
        with b.near(key):
            timers.append(threading.Timer(0.05, connection.execute, args=("select 1",)))
            timers[-1].start()
    for timer in timers:
        timer.join()


@boundary("db: psycopg2 execute_values and COPY in a pool's map", needs=("postgres",), statements={"a": 2, "b": 2})
def psycopg2_map(b: Program) -> None:
    import psycopg2
    import psycopg2.extras

    def work(number: int) -> None:
        with contextlib.closing(psycopg2.connect(postgres(b))) as connection, connection.cursor() as cursor:
            if number:
                psycopg2.extras.execute_values(cursor, "select * from (values %s) v", [(1,), (2,)])
            else:
                cursor.copy_expert("copy (select 1) to stdout", io.StringIO())

    with ThreadPoolExecutor(2) as pool:
        for key in "ab":
            with b.near(key):
                list(pool.map(work, range(2)))


# ---------------------------------------------------------------------------------------------------------------- Django


def django_settings() -> None:
    from django.conf import settings

    databases = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "file:shop?mode=memory&cache=shared"}}
    settings.configure(DATABASES=databases, INSTALLED_APPS=["django.contrib.contenttypes"])


@boundary("db: Django, a connection of its own for each request's thread", statements={"a": 2, "b": 2})
def django_threads(b: Program) -> None:
    django_settings()
    from django.db import connection

    def request(key: str) -> None:
        with b.near(key):
            for _ in range(2):
                with connection.cursor() as cursor:
                    cursor.execute("select %s", [1])
                    assert cursor.fetchall() == [(1,)]
        connection.close()

    for key in "ab":
        thread = threading.Thread(target=request, args=(key,))
        thread.start()
        thread.join()


@boundary("db: Django's ORM, from async code", statements={"": 2})
async def django_orm(b: Program) -> None:
    django_settings()
    import django
    from asgiref.sync import sync_to_async
    from django.core.management import call_command

    django.setup()
    from django.contrib.contenttypes.models import ContentType

    await sync_to_async(call_command)("migrate", verbosity=0)
    with b.near():
        assert await ContentType.objects.filter(app_label="shop").acount() == 0
        assert [kind async for kind in ContentType.objects.filter(app_label="shop")] == []
