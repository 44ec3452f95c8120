"""Sessions of the page: what a cookie opens, from where, and when it ends."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from reconciler.api.auth import cookie_of
from reconciler.api.context import Access
from reconciler.api.sessions import COOKIE, LASTS_SECONDS, Sessions
from reconciler.core.keys import Scope

from .reconciler_here import Here

ORIGIN = "http://127.0.0.1:4002"


async def ask(
    here: Here, cookie: str, method: str = "GET", path: str = "/api/v1/models", **headers: str
) -> httpx.Response:
    async with here.client("") as client:
        named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
        return await client.request(method, path, headers={b"Cookie": f"a=b; {COOKIE}={cookie}".encode(), **named})


def log_in(here: Here, secret: str = "") -> tuple[str, str]:
    made = here.context.sessions.create(secret or here.admin)
    assert made is not None
    return made


async def test_a_cookie_opens_what_the_key_does(here: Here) -> None:
    cookie, csrf = log_in(here)
    assert (await ask(here, cookie)).status_code == 200
    assert (await ask(here, cookie[:-1])).status_code == 401
    answer = await ask(here, cookie, "POST", "/api/v1/models/base/pin", origin=ORIGIN, x_csrf_token=csrf)
    assert answer.status_code in (200, 409)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"origin": ORIGIN}, 403),
        ({"origin": ORIGIN, "x_csrf_token": "x"}, 403),
        ({"origin": ORIGIN, "x_csrf_token": "\xff"}, 403),
        ({"x_csrf_token": "right"}, 403),
        ({"origin": "http://evil.example", "x_csrf_token": "right"}, 403),
        ({"origin": "null", "x_csrf_token": "right"}, 403),
        ({"origin": "http://[", "x_csrf_token": "right"}, 403),
        ({"origin": ORIGIN, "sec_fetch_site": "cross-site", "x_csrf_token": "right"}, 403),
        ({"origin": ORIGIN, "sec_fetch_site": "same-origin", "x_csrf_token": "right"}, 200),
    ],
)
async def test_what_changes_something_comes_from_our_own_page(
    here: Here, headers: dict[str, str], status: int
) -> None:
    cookie, csrf = log_in(here)
    other = log_in(here)[1]
    assert other != csrf
    given = {name: csrf if value == "right" else value for name, value in headers.items()}
    answer = await ask(here, cookie, "POST", "/api/v1/models/qwen/load", **given)
    assert answer.status_code == status
    assert ("qwen" in here.loop.overrides.active()) == (status == 200)


async def test_a_session_ends_with_its_key_and_in_time(here: Here) -> None:
    second = here.key("second", Scope.ADMIN)
    cookie, _ = log_in(here, second)
    assert (await ask(here, cookie)).status_code == 200
    here.keys.revoke("second")
    assert (await ask(here, cookie)).status_code == 401
    now = [time.time()]
    sessions = Sessions(here.keys.ring, wall_clock=lambda: now[0])
    made = sessions.create(here.admin)
    assert made is not None
    now[0] += LASTS_SECONDS - 1
    found = sessions.find(made[0])
    assert found is not None
    assert (found.name, found.csrf) == ("admin", made[1])
    now[0] += 2
    assert sessions.find(made[0]) is None


async def test_only_an_admin_logs_in_and_can_leave(here: Here) -> None:
    sessions = here.context.sessions
    assert sessions.create(here.key("inference", Scope.INFERENCE)) is None
    assert sessions.create("rk-nothing") is None
    cookie, _ = log_in(here)
    sessions.end(cookie)
    sessions.end(cookie)
    assert sessions.find(cookie) is None


async def test_nothing_that_opens_is_kept_and_the_number_is_bounded(here: Here) -> None:
    sessions = here.context.sessions
    cookie, csrf = log_in(here)
    assert cookie not in repr(sessions._kept)
    assert csrf not in repr(sessions._kept)
    for _ in range(1000):
        log_in(here)
    assert sessions.find(cookie) is None
    assert len(sessions._kept) == 1000


async def test_failed_logins_are_slowed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.api.auth._SLOW_SECONDS", 0.2)
    here = Here(tmp_path, page=PlainTextResponse("no", status_code=403))
    async with here.client("") as client:
        for _ in range(10):
            assert (await client.post("/login", headers={"Origin": ORIGIN})).status_code == 403
        began = time.monotonic()
        assert (await client.post("/login", headers={"Origin": ORIGIN})).status_code == 403
        assert time.monotonic() - began >= 0.2


async def test_other_sites_cannot_have_our_own_logins_slowed_down(tmp_path: Path) -> None:
    asked: list[str] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await PlainTextResponse("in")(scope, receive, send)

    here = Here(tmp_path, page=page)
    async with here.client("") as client:
        for headers in ({"Origin": "https://evil.example"}, {}) * 10:
            assert (await client.post("/login", headers=headers)).status_code == 403
        assert asked == []
        began = time.monotonic()
        assert (await client.post("/login", headers={"Origin": ORIGIN})).status_code == 200
        assert time.monotonic() - began < 3


async def test_logins_wait_for_their_turn_where_others_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.api.auth._SLOW_SECONDS", 0.2)
    here = Here(tmp_path, page=PlainTextResponse("no", status_code=403))

    async def at_once(number: int) -> list[int]:
        async with here.client("") as client:
            asked = [client.post("/login", headers={"Origin": ORIGIN}) for _ in range(number)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert await at_once(10) == [403] * 10
    assert await at_once(40) == [403] * 40
    monkeypatch.setattr("reconciler.api.auth._SLOT_SECONDS", 0.05)
    assert sorted(await at_once(40)) == [403] * 16 + [429] * 24
    monkeypatch.setattr("reconciler.api.auth._SLOT_SECONDS", 5.0)
    assert await at_once(1) == [403]


@pytest.mark.parametrize("others", ['prefs={"a":1}', "a b=c", "=x; ;;", 'x="unended', "reconcile_session"])
async def test_cookies_of_other_programs_on_the_host_do_no_harm(here: Here, others: str) -> None:
    cookie, _ = log_in(here)
    for given in (f"{others}; {COOKIE}={cookie}", f"{COOKIE}={cookie}; {others}"):
        if given.endswith(f" {COOKIE}"):
            continue  # That would be another cookie of the same name.
        async with here.client("") as client:
            answer = await client.get("/api/v1/models", headers={"Cookie": given})
        assert answer.status_code == 200


def test_the_gate_and_the_page_see_the_same_cookie() -> None:
    for given in ([f"{COOKIE}=a; {COOKIE}=b"], [f"{COOKIE}=a", f"x=y; {COOKIE}=b"], [f"{COOKIE}=a", "x=y"], []):
        scope = {"type": "http", "headers": [(b"cookie", each.encode()) for each in given]}
        assert cookie_of(Headers(scope=scope)) == Request(scope).cookies.get(COOKIE, "")


async def test_what_a_proxy_asked_for_does_not_end_a_session(here: Here) -> None:
    cookie, _ = log_in(here)
    for _ in range(12):
        assert (await ask(here, cookie, authorization="Basic cms6cms=")).status_code == 200
    assert (await ask(here, cookie, authorization="Bearer rk-wrong")).status_code == 401


@pytest.mark.parametrize(
    ("host", "allowed", "status"),
    [
        ("127.0.0.1:4002", (), 200),
        ("localhost", (), 200),
        ("[::1]:4002", (), 200),
        ("evil.example", (), 400),
        ("localhost.evil.example", (), 400),
        ("", (), 400),
        ("models.example.org:443", ("*.example.org",), 200),
        ("MODELS.example.org", ("models.example.org",), 200),
        ("badexample.org", ("*.example.org",), 400),
    ],
)
async def test_by_which_names_we_are_called(
    tmp_path: Path, host: str, allowed: tuple[str, ...], status: int
) -> None:
    here = Here(tmp_path, access=Access(allowed_hosts=allowed))
    async with here.client() as client:
        answer = await client.get("/api/v1/catalogue", headers={"Host": host})
    assert answer.status_code == status


async def test_other_origins_are_off_unless_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    closed, opened = Here(tmp_path / "a"), Here(tmp_path / "b", access=Access(cors_origins=("https://a.example",)))
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    async with closed.client("") as client:
        answer = await client.options("/api/v1/models", headers=asks)
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (401, False)
    async with opened.client("") as client:
        answer = await client.options("/api/v1/models", headers=asks)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in answer.headers
        answer = await client.options("/api/v1/models", headers={**asks, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in answer.headers
