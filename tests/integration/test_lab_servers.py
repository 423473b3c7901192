import psycopg
import redis


def test_the_database_is_a_postgresql_18_reached_by_tcp(postgres: str) -> None:
    with psycopg.connect(postgres) as connection:
        version, address = connection.execute(
            "select current_setting('server_version_num')::int, host(inet_server_addr())"
        ).fetchone() or (0, "")

    assert version >= 180000
    assert address == "127.0.0.1"


def test_the_cache_answers_and_keeps_a_value(valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        client.set("key", "value")

        assert client.get("key") == b"value"
