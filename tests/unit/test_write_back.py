"""What is sent to forges and to the operator, over real HTTP."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from reconciler.core.desired import Desired
from reconciler.core.forge import Forge, checked_url, forge_of
from reconciler.core.outcome import Outcome, State
from reconciler.core.plan import Action, Change, Do, Held, HeldKind, Plan, Step
from reconciler.host.settings import Settings
from reconciler.loop.source import make_write_back
from reconciler.loop.write_back import TOKEN_VARIABLE, CommitStatus, Notify, Target, WriteBack

TOKEN = "planted-token-0123456789"
A, B = "a" * 40, "b" * 40
DONE = Plan(unchanged=("m",))
UNDER_WAY = Plan(changes=(Change("m", Action.ADD, "its file is new"),), steps=(Step(Do.START, "m", "m-1"),))
HELD = Plan(held=(Held("m", HeldKind.FAILED, "out of memory", "m.yaml"),))

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A forge that notes what it is sent, and answers as it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.times: list[float] = []
        self.at_once = 0
        self.most_at_once = 0
        self.answers: list[Answer | int] = []
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.calls.append(
                (f"{request.method} {request.raw_path}", dict(request.headers), await request.read())
            )
            answer = self.answers.pop(0) if self.answers else 201
            return web.json_response({}, status=answer) if isinstance(answer, int) else await answer(request)
        finally:
            self.at_once -= 1

    @property
    def states(self) -> list[tuple[str, str]]:
        return [(line.rsplit("/", 1)[1], json.loads(body)["state"]) for line, _, body in self.calls]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    await found.server.start_server()
    yield found
    await found.server.close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def quick(*targets: Target, give_up_seconds: float = 5.0, try_seconds: float = 2.0) -> WriteBack:
    return WriteBack(targets, try_seconds=try_seconds, give_up_seconds=give_up_seconds, first_pause=0.02)


def github(server: Server, token: Path | None) -> CommitStatus:
    return CommitStatus(Forge("github", server.url, "o/r"), "reconcile/test", token)


def see(back: WriteBack, revision: str, plan: Plan) -> None:
    back.see(Desired(revision=revision), plan)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.005)


async def sent(back: WriteBack) -> None:
    """Wait until there is nothing left to send."""
    await asyncio.gather(*(sender._task for sender in back._senders if sender._task is not None))


@pytest.mark.parametrize(
    ("forge", "path", "header", "failure"),
    [
        (("github", "o/r"), f"/repos/o/r/statuses/{A}", ("Authorization", f"Bearer {TOKEN}"), "failure"),
        (("gitlab", "g/s/r"), f"/projects/g%2Fs%2Fr/statuses/{A}", ("PRIVATE-TOKEN", TOKEN), "failed"),
        (("gitea", "o/r"), f"/repos/o/r/statuses/{A}", ("Authorization", f"token {TOKEN}"), "failure"),
    ],
)
async def test_each_forge_is_told_in_its_own_way(  # noqa: PLR0917 -- fixtures and columns
    server: Server, token: Path, forge: tuple[Any, str], path: str, header: tuple[str, str], failure: str
) -> None:
    kind, repository = forge
    back = quick(CommitStatus(Forge(kind, f"{server.url}/api", repository), "reconcile/test", token))
    with capture_logs() as events:
        see(back, A, HELD)
        await sent(back)
    ((line, headers, body),) = server.calls
    assert line == f"POST /api{path}"
    assert headers[header[0]] == header[1]
    assert json.loads(body) == {
        "state": failure,
        "description": "1 model not as wanted: m (failed)",
        "context": "reconcile/test",
    }
    assert events == [
        {"event": "write_back.sent", "log_level": "info", "target": kind, "revision": A, "state": "failure"}
    ]


async def test_the_states_of_a_revision_and_of_the_one_that_it_replaces(server: Server, token: Path) -> None:
    back = quick(github(server, token))
    for revision, plan in ((A, UNDER_WAY), (A, UNDER_WAY), (B, UNDER_WAY), (B, DONE), (B, UNDER_WAY), (B, HELD)):
        see(back, revision, plan)
        await sent(back)
    assert server.states == [(A, "pending"), (A, "error"), (B, "pending"), (B, "success"), (B, "failure")]


async def test_of_what_waits_the_newest_wins_and_one_is_sent_at_a_time(server: Server, token: Path) -> None:
    go = asyncio.Event()

    async def when_let(_: web.Request) -> web.Response:
        await go.wait()
        return web.Response(status=201)

    server.answers = [when_let]
    back = quick(github(server, token), try_seconds=8)
    see(back, A, UNDER_WAY)
    await until(lambda: len(server.calls) == 1)
    see(back, B, UNDER_WAY)
    see(back, B, DONE)
    see(back, B, HELD)
    go.set()
    await sent(back)
    assert server.states == [(A, "pending"), (A, "error"), (B, "failure")]
    assert server.most_at_once == 1


async def test_it_is_tried_again_with_what_is_newest_then(server: Server, token: Path) -> None:
    server.answers = [503, 502]
    back = quick(github(server, token))
    with capture_logs() as events:
        see(back, A, UNDER_WAY)
        await until(lambda: len(server.calls) == 1)
        see(back, A, DONE)
        await sent(back)
    assert server.states == [(A, "pending"), (A, "success"), (A, "success")]
    assert [event["event"] for event in events] == ["write_back.sent"]


async def test_what_never_works_is_one_event(server: Server, token: Path) -> None:
    server.answers = [500] * 1000
    back = quick(github(server, token), give_up_seconds=0.5)
    with capture_logs() as events:
        see(back, A, DONE)
        await sent(back)
    assert 3 <= len(server.calls) <= 6  # after 0, 20, 60, 140, 300 ms
    ((event),) = events
    assert (event["event"], event["reason"]) == ("write_back.failed", "HTTP 500")
    assert event["attempts"] == len(server.calls)
    server.answers = []
    see(back, A, HELD)  # and what comes later is told
    await sent(back)
    assert server.states[-1] == (A, "failure")


@pytest.mark.parametrize("status", [401, 403, 404, 422, 301, 307])
async def test_what_is_refused_for_good_is_not_tried_again(server: Server, token: Path, status: int) -> None:
    elsewhere = Server()
    await elsewhere.server.start_server()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": f"{elsewhere.url}/steal"}, text=TOKEN)

    server.answers = [answer]
    back = quick(github(server, token))
    with capture_logs() as events:
        see(back, A, DONE)
        await sent(back)
    assert len(server.calls) == 1
    assert elsewhere.calls == []
    ((event),) = events
    assert event["event"] == "write_back.failed"
    assert event["reason"].startswith(f"HTTP {status}")
    assert TOKEN not in repr(events)
    await elsewhere.server.close()


async def test_a_server_that_asks_for_patience_gets_it(server: Server, token: Path) -> None:
    async def busy(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "1"})

    server.answers = [busy]
    back = quick(github(server, token))
    see(back, A, DONE)
    await sent(back)
    assert server.times[1] - server.times[0] >= 1.0


async def test_gitlab_has_the_state_already(server: Server, token: Path) -> None:
    async def answer(_: web.Request) -> web.Response:
        message = "Cannot transition status via :enqueue from :pending (Reason(s): Status cannot transition)"
        return web.json_response({"message": message}, status=400)

    server.answers = [answer]
    back = quick(CommitStatus(Forge("gitlab", server.url, "g/r"), "reconcile/test", token))
    with capture_logs() as events:
        see(back, A, UNDER_WAY)
        await sent(back)
    assert [event["event"] for event in events] == ["write_back.sent"]


async def test_a_server_that_never_ends_its_answer_holds_nobody(server: Server, token: Path) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        raise AssertionError

    server.answers = [silent, endless]
    back = quick(github(server, token), try_seconds=0.3)
    began = time.monotonic()
    with capture_logs() as events:
        see(back, A, DONE)
        await sent(back)
    assert time.monotonic() - began < 5
    assert [(event["event"], event["reason"]) for event in events] == [("write_back.failed", "HTTP 400")]


async def test_nobody_there(server: Server, token: Path) -> None:
    back = quick(github(server, token), give_up_seconds=0.1)
    await server.server.close()
    with capture_logs() as events:
        see(back, A, DONE)
        await sent(back)
    assert [event["event"] for event in events] == ["write_back.failed"]
    assert events[0]["reason"].startswith("ClientConnectorError")


async def test_the_token_is_read_at_each_call_from_its_file_or_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    back = quick(github(server, None), github(server, tmp_path / "absent"))
    with capture_logs() as events:
        see(back, A, DONE)
        await sent(back)
        monkeypatch.setenv(TOKEN_VARIABLE, "two\r\nlines")
        see(back, A, HELD)
        await sent(back)
    assert server.calls == []
    assert [event["event"] for event in events] == ["write_back.failed"] * 4
    assert "two" not in repr(events)
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    see(back, A, DONE)
    await sent(back)
    assert server.calls[0][1]["Authorization"] == "Bearer from-the-environment"


async def test_a_token_that_others_may_read_is_not_sent(server: Server, token: Path) -> None:
    await asyncio.to_thread(token.chmod, 0o644)
    back = quick(github(server, token))
    with capture_logs() as events:
        see(back, A, DONE)
        await sent(back)
    assert server.calls == []
    assert "chmod 600" in events[0]["reason"]
    assert TOKEN not in repr(events)


async def test_a_folder_has_no_commit_to_tell_of(server: Server, token: Path) -> None:
    back = quick(github(server, token))
    see(back, "3fa9c1d2e0aa", DONE)
    await sent(back)
    assert server.calls == []


async def test_the_operators_own_address_is_told_more_and_can_check_who_it_is(server: Server, token: Path) -> None:
    source = {"reconciler": "test", "repository": "https://host/o/r", "ref": "main"}
    back = quick(Notify(f"{server.url}/in/T000?x=1", source, token), Notify(f"{server.url}/unsigned", source))
    held = tuple(Held(f"m{n}", HeldKind.FAILED, "out of memory", f"m{n}.yaml") for n in range(150))
    before = time.time()
    with capture_logs() as events:
        see(back, "3fa9c1d2e0aa", Plan(held=held))
        await sent(back)
    (line, headers, body), (_, unsigned, _) = sorted(server.calls, key=lambda call: call[0])
    assert line == "POST /in/T000?x=1"
    told = json.loads(body)
    at, models = told.pop("at"), told.pop("models")
    assert before <= at <= time.time()
    assert len(models) == 100
    assert models[0] == {"model": "m0", "kind": "failed", "reason": "out of memory", "file": "m0.yaml"}
    assert told.pop("text").startswith("150 models not as wanted: m0 (failed), m1")
    assert told == {**source, "revision": "3fa9c1d2e0aa", "state": "failure", "more_models": 50}
    expected = hmac.new(TOKEN.encode(), body, hashlib.sha256).hexdigest()
    assert headers["X-Hub-Signature-256"] == f"sha256={expected}"
    assert "X-Hub-Signature-256" not in unsigned
    assert "T000" not in repr(events)


async def test_one_target_that_is_down_holds_up_no_other(server: Server, token: Path) -> None:
    other = Server()
    await other.server.start_server()
    server.answers = [500] * 1000
    back = quick(github(server, token), Notify(other.url, {}), give_up_seconds=30)
    see(back, A, DONE)
    await until(lambda: len(other.calls) == 1 and len(server.calls) >= 2)
    began = time.monotonic()
    await back.close()
    assert time.monotonic() - began < 10
    await other.server.close()


async def test_no_more_than_a_few_revisions_wait(server: Server, token: Path) -> None:
    server.answers = [500] * 1000
    back = quick(github(server, token), give_up_seconds=30)
    with capture_logs() as events:
        for number in range(40):
            see(back, f"{number:040x}", DONE)
    assert {event["event"] for event in events} == {"write_back.failed"}
    assert len(events) == 24
    await back.close()


async def test_what_could_not_be_read_is_no_news(server: Server, token: Path) -> None:
    back = quick(github(server, token))
    back.see(Desired(unreadable="gone"), Plan())
    await sent(back)
    assert server.calls == []


@pytest.mark.parametrize(
    ("url", "kind", "api", "found"),
    [
        ("https://github.com/o/r.git", "auto", "", ("github", "https://api.github.com", "o/r")),
        ("git@github.com:o/r.git", "auto", "", ("github", "https://api.github.com", "o/r")),
        ("https://ghe.corp/o/r", "github", "", ("github", "https://ghe.corp/api/v3", "o/r")),
        ("https://gitlab.com/g/s/r.git", "auto", "", ("gitlab", "https://gitlab.com/api/v4", "g/s/r")),
        ("ssh://git@git.corp:2222/g/r.git", "gitlab", "", ("gitlab", "https://git.corp/api/v4", "g/r")),
        ("https://codeberg.org/o/r", "auto", "", ("gitea", "https://codeberg.org/api/v1", "o/r")),
        ("https://host:3000/git/o/r", "gitea", "", ("gitea", "https://host:3000/git/api/v1", "o/r")),
        ("http://127.0.0.1:3000/o/r", "gitea", "", ("gitea", "http://127.0.0.1:3000/api/v1", "o/r")),
        ("git@host:o/r", "gitea", "https://api.corp/v1/", ("gitea", "https://api.corp/v1", "o/r")),
        ("http://user:pass@[::1]:80/o/r", "gitea", "", ("gitea", "http://[::1]:80/api/v1", "o/r")),
    ],
)
def test_where_the_api_is(url: str, kind: Any, api: str, found: tuple[Any, str, str]) -> None:
    assert forge_of(url, kind, api) == Forge(*found)


@pytest.mark.parametrize(
    ("url", "kind", "api"),
    [
        ("https://host/o/r", "auto", ""),
        ("http://host/o/r", "gitea", ""),
        ("https://host/r", "gitea", ""),
        ("https://host/o//r", "gitea", ""),
        ("https://host/../r", "gitea", ""),
        ("/srv/git/r.git", "gitea", ""),
        ("file:///srv/git/o/r.git", "gitea", ""),
        ("https://host/o/r", "gitea", "http://host/api"),
        ("https://host/o/r", "gitea", "https://u:secret-in-url@host/api"),
        ("https://host:99999/o/r", "gitea", ""),
        ("https://[/o/r", "gitea", ""),
        ("", "gitea", ""),
    ],
)
def test_where_it_cannot_be_told(url: str, kind: Any, api: str) -> None:
    with pytest.raises(ValueError) as refused:
        forge_of(url, kind, api)
    assert "secret-in-url" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://localhost:1/x?y", "http://127.9.9.9/", "https://host/x", "http://[::1]/"])
def test_where_secrets_may_go(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["http://host/", "ftp://localhost/", "https://", "http://localhost.evil/", "http://127.0.0.1.evil/", "x"],
)
def test_where_they_may_not(url: str) -> None:
    with pytest.raises(ValueError):
        checked_url(url)


def test_a_state_that_a_forge_has_no_word_for_is_none_of_ours() -> None:
    for kind in ("github", "gitlab", "gitea"):
        told = [
            json.loads(Forge(kind, "https://x", "o/r").status(Outcome(A, state, ""), "c", TOKEN).body)["state"]
            for state in State
        ]
        assert set(told) <= {"pending", "success", "failure", "failed", "error", "canceled"}
        assert len(set(told)) == 4


def test_who_is_told_hears_which_repository_it_is(tmp_path: Path) -> None:
    url = "https://git.example.com/ops/models.git"
    settings = Settings(
        source="git", git_url=url, git_ref="main", notify_url="https://example.com/x", state_dir=tmp_path
    )
    made = make_write_back(settings)
    assert made is not None
    (target,) = (sender._target for sender in made._senders)
    call = target.call(Outcome("1" * 40, State.SUCCESS, "well"))
    assert call is not None
    told = json.loads(call.body)
    assert (told["repository"], told["ref"]) == (url, "main")
