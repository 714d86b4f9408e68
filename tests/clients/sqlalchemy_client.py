"""SQLAlchemy over psycopg and over asyncpg: prints what it got, which must not depend on what is between it and
the server. The connection comes from the PG* variables."""

import asyncio
import datetime
import decimal
import enum
import os
import threading

from sqlalchemy import ARRAY, Enum, ForeignKey, Integer, Numeric, String, create_engine, func, select, text
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

ADDRESS = f"{os.environ['PGUSER']}@{os.environ['PGHOST']}:{os.environ['PGPORT']}/{os.environ['PGDATABASE']}"


def say(what, value):
    print(f"{what}: {value!r}", flush=True)


class Colour(enum.Enum):
    red = 1
    green = 2


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    colour: Mapped[Colour] = mapped_column(Enum(Colour, name="colour"))
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    about: Mapped[dict] = mapped_column(JSONB)
    made: Mapped[datetime.datetime] = mapped_column()
    sales: Mapped[list["Sale"]] = relationship(back_populates="item", order_by="Sale.id")


class Sale(Base):
    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"))
    price: Mapped[decimal.Decimal] = mapped_column(Numeric(10, 2))
    count: Mapped[int] = mapped_column(Integer, default=1)
    item: Mapped[Item] = relationship(back_populates="sales")


def items(first, last):
    made = datetime.datetime(2026, 1, 2, 3, 4, 5)
    for n in range(first, last):
        sales = [Sale(price=decimal.Decimal(n) + decimal.Decimal("0.25")), Sale(price=decimal.Decimal("9.99"))]
        yield Item(name=f"item {n}", colour=Colour(n % 2 + 1), tags=["a", f"ß{n}"], about={"n": n}, made=made, sales=sales)


def over_psycopg():
    options = {"application_name": "sqlalchemy", "prepare_threshold": 2}
    engine = create_engine(f"postgresql+psycopg://{ADDRESS}", pool_size=3, max_overflow=3, pool_pre_ping=True, connect_args=options)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(items(0, 40))
        session.commit()
        found = session.scalars(select(Item).options(selectinload(Item.sales)).order_by(Item.id).limit(2)).all()
        say("items", [(i.name, i.colour, i.tags, i.about, i.made, [(s.price, s.count) for s in i.sales]) for i in found])
        with session.begin_nested():
            session.execute(text("UPDATE sale SET count = 7"))
        try:
            with session.begin_nested():
                session.add(Item(name="item 1", colour=Colour.red, tags=[], about={}, made=datetime.datetime(2026, 1, 1)))
                session.flush()
        except IntegrityError as error:
            say("unique", error.orig.sqlstate)
        say("in the transaction", session.scalar(select(func.sum(Sale.count))))
        session.rollback()
        say("rolled back", session.scalar(select(func.sum(Sale.count))))
    crowd(engine)
    upsert = insert(Item).values(name="item 1", colour=Colour.green, tags=[], about={}, made=datetime.datetime(2026, 1, 1))
    with engine.begin() as conn:
        say("upsert", conn.execute(upsert.on_conflict_do_update(index_elements=["name"], set_={"tags": ["new"]})).rowcount)
        say("streamed", sum(1 for _ in conn.execution_options(stream_results=True, max_row_buffer=10).execute(select(Item.id))))
    engine.dispose()


def sessions():
    """Two engines with different parameters on the same server connections, by turns."""
    url = f"postgresql+psycopg://{ADDRESS}"
    one = create_engine(url, connect_args={"options": "-c search_path=one", "prepare_threshold": 1})
    two = create_engine(url, connect_args={"options": "-c search_path=two -c TimeZone=Asia/Tokyo"})
    with one.begin() as conn:
        for schema in ("one", "two"):
            conn.execute(text(f"CREATE SCHEMA {schema}"))
            conn.execute(text(f"CREATE TABLE {schema}.place AS SELECT '{schema}' AS name"))
    look = text("SELECT name, current_setting('search_path'), current_setting('TimeZone') FROM place")
    with one.connect() as first, two.connect() as second:
        for _ in range(3):
            say("by turns", [tuple(conn.execute(look).one()) for conn in (first, second)])
            first.commit()
            second.commit()
        first.execute(text("SET LOCAL search_path = two"))
        first.execute(text("CREATE TEMP TABLE mine (n int) ON COMMIT DROP"))
        first.execute(text("INSERT INTO mine VALUES (1), (2)"))
        first.execute(text("SELECT pg_advisory_xact_lock(7)"))
        say("in it", (first.execute(look).one()[0], first.scalar(text("SELECT sum(n) FROM mine"))))
        say("locked", second.scalar(text("SELECT pg_try_advisory_xact_lock(7)")))
        first.commit()
        say("after it", (first.execute(look).one()[0], second.scalar(text("SELECT pg_try_advisory_xact_lock(7)"))))
    one.dispose()
    two.dispose()


def crowd(engine):
    """More threads than the application's pool and the server's have connections."""
    sums = []

    def work(n):
        for round in range(10):
            with engine.connect() as conn:
                sums.append(conn.scalar(select(func.count()).select_from(Item).where(Item.id > 0)) + n + round)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("crowd", (len(sums), sum(sums)))


async def over_asyncpg():
    engine = create_async_engine(f"postgresql+asyncpg://{ADDRESS}", pool_size=4, max_overflow=2, pool_pre_ping=True)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions() as session:
        found = (await session.scalars(select(Item).options(selectinload(Item.sales)).order_by(Item.id).limit(2))).all()
        say("items", [(i.name, i.colour, i.tags, i.about, [s.price for s in i.sales]) for i in found])
        try:
            await session.execute(text("SELECT 1 / 0"))
        except DBAPIError as error:
            say("division", error.orig.sqlstate)
        await session.rollback()
        say("and on", await session.scalar(text("SELECT 'well'")))

    async def work(n):
        total = 0
        for round in range(10):
            async with sessions() as session, session.begin():
                total += await session.scalar(select(func.count()).select_from(Sale).where(Sale.id > n - n)) + round
        return total

    say("crowd", await asyncio.gather(*(work(n) for n in range(12))))
    async with engine.connect() as conn:
        say("streamed", len([row async for row in await conn.stream(select(Sale.id))]))
    await engine.dispose()


over_psycopg()
sessions()
asyncio.run(over_asyncpg())
