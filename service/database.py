"""The database: engines, schema and data set.

`python -m service.database migrate` brings the schema up to date, `python -m service.database seed` fills in
the data set. Both can be run again and again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

# Engines are made through these modules, not imported names: a tracer may replace the functions later.
import sqlalchemy
import sqlalchemy.ext.asyncio
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.settings import Settings, read_settings

SEEDED_USERS = 10_000
_MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 7_163_548  # any number, the same in all processes


def driver_url(settings: Settings, driver: str) -> URL:
    """Return the database's URL for a driver: `asyncpg` or `psycopg`."""
    url = make_url(str(settings.database_url)).set(drivername=f"postgresql+{driver}")
    if driver == "asyncpg" and "sslmode" in url.query:
        # asyncpg takes libpq's values under a name of its own.
        url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(["sslmode"])
    return url


def plain_url(settings: Settings) -> str:
    """Return the database's URL, password included, for psycopg without SQLAlchemy."""
    url = driver_url(settings, "psycopg").set(drivername="postgresql")
    timeout = {"connect_timeout": str(_connect_timeout(settings))}
    return url.update_query_dict(timeout).render_as_string(hide_password=False)


def async_engine(settings: Settings) -> AsyncEngine:
    """Make the engine of the async routes; it speaks asyncpg."""
    timeouts = {
        "timeout": settings.database_connect_timeout,
        "server_settings": {"statement_timeout": _milliseconds(settings.database_statement_timeout)},
    }
    return sqlalchemy.ext.asyncio.create_async_engine(
        driver_url(settings, "asyncpg"), connect_args=timeouts, **_pool(settings)
    )


def sync_engine(settings: Settings) -> Engine:
    """Make the engine of the sync routes; it speaks psycopg."""
    return sqlalchemy.create_engine(
        driver_url(settings, "psycopg"), connect_args=_psycopg_timeouts(settings), **_pool(settings)
    )


def job_engine(settings: Settings) -> AsyncEngine:
    """Make the engine of the job routes; it speaks psycopg, whose transactions the job queue can join."""
    return sqlalchemy.ext.asyncio.create_async_engine(
        driver_url(settings, "psycopg"), connect_args=_psycopg_timeouts(settings), **_pool(settings)
    )


def _pool(settings: Settings) -> dict[str, int | float | bool]:
    return {
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_max_overflow,
        "pool_timeout": settings.database_pool_timeout,
        "pool_pre_ping": settings.database_pool_pre_ping,
    }


def _psycopg_timeouts(settings: Settings) -> dict[str, str | int]:
    return {
        "connect_timeout": _connect_timeout(settings),
        "options": f"-c statement_timeout={_milliseconds(settings.database_statement_timeout)}",
    }


def _connect_timeout(settings: Settings) -> int:
    return max(1, round(settings.database_connect_timeout))  # libpq knows whole seconds only


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def migrate(connection: Connection) -> None:
    """Bring the schema up to date."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def seed(connection: Connection) -> None:
    """Fill in the data set, unless it is there: 10,000 users, about 100,000 orders and 200,000 order items.

    A user has 1 to 19 orders, an order 1 to 3 items. The same at each place: what looks random is a hash.
    """
    if connection.scalar(text("SELECT count(*) FROM users WHERE id <= :users"), {"users": SEEDED_USERS}):
        return
    for statement in _SEED:
        connection.execute(text(statement), {"users": SEEDED_USERS})


def _hash(kind: str, key: str, modulus: int) -> str:
    return f"abs(hashtext('{kind}' || {key})::bigint) % {modulus}"


_SEED = (
    f"""
    INSERT INTO users (id, email, name, created_at)
    SELECT id, 'user' || id || '@example.com', 'User ' || id,
           timestamptz '2024-01-01' + {_hash("created", "id", 365)} * interval '1 day'
    FROM generate_series(1, :users) AS id
    """,
    f"""
    INSERT INTO orders (user_id, placed_at)
    SELECT users.id, users.created_at + {_hash("placed", "users.id || '/' || number", 365)} * interval '1 day'
    FROM users, generate_series(1, 1 + {_hash("orders", "users.id", 19)}) AS number
    WHERE users.id <= :users
    ORDER BY users.id, number
    """,
    f"""
    INSERT INTO order_items (order_id, product, quantity, price_cents)
    SELECT orders.id, 'Product ' || {_hash("product", "orders.id || '/' || number", 500)},
           1 + {_hash("quantity", "orders.id || '/' || number", 5)},
           100 + {_hash("price", "orders.id || '/' || number", 9900)}
    FROM orders, generate_series(1, 1 + {_hash("items", "orders.id", 3)}) AS number
    ORDER BY orders.id, number
    """,
    "SELECT setval(pg_get_serial_sequence('users', 'id'), (SELECT max(id) FROM users))",
    "ANALYZE users, orders, order_items",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m service.database", description=__doc__)
    parser.add_argument("command", choices=("migrate", "seed"))
    chosen = {"migrate": migrate, "seed": seed}[parser.parse_args(arguments).command]
    engine = sqlalchemy.create_engine(driver_url(read_settings(Settings), "psycopg"))
    try:
        with engine.begin() as connection:
            # Two that start at once take turns; the second finds nothing to do.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            chosen(connection)
    except SQLAlchemyError as error:
        raise SystemExit(f"The database cannot be prepared: {error}") from None
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
