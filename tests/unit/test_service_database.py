import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import HttpUrl, PostgresDsn, RedisDsn

from service.database import driver_url, plain_url
from service.settings import Settings


def settings(database_url: str) -> Settings:
    return Settings(
        database_url=PostgresDsn(database_url),
        cache_url=RedisDsn("redis://127.0.0.1:6379/0"),
        upstream_url=HttpUrl("http://127.0.0.1:9000"),
    )


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_a_plain_url_is_made_one_for_the_driver(scheme: str, driver: str) -> None:
    url = driver_url(settings(f"{scheme}://me:p%40ss@127.0.0.1:5433/demo"), driver)

    assert url.drivername == f"postgresql+{driver}"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "me",
        "p@ss",
        "127.0.0.1",
        5433,
        "demo",
    )


def test_psycopg_alone_gets_a_url_without_a_driver() -> None:
    url = plain_url(settings("postgresql+psycopg2://me:p%40ss@127.0.0.1:5433/demo"))

    assert conninfo_to_dict(url) == {
        "user": "me",
        "password": "p@ss",
        "host": "127.0.0.1",
        "port": "5433",
        "dbname": "demo",
        "connect_timeout": "5",
    }


def test_each_driver_is_told_of_tls_in_its_own_words() -> None:
    needed = settings("postgresql://me@127.0.0.1/demo?sslmode=require")

    assert dict(driver_url(needed, "asyncpg").query) == {"ssl": "require"}
    assert dict(driver_url(needed, "psycopg").query) == {"sslmode": "require"}
