import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import psycopg
import pytest
import redis
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from asgi_lifespan import LifespanManager
from sqlalchemy import Engine, event

import service.database
from service.app import create_app
from service.models import Base
from service.settings import Settings

NOBODY = "127.0.0.1:9"  # the discard port, where nothing listens

ANSWERS: dict[str, tuple[str, int, Any]] = {
    # route: request, status, and what is fixed in the answer (None: it is a list or a stream)
    "GET /async-sleep": ("/async-sleep?delay=0.01", 200, {"seconds": 0.01}),
    "GET /blocking-in-async": ("/blocking-in-async?delay=0.01", 200, {"seconds": 0.01}),
    "GET /sync-blocking": ("/sync-blocking?delay=0.01", 200, {"seconds": 0.01}),
    "GET /offloaded-blocking": ("/offloaded-blocking?delay=0.01", 200, {"seconds": 0.01}),
    "GET /sync-dependency": ("/sync-dependency?delay=0.01", 200, {"seconds": 0.01}),
    "GET /users/{user_id}": ("/users/7", 200, {"id": 7, "email": "user7@example.com"}),
    "GET /sync-users/{user_id}": ("/sync-users/7", 200, {"id": 7, "email": "user7@example.com"}),
    "GET /hidden-sync-users/{user_id}": ("/hidden-sync-users/7", 200, {"id": 7, "name": "User 7"}),
    "GET /slow-query": ("/slow-query?seconds=0.01", 200, {"seconds": 0.01}),
    "GET /held-transaction": ("/held-transaction?seconds=0.01", 200, {"seconds": 0.01}),
    "GET /users/{user_id}/orders-n-plus-one": ("/users/7/orders-n-plus-one", 200, {"user_id": 7}),
    "GET /users/{user_id}/orders-joined": ("/users/7/orders-joined", 200, {"user_id": 7}),
    "POST /users": ("/users", 422, {}),
    "GET /cached-users/{user_id}": ("/cached-users/7", 200, {"id": 7, "email": "user7@example.com"}),
    "GET /profile/{user_id}": ("/profile/7", 200, {"user_id": 7, "plan": "basic"}),
    "GET /legacy-profile/{user_id}": ("/legacy-profile/7", 200, {"user_id": 7, "plan": "basic"}),
    "GET /bad-profile/{user_id}": ("/bad-profile/7", 200, {"user_id": 7, "plan": "basic"}),
    "GET /client-per-request/{user_id}": ("/client-per-request/7", 200, {"user_id": 7, "plan": "basic"}),
    "GET /no-timeout/{user_id}": ("/no-timeout/7", 200, {"user_id": 7, "plan": "basic"}),
    "GET /gathered-profile/{user_id}": (
        "/gathered-profile/7",
        200,
        {
            "user_id": 7,
            "plan": "basic",
            "language": "fr",
            "recommended": ["Product 8", "Product 9", "Product 10"],
        },
    ),
    "GET /cpu-def": ("/cpu-def", 200, {"result": sum(number**2 for number in range(2000))}),
    "GET /cpu-async": ("/cpu-async", 200, {"result": sum(number**2 for number in range(2000))}),
    "GET /cpu-in-path": ("/cpu-in-path?milliseconds=1", 200, {}),
    "POST /notify": ("/notify", 202, {"accepted": True}),
    "GET /teardown": ("/teardown?delay=0.01", 200, {"seconds": 0.01}),
    "POST /jobs": ("/jobs", 202, {}),
    "GET /jobs": ("/jobs?kind=queue&state=queued&limit=1", 200, None),
    "GET /jobs/{job_id}": ("/jobs/00000000-0000-0000-0000-000000000000", 404, {"detail": "no such job"}),
    "GET /jobs/{job_id}/events": (
        "/jobs/00000000-0000-0000-0000-000000000000/events",
        404,
        {"detail": "no such job"},
    ),
    "GET /dead-letters": ("/dead-letters", 200, None),
    "POST /dead-letters/{job_id}/requeue": (
        "/dead-letters/00000000-0000-0000-0000-000000000000/requeue",
        404,
        {"detail": "no such job"},
    ),
    "POST /background-jobs": ("/background-jobs", 202, {}),
    "GET /stream/tokens": ("/stream/tokens?tokens=2&interval=0", 200, None),
    "GET /healthz": ("/healthz", 200, {"alive": True}),
    "GET /readyz": ("/readyz", 200, {"database": True, "cache": True, "upstream": True}),
}
OFFLOADED = ("sync-blocking", "offloaded-blocking", "sync-dependency")
JSON = {"content-type": "application/json"}
CALLS_UPSTREAM = [
    name.split()[1].replace("{user_id}", "7") for name in ANSWERS if "profile" in name or "client" in name
]


def settings(environment: dict[str, str], **changed: Any) -> Settings:
    needed = {name.lower(): value for name, value in environment.items() if name.endswith("_URL")}
    return Settings.model_validate({**needed, **changed})


