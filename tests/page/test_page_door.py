"""Who gets in and what goes through, over HTTP without a browser: sessions, tokens, origins, headers, forms."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from reconciler.api.sessions import COOKIE, Sessions
from reconciler.page.app import page_app
from reconciler.page.guard import MAX_FORM_BYTES

from .page_backend import EVIL, KEY, RING, FakeBackend

ORIGIN = {"origin": "http://page.example", "sec-fetch-site": "same-origin"}
BROWSER = {"accept": "text/html,*/*"}


class Asking:
    """A client, the backend behind it, and a session."""

    def __init__(self) -> None:
        self.backend, self.sessions = FakeBackend(), Sessions(lambda: RING)
        self.app = page_app(self.backend, self.sessions)
        self.client = TestClient(
            self.app,
            base_url="http://page.example",
            raise_server_exceptions=False,
            headers=BROWSER,
            follow_redirects=False,
        )
        made = self.sessions.create(KEY)
        assert made is not None
        self.cookie, self.csrf = made

    def post(self, path: str, **fields: str) -> Any:
        self.client.cookies.set(COOKIE, self.cookie)
        return self.client.post(path, data={"csrf": self.csrf, **fields}, headers=ORIGIN)


@pytest.fixture
def asking() -> Iterator[Asking]:
    logging.disable(logging.CRITICAL)
    yield Asking()
    logging.disable(logging.NOTSET)


def routes(asking: Asking) -> list[tuple[str, str]]:
    app: Any = asking.app
    inner: Starlette = app._app
    found = []
    for route in inner.routes:
        if isinstance(route, Mount):
            assert route.path == "/static"
            continue
        assert isinstance(route, Route)
        path = route.path.replace("{name:path}", "qwen3-0.6b").replace("{action}", "load")
        found += [(method, path) for method in route.methods or () if path != "/login"]
    return found


def test_nothing_but_the_form_and_static_files_is_open(asking: Asking) -> None:
    asked = routes(asking)
    assert len(asked) > 20
    for method, path in asked:
        answer = asking.client.request(
            method, path, headers=ORIGIN, data={"model": "x"} if method == "POST" else None
        )
        assert answer.status_code in (303, 401), (method, path)
        assert answer.status_code == 401 or answer.headers["location"].startswith("/login?next=%2F")
        assert "qwen3" not in answer.text
    assert asking.backend.done == []
    assert asking.client.get("/static/style.css").status_code == 200
    assert asking.client.get("/static/../app.py").status_code == 404
    assert asking.client.get("/static/%2e%2e/app.py").status_code == 404


def test_every_post_needs_the_token_of_its_session_and_our_origin(asking: Asking) -> None:
    posts = [path for method, path in routes(asking) if method == "POST"]
    assert len(posts) == 8
    asking.client.cookies.set(COOKIE, asking.cookie)
    wrong: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, ORIGIN),
        ({"csrf": "guessed"}, ORIGIN),
        ({"csrf": "größer"}, ORIGIN),
        ({"csrf": asking.csrf}, {}),
        ({"csrf": asking.csrf}, {"origin": "null"}),
        ({"csrf": asking.csrf}, {"origin": "http://evil.example"}),
        ({"csrf": asking.csrf}, {"origin": "http://page.example.evil.example"}),
        ({"csrf": asking.csrf}, {**ORIGIN, "sec-fetch-site": "cross-site"}),
        ({"csrf": asking.csrf}, {"origin": "http://[", "sec-fetch-site": "same-origin"}),
    ]
    for path in posts:
        for fields, headers in wrong:
            answer = asking.client.post(path, data={"model": "qwen3-0.6b", **fields}, headers=headers)
            assert answer.status_code == 403, (path, fields, headers)
    assert asking.backend.done == []
    assert asking.sessions.find(asking.cookie) is not None


def test_every_answer_carries_the_headers(asking: Asking) -> None:
    asking.client.cookies.set(COOKIE, asking.cookie)
    asking.backend.of["qwen3-8b"] = None  # type: ignore[assignment]  # So that something fails.
    answers = {
        path: asking.client.get(path) for path in ("/", "/plan", "/nothing", "/models/none", "/static/page.js")
    }
    assert [answer.status_code for answer in answers.values()] == [500, 200, 404, 404, 200]
    for path, answer in answers.items():
        csp = answer.headers["content-security-policy"]
        assert csp.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in csp
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == ("no-cache" if "static" in path else "no-store")
    assert "Something failed here" in answers["/"].text
    assert "AttributeError" not in answers["/"].text


def test_the_cookie_is_for_the_server_alone(asking: Asking) -> None:
    answer = asking.client.post("/login", data={"key": f" {KEY}\n", "next": "//evil.example"}, headers=ORIGIN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert KEY not in answer.headers["set-cookie"]
    # The proxy that ends TLS speaks plain HTTP to us; only the browser says what it sees.
    for scheme in ("http", "https"):
        client = TestClient(asking.app, base_url=f"{scheme}://page.example", follow_redirects=False)
        answer = client.post("/login", data={"key": KEY}, headers={**ORIGIN, "origin": "https://page.example"})
        assert "secure" in answer.headers["set-cookie"].lower()
    assert (
        asking.client.post("/login", data={"key": KEY}, headers={"origin": "http://evil.example"}).status_code
        == 403
    )
    assert asking.client.post("/login", data={"key": "rk-x"}, headers=ORIGIN).status_code == 403


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/do/format", {"model": "qwen3-0.6b"}, 404),
        ("/do/load", {}, 400),
        ("/do/pin", {"model": "qwen3-0.6b", "seconds": "nan"}, 400),
        ("/do/pin", {"model": "qwen3-0.6b", "seconds": "-1"}, 400),
        ("/do/pin", {"model": "qwen3-0.6b", "seconds": "1e99"}, 400),
        ("/file/edit", {"model": "qwen3-0.6b"}, 400),
        ("/file/edit", {"model": "none", "digest": "x", "text": ""}, 404),
        ("/add", {}, 400),
        ("/add", {"repo": "nonsense"}, 400),
        ("/chat", {"model": "qwen3-0.6b", "message": "x", "before": "{"}, 400),
        ("/chat", {"model": "qwen3-0.6b", "message": "x", "before": "[1]"}, 400),
        ("/chat", {"model": "qwen3-0.6b", "message": "x", "before": "[" * 100_000}, 400),
        ("/chat", {"model": "qwen3-0.6b", "message": "x", "before": '[{"role": "system", "content": "x"}]'}, 400),
        ("/chat", {"model": "qwen3-0.6b", "message": "x" * 200_000}, 413),
        ("/add", {"repo": "x" * (MAX_FORM_BYTES + 1)}, 413),
        ("/add", {f"f{number}": "" for number in range(100)}, 400),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    asking: Asking, path: str, fields: dict[str, str], status: int
) -> None:
    answer = asking.post(path, **fields)
    assert answer.status_code == status
    assert "<h1>" in answer.text
    assert asking.backend.done == []


def test_only_forms_are_read(asking: Asking) -> None:
    asking.client.cookies.set(COOKIE, asking.cookie)
    assert asking.client.post("/do/load", json={"csrf": asking.csrf}, headers=ORIGIN).status_code == 415
    answer = asking.client.post(
        "/do/load",
        content=b"\xff=\xfe",
        headers={**ORIGIN, "content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 400


def test_a_form_that_does_not_end_is_let_go(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.page.guard._FORM_SECONDS", 0.1)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"k", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {**ORIGIN, "host": "page.example", "content-type": "application/x-www-form-urlencoded"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/login",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(asyncio.wait_for(asking.app(scope, receive, send), 10))
    assert sent[0]["status"] == 408


def test_options_of_a_command_go_through_and_no_others(asking: Asking) -> None:
    form = {"seconds": "3600", "reason": "why", "to": "9f8e", "model": "qwen3-0.6b", "back": "/models/qwen3-0.6b"}
    for action in ("load", "unpin", "suspend", "rollback", "pull"):
        assert asking.post(f"/do/{action}", **form).headers["location"] == "/models/qwen3-0.6b"
    assert [options for _, _, options in asking.backend.done] == [
        {"seconds": 3600.0},
        {},
        {"seconds": 3600.0, "reason": "why"},
        {"seconds": 3600.0, "reason": "why", "to": "9f8e"},
        {},
    ]


def test_a_stale_plan_is_not_applied(asking: Asking) -> None:
    assert asking.post("/plan/apply", desired="old", observed="o1", back="/plan").status_code == 303
    assert "the plan is stale" in asking.client.get("/plan").text
    assert asking.backend.pending


def test_the_line_ends_of_a_browser_are_not_written(asking: Asking) -> None:
    page = asking.client
    page.cookies.set(COOKIE, asking.cookie)
    digest = page.get("/models/embed").text.partition('name="digest" value="')[2][:64]
    text = "source:\r\n  repo: a/b\r\n"
    answer = asking.post("/file/edit", model="embed", digest=digest, text=text, step="write")
    assert answer.status_code == 303
    assert asking.backend.of["embed"].text == "source:\n  repo: a/b\n"


def test_a_part_that_is_gone_and_a_name_that_is_hostile_are_answered_as_text(asking: Asking) -> None:
    asking.client.cookies.set(COOKIE, asking.cookie)
    answer = asking.client.get("/parts/model", params={"name": EVIL}, headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    gone = asking.client.get("/parts/row", params={"name": EVIL}, headers={"hx-request": "true"})
    assert (gone.status_code, gone.text) == (200, ""), "its row goes away"
    answer = asking.client.get("/models/" + "x" * 5000)
    assert answer.status_code == 404
    assert "qwen3-0.6b" in answer.text


def test_static_files_say_their_version_and_are_whole() -> None:
    import hashlib

    from reconciler.page.show import STATIC

    stated = (STATIC / "htmx.version.txt").read_text(encoding="utf-8")
    assert hashlib.sha256((STATIC / "htmx.min.js").read_bytes()).hexdigest() in stated
    own = (STATIC / "page.js").read_text(encoding="utf-8")
    assert not any(
        word in own for word in ("innerHTML", "insertAdjacentHTML", "eval(", "document.write", "outerHTML")
    )
    for template in (STATIC.parent / "templates").iterdir():
        text = template.read_text(encoding="utf-8")
        assert "|safe" not in text
        assert not any(
            word in text for word in (" style=", "<style", " onclick", "javascript:", "hx-on", "hx-vals")
        )
