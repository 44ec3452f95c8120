"""Nothing is open that should not be: generated from the route table, so that a new route cannot be forgotten."""

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from reconciler.api.app import api_app
from reconciler.api.auth import Failures
from reconciler.core.keys import Scope

from .reconciler_here import Here

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO")
ELSEWHERE = (
    "/", "/gpus", "/api", "/api/", "/api/v1", "/api/v2/models", "/login/x", "/static", "/static/../api/v1/models",
    "//api/v1/models", "/API/v1/models", "/metrics/", "/docs", "/redoc", "/openapi.json",
)  # fmt: skip
"""Paths that are nobody's, or the page's."""
_peers = itertools.count()


def paths(here: Here) -> Iterator[str]:
    known = 0
    for route in here.app.routes:
        assert isinstance(route, Route), route  # No mount: whatever is in it would not be seen here.
        known += 1
        yield (
            route.path.replace("{model:path}", "qwen").replace("{path:path}", "base.yaml").replace("{which}", "x")
        )
    assert known > 30


async def ask(here: Here, secret: str, method: str, path: str) -> httpx.Response:
    # Each from another address, so that no refusal is for too many wrong keys.
    async with here.client(secret, peer=f"10.0.0.{next(_peers)}") as client:
        return await client.request(method, path)


def refused(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and (
        answer.request.method == "HEAD" or set(answer.json()) == {"error", "near"}
    )


async def test_without_a_valid_key_there_is_nothing(here: Here) -> None:
    revoked, expired = (
        here.key("revoked", Scope.ADMIN),
        here.key("expired", Scope.ADMIN, expires=time.time() + 0.05),
    )
    here.keys.revoke("revoked")
    await asyncio.sleep(0.06)
    before = len(here.keys.ring().keys)
    for path in (*paths(here), *ELSEWHERE):
        for method in METHODS:
            for secret in ("", "rk-" + "x" * 43, revoked, expired):
                answer = await ask(here, secret, method, path)
                assert refused(answer, 401), (method, path, answer.status_code)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert len(here.keys.ring().keys) == before
    assert here.loop.overrides.active() == {}


async def test_with_another_scope_there_is_nothing(here: Here) -> None:
    inference, metrics = here.key("inference", Scope.INFERENCE), here.key("metrics", Scope.METRICS)
    for path in (*paths(here), *ELSEWHERE):
        for method in METHODS:
            assert refused(await ask(here, inference, method, path), 403), (method, path)
            if path != "/metrics":
                assert refused(await ask(here, metrics, method, path), 403), (method, path)
    assert (await ask(here, metrics, "GET", "/metrics")).text == "reconciler_up 1\n"
    assert (await ask(here, here.admin, "GET", "/metrics")).status_code == 200


async def test_only_the_form_and_static_files_of_the_page_are_open(tmp_path: Path) -> None:
    here = Here(tmp_path, page=PlainTextResponse("the page"))
    for method, path, status in (
        ("GET", "/login", 200), ("POST", "/login", 200), ("GET", "/static/x.js", 200), ("HEAD", "/static/x", 200),
        ("DELETE", "/login", 401), ("POST", "/static/page.js", 401), ("GET", "/", 401), ("POST", "/logout", 401),
        ("GET", "/static/../", 200),
    ):  # fmt: skip
        async with here.client("") as client:
            answer = await client.request(method, path, headers={"Origin": "http://127.0.0.1:4002"})
        assert answer.status_code == (401 if path == "/static/../" else status), (method, path)
    assert (await ask(here, here.admin, "GET", "/anything")).text == "the page"


async def test_a_browser_is_sent_to_the_form(here: Here) -> None:
    async with here.client("") as client:
        answer = await client.get("/models/a b?x=1", headers={"Accept": "text/html,*/*"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=%2Fmodels%2Fa%20b")
        assert (await client.get("/api/v1/models", headers={"Accept": "text/html"})).status_code == 401
        answer = await client.get("/parts/overview", headers={"HX-Request": "true"})
        assert (answer.status_code, answer.headers["hx-redirect"]) == (204, "/login")


@pytest.mark.parametrize(
    "path", ["/static/../api/v1/models", "/static/%2e%2e/gpus", "/static/..", "/login/../gpus"]
)
async def test_no_way_leads_around_the_form(here: Here, path: str) -> None:
    """As it is on the wire, which clients of good manners never send."""
    async with here.serving() as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == b"401"
        writer.close()


@pytest.mark.parametrize("given", ["Basic cms6cms=", "Bearer", "bearer  ", "\xff", "Bearer \xe9\xe9", "x" * 5000])
async def test_what_is_no_key_is_none(here: Here, given: str) -> None:
    async with here.client("") as client:
        answer = await client.get("/api/v1/models", headers={b"Authorization": given.encode("latin-1")})
    assert answer.status_code == 401


async def test_measures_are_written_down_in_the_event_loop(here: Here) -> None:
    """They are changed there, without a lock."""
    threads: list[int] = []

    def text() -> bytes:
        threads.append(threading.get_ident())
        return b"reconciler_up 1\n"

    app = api_app(dataclasses.replace(here.context, metrics_text=text))
    headers = {"Authorization": f"Bearer {here.admin}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4002", headers=headers) as client:
        assert (await client.get("/metrics")).text == "reconciler_up 1\n"
    assert threads == [threading.get_ident()]


async def test_who_tries_many_keys_is_put_off_and_nobody_else_is(here: Here) -> None:
    async with here.client("rk-wrong") as wrong, here.client() as right:
        statuses = [(await wrong.get("/api/v1/models")).status_code for _ in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert (await right.get("/api/v1/models")).status_code == 200
    clock = [0.0]
    failures = Failures(lambda: clock[0])
    for number in range(5000):
        failures.note(f"a{number}")
    assert len(failures._counts) <= 1000
    for _ in range(10):
        failures.note("b")
    assert failures.too_many("b")
    clock[0] = 61.0
    assert not failures.too_many("b")


async def test_a_key_file_that_cannot_be_read_closes_everything(here: Here) -> None:
    (here.state / "keys.json").write_text("{")
    for secret in (here.admin, "rk-x", ""):
        assert refused(await ask(here, secret, "GET", "/api/v1/models"), 503)
        assert refused(await ask(here, secret, "POST", "/login"), 503)


async def test_the_document_is_behind_the_key_too(here: Here) -> None:
    assert refused(await ask(here, "", "GET", "/api/v1/openapi.json"), 401)
    document = (await ask(here, here.admin, "GET", "/api/v1/openapi.json")).json()
    assert "/api/v1/models/{model}/load" in document["paths"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            codes = set(operation["responses"])
            assert {"400", "401", "403", "422", "503"} <= codes, (method, path)
            for code, answer in operation["responses"].items():
                if int(code) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (method, path, code)