@asynccontextmanager
async def serving(environment: dict[str, str], **changed: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The service in this process, with settings changed."""
    app = create_app(settings(environment, **changed))
    async with (
        LifespanManager(app) as running,
        httpx.AsyncClient(transport=httpx.ASGITransport(running.app), base_url="http://service") as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMESPLIT_TRACES", "off")


@pytest.fixture
async def client(service_environment: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service_environment) as client:
        yield client


@pytest.fixture
def behave(upstream: str) -> Iterator[Any]:
    """Sets the upstream service's behaviour, until the end of the test."""

    def behave(**behaviour: float | str) -> None:
        httpx.put(f"{upstream}/behaviour", json={"mean": 0, **behaviour}, trust_env=False).raise_for_status()

    yield behave
    behave()


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """The SQL statements sent meanwhile."""
    statements: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", count)


@pytest.mark.parametrize("name", ANSWERS)
async def test_each_route_answers_as_documented(client: httpx.AsyncClient, name: str) -> None:
    request, status, fixed = ANSWERS[name]

    response = await client.request(name.split()[0], request)

    assert response.status_code == status
    assert fixed is None or fixed.items() <= response.json().items()


async def test_no_route_is_left_out(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    assert sorted(ANSWERS) == sorted(
        f"{method.upper()} {path}" for path, methods in paths.items() for method in methods
    )


async def test_n_plus_one_makes_as_many_statements_and_its_joined_twin_one(
    client: httpx.AsyncClient, database: str
) -> None:
    with psycopg.connect(database) as connection:
        (user, orders) = connection.execute(
            "SELECT user_id, count(*) FROM orders GROUP BY user_id HAVING count(*) > 5 ORDER BY user_id LIMIT 1"
        ).fetchone() or (0, 0)

    with counted_statements() as apart:
        first = await client.get(f"/users/{user}/orders-n-plus-one")
    with counted_statements() as joined:
        second = await client.get(f"/users/{user}/orders-joined")

    assert len(apart) == 1 + orders
    assert len(joined) == 1
    assert first.json() == second.json()
    assert len(first.json()["orders"]) == orders


async def test_who_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    routes = [name.split()[1] for name in ANSWERS if "users/{" in name]

    for route in routes:
        response = await client.get(route.replace("{user_id}", str(2**63 - 1)))
        assert (route, response.status_code) == (route, 404)


async def test_a_user_is_created_once(client: httpx.AsyncClient) -> None:
    new = {"email": "new@example.com", "name": "New"}

    created = await client.post("/users", json=new)
    again = await client.post("/users", json=new)

    assert created.status_code == 201
    assert (await client.get(created.headers["Location"])).json() == created.json()
    assert (again.status_code, again.json()) == (409, {"detail": "the email address is taken"})


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"email": "a@example.com"}, id="name missing"),
        pytest.param({"email": "nobody", "name": "A"}, id="no address"),
        pytest.param({"email": "a@example.com", "name": ""}, id="empty"),
        pytest.param({"email": "a@example.com", "name": "A" * 101}, id="too long"),
        pytest.param({"email": "a@example.com", "name": "A\x00"}, id="NUL"),
        pytest.param({"email": "a\ud800@example.com", "name": "A"}, id="half a character"),
        pytest.param({"email": "a@example.com", "name": "A", "admin": True}, id="unknown field"),
        pytest.param({"email": "a@example.com", "name": "A", "\ud800": 1}, id="half a character as a name"),
        pytest.param({"email": float("nan"), "name": "A"}, id="not a number"),
        pytest.param([], id="no object"),
    ],
)
async def test_a_user_who_cannot_be_is_refused(client: httpx.AsyncClient, body: Any) -> None:
    text = json.dumps(body)

    assert (await client.post("/users", content=text, headers=JSON)).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"[" * 70_000, 413, id="too large"),
        pytest.param(b"[" * 60_000, 400, id="too deep"),
        pytest.param(b"1" * 5_000, 400, id="too many digits"),
        pytest.param(b'{"seconds": 1e999}', 422, id="infinite"),
        pytest.param(b"\xff", 400, id="no UTF-8"),
        pytest.param(b"{", 422, id="no JSON"),
    ],
)
async def test_a_body_that_is_no_job_is_refused(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    assert (await client.post("/jobs", content=body, headers=JSON)).status_code == status


async def test_the_cache_is_filled_by_a_miss(client: httpx.AsyncClient, valkey: str) -> None:
    with redis.Redis.from_url(valkey) as cache:
        cache.flushall()

    miss = await client.get("/cached-users/9")
    with counted_statements() as statements:
        hit = await client.get("/cached-users/9")

    assert [answer.headers["X-Cache"] for answer in (miss, hit)] == ["miss", "hit"]
    assert statements == []
    assert miss.json() == hit.json()
    with redis.Redis.from_url(valkey) as cache:
        assert 0 < cache.pttl("user:9") <= 60_000


async def test_without_a_cache_the_database_answers(service_environment: dict[str, str]) -> None:
    async with serving(service_environment, cache_url=f"redis://{NOBODY}/0") as client:
        answer = await client.get("/cached-users/9")

    assert (answer.status_code, answer.headers["X-Cache"]) == (200, "miss")


async def test_without_a_free_connection_a_request_is_turned_away_in_time(
    service_environment: dict[str, str],
) -> None:
    small = {"database_pool_size": 1, "database_max_overflow": 0, "database_pool_timeout": 0.1}
    async with serving(service_environment, **small) as client:
        held, turned_away = await asyncio.gather(
            client.get("/held-transaction?seconds=1"), client.get("/slow-query?seconds=0")
        )

    assert held.status_code == 200
    assert turned_away.status_code == 503
    assert turned_away.json() == {"detail": "no database connection was free in time"}


async def test_a_statement_is_cancelled_after_its_time(service_environment: dict[str, str]) -> None:
    async with serving(service_environment, database_statement_timeout=0.1) as client:
        answer = await client.get("/slow-query?seconds=5")

    assert answer.status_code == 503
    assert answer.elapsed.total_seconds() < 5


@pytest.mark.parametrize(
    "request_line",
    ["GET /users/1", "GET /sync-users/1", "GET /hidden-sync-users/1", "POST /jobs", "GET /jobs"],
)
async def test_without_a_database_clients_are_told(
    service_environment: dict[str, str], request_line: str
) -> None:
    async with serving(service_environment, database_url=f"postgresql://nobody@{NOBODY}/none") as client:
        answer = await client.request(*request_line.split())

    assert answer.status_code == 503


@pytest.mark.parametrize("missing", ["database", "cache", "upstream"])
async def test_readiness_names_what_does_not_answer(
    service_environment: dict[str, str], missing: str
) -> None:
    scheme = {"database": "postgresql", "cache": "redis", "upstream": "http"}[missing]
    async with serving(service_environment, **{f"{missing}_url": f"{scheme}://{NOBODY}/0"}) as client:
        answer = await client.get("/readyz")

    assert answer.status_code == 503
    assert [need for need, there in answer.json().items() if not there] == [missing]


@pytest.mark.parametrize("path", CALLS_UPSTREAM)
async def test_a_failing_upstream_service_is_told(client: httpx.AsyncClient, behave: Any, path: str) -> None:
    behave(failure_rate=1)

    answer = await client.get(path)

    assert (answer.status_code, answer.json()) == (502, {"detail": "the upstream service failed"})


@pytest.mark.parametrize("path", CALLS_UPSTREAM)
async def test_an_upstream_service_that_is_away_is_told(
    service_environment: dict[str, str], path: str
) -> None:
    async with serving(service_environment, upstream_url=f"http://{NOBODY}") as client:
        assert (await client.get(path)).status_code == 502


@pytest.mark.parametrize("path", CALLS_UPSTREAM)
async def test_only_the_client_without_timeout_waits_for_a_hanging_upstream_service(
    service_environment: dict[str, str], behave: Any, path: str
) -> None:
    behave(hang_rate=1)
    async with serving(service_environment, upstream_timeout=0.1) as client:
        call = asyncio.create_task(client.get(path))
        done, _ = await asyncio.wait([call], timeout=2)
        call.cancel()

    assert [task.result().status_code for task in done] == ([] if "no-timeout" in path else [504])


async def test_blocking_routes_take_turns_and_offloaded_calls_share_the_tokens(
    service_environment: dict[str, str],
) -> None:
    async with serving(service_environment, thread_tokens=2) as client:
        blocked = await burst(client, "/blocking-in-async?delay=0.1", size=4)
        threads = [await burst(client, f"/{route}?delay=0.1", size=4) for route in OFFLOADED]

    assert blocked >= 0.4
    assert [took >= 0.2 for took in threads] == [True] * len(OFFLOADED)


async def burst(client: httpx.AsyncClient, path: str, *, size: int) -> float:
    """Send requests at once and return how long all took."""
    began = time.monotonic()
    await asyncio.gather(*(client.get(path) for _ in range(size)))
    return time.monotonic() - began


async def test_a_notification_is_sent_after_the_response(client: httpx.AsyncClient, database: str) -> None:
    await client.post("/notify", json={"message": "after", "seconds": 0.01})

    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT message FROM notifications WHERE message = 'after'").fetchall() == [
            ("after",)
        ]


async def test_tokens_come_as_events(client: httpx.AsyncClient) -> None:
    answer = await client.get("/stream/tokens?tokens=2&interval=0")

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == ('event: token\ndata: "token-0"\nid: 0\n\nevent: token\ndata: "token-1"\nid: 1\n\n')


def test_migrations_make_the_tables_that_the_models_describe(service_environment: dict[str, str]) -> None:
    engine = service.database.sync_engine(settings(service_environment))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_ours, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_preparing_a_database_again_changes_nothing(service_environment: dict[str, str]) -> None:
    engine = service.database.sync_engine(settings(service_environment))
    count = sqlalchemy.text("SELECT count(*), max(id) FROM order_items")
    with engine.begin() as connection:
        before = connection.execute(count).one()
        service.database.migrate(connection)
        service.database.seed(connection)

        assert connection.execute(count).one() == before
        assert before[0] > 150_000
    engine.dispose()


def is_ours(name: str | None, kind: str, _: object) -> bool:
    return not (kind == "table" and name is not None and name.startswith("procrastinate_"))
