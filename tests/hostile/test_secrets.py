"""Secrets planted wherever something comes in; nothing that is printed, logged or stored holds one of them."""

import asyncio
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from activator_stack import MODELS, hot, stack
from aiohttp import web
from click.testing import CliRunner
from hub_server import Hub, Reset, Status
from weights.repository import Kit, model_files

from reconciler.activator.directory import Directory
from reconciler.cli.main import cli
from reconciler.core.render import Renderer
from reconciler.core.target import Platform
from reconciler.core.weights import Role, Wanted
from reconciler.host import log
from reconciler.host.settings import Settings
from reconciler.ray_serve.client import ServeClient, ServeRefusedError, ServeUnreachableError
from reconciler.weights.errors import WeightsError
from reconciler.weights.hub import Hub as Client

from . import cases_engine, cases_http, cases_schema, cases_template, cases_watcher, cases_yaml
from .cases_http import CHAT, LIMIT
from .cases_template import TemplateCase
from .cases_yaml import SOURCE
from .conftest import FOLDER, GOOD, HEALTHY, HUB_TOKEN, RENDERER, SICK, desired_of, judge
from .test_http import answer_of
from .test_templates import run_template
from .test_watcher import run_folder

PASSWORD = "plantedPasswordOfAnUrl1"
HEADER_KEY = "sk-plantedHeaderKey0123456789"
BODY_KEY = "sk-plantedBodyKey0123456789"
RAY_TOKEN = "plantedTokenOfRays0123456789"
GIT_TOKEN = "ghp_plantedGitToken0123456789abcdef"
URL = f"https://someone:{PASSWORD}@hub.example/org/model"
SECRETS = (HUB_TOKEN, PASSWORD, HEADER_KEY, BODY_KEY, RAY_TOKEN, GIT_TOKEN)
# Half of one is as good as all of it to whoever can guess the rest.
_PARTS = re.compile("planted", re.IGNORECASE)

# What people paste into a model file by mistake, or because another tool wants it there.
PLANTS = [
    *(f"{key}: {HUB_TOKEN}\n" for key in ("token", "hf_token", "password", "tokne")),
    f"{HUB_TOKEN}: 1\n",
    f"endpoint: {URL}\n",
    f"engine: {{args: {{api_key: {BODY_KEY}}}}}\n",
    f"engine: {{args: {{hf_token: {HUB_TOKEN}}}}}\n",
    f"engine: {{quantization: {BODY_KEY}}}\n",
    f"engine: {{quantization: {HUB_TOKEN}}}\n",
    f"engine: {{dtype: {HUB_TOKEN}}}\n",
    f"engine: {{max_model_len: {HUB_TOKEN}}}\n",
    f"resources: {{accelerator: '{URL}'}}\n",
    f"aliases: ['{URL}', '{HUB_TOKEN}!']\n",
    f"labels: {{'{GIT_TOKEN}!': x}}\n",
    f"lifecycle: {{idle_timeout: {HUB_TOKEN}}}\n",
    f"lifecycle: {{idle_timeout: '{URL}'}}\n",
    f"adapters: [{{name: x, repo: '{URL}'}}]\n",
    f"adapters: [{{name: x, path: a, revision: {GIT_TOKEN}}}]\n",
    f"headers: {{Authorization: Bearer {RAY_TOKEN}}}\n",
    f"description: 'Authorization: Bearer {RAY_TOKEN}'\ntask: 'Bearer {RAY_TOKEN}'\n",
    f"task: {GIT_TOKEN}\n",
    # Where the reader itself complains.
    f"a: &{HUB_TOKEN} 1\n",
    f"a: *{HUB_TOKEN}\n",
    f"a: !{HUB_TOKEN} 1\n",
    f"{HUB_TOKEN}: 1\n{HUB_TOKEN}: 2\n",
    f"a: b: {URL}\n",
    f"a: '{URL}\n",
    f"{HUB_TOKEN}\n",
    f"a: {'9' * 30}{HUB_TOKEN}\n",
    f"# {URL} {HUB_TOKEN}\n%{HUB_TOKEN}\n",
]
_WHOLE = [
    f"source: {{repo: '{URL}'}}\n",
    f"source: {{repo: {HUB_TOKEN}}}\n",
    f"source: {{repo: org/good, revision: '{URL}'}}\n",
    f"source: {{repo: org/good, tokenizer: '{URL}'}}\n",
    f"name: '{URL}'\n{SOURCE}",
    f"name: {HUB_TOKEN}!\n{SOURCE}",
    f"name: {HUB_TOKEN}\n{SOURCE}aliases: [{HUB_TOKEN}]\n",
]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Everything that is logged, by structlog and by Python's logging, down to debug."""
    lines = io.StringIO()
    log.configure(json_lines=True, level="debug", stream=lines)
    handler = logging.StreamHandler(lines)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    # The upstream that the tests play, not ours.
    monkeypatch.setattr(logging.getLogger("aiohttp.access"), "propagate", False)
    root.setLevel(logging.DEBUG)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, HUB_TOKEN)
    monkeypatch.setenv("PLANTED", " ".join(SECRETS))
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def assert_clean(*texts: str | bytes) -> None:
    for text in texts:
        told = text.decode("latin-1") if isinstance(text, bytes) else text
        found = _PARTS.search(told)
        assert found is None, told[max(0, found.start() - 200) : found.end() + 50]


def assert_clean_folder(folder: Path) -> int:
    """No file's name or content has a secret; how many there are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert_clean(str(path.relative_to(folder)), path.read_bytes())
    return len(files)


def test_a_model_file(logged: io.StringIO) -> None:
    cases = [*cases_yaml.CASES, *cases_schema.CASES, *cases_engine.CASES]
    small = [case.text for case in cases if isinstance(case.text, str) and len(case.text) < 1000]
    texts = [
        *_WHOLE,
        *(SOURCE + plant for plant in PLANTS),
        *(plant + SOURCE for plant in PLANTS),
        *(f"{SOURCE}{first}{second}" for first in PLANTS for second in PLANTS if first is not second),
        *(text + plant for text in small for plant in PLANTS[::5]),
    ]  # fmt: skip
    for text in texts:
        desired = desired_of({SICK: text.encode("utf-8", "surrogatepass")})
        assert_clean("\n".join(map(str, desired.problems)), repr(desired.problems))
    for text in (*_WHOLE, *(SOURCE + plant for plant in PLANTS)):
        assert_clean(judge(desired_of({**HEALTHY, SICK: text.encode()})).printed)
    assert_clean(logged.getvalue())


def test_a_template(logged: io.StringIO) -> None:
    for case in cases_template.CASES:
        assert_clean(run_template(case).printed)
    for text in ("{{ environ.PLANTED }}", "{{ os.environ }}", "{{ lipsum.__globals__.os.environ }}"):
        assert_clean(run_template(TemplateCase(text, text, "")).printed)
    assert_clean(logged.getvalue())


def test_a_template_that_fails_on_a_value_with_a_secret() -> None:
    renderer = Renderer("{{ model[model.description] }}", Platform())
    desired = desired_of({SICK: f"{GOOD}description: {HUB_TOKEN}\n".encode()}, renderer)
    assert desired.problems
    assert_clean("\n".join(map(str, desired.problems)))


def test_a_folder(logged: io.StringIO, tmp_path: Path) -> None:
    """Links lead to this process's environment, among others."""
    for index, case in enumerate(cases_watcher.CASES):
        place = tmp_path / str(index)
        place.mkdir()
        judged = run_folder(case, place)
        assert_clean("\n".join(map(str, judged.desired.problems)))
    assert_clean(logged.getvalue())


async def test_requests(logged: io.StringIO) -> None:
    """Keys in headers, in addresses and in bodies: none is passed on in a header, told or logged."""
    secret = (
        f"\r\nAuthorization: Bearer {HEADER_KEY}\r\nX-Api-Key: {HEADER_KEY}\r\nCookie: k={HEADER_KEY}\r\n".encode()
    )
    directory = Directory([*MODELS.entries, hot("dead")])
    async with stack(directory=directory, limit=LIMIT) as s:
        for case in cases_http.CASES:
            data = case.data.replace(b"\r\n", secret, 1).replace(
                b" HTTP/1.1", f"?key={HEADER_KEY} HTTP/1.1".encode(), 1
            )
            _, headers, body = await answer_of(s.port, data)
            if "qwen" not in body.decode("latin-1"):
                assert_clean(body)
            assert_clean(json.dumps(headers))
        for seen in s.upstream.seen:
            assert not {"authorization", "x-api-key"} & seen.headers.keys()

        async def fails(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.close()
            return web.Response()

        s.upstream.answer = fails
        for path in (CHAT, "/v1/embeddings", "/v1/messages"):
            asked = {"model": "dead", "api_key": BODY_KEY, "messages": [{"role": "user", "content": URL}]}
            key = {"Authorization": f"Bearer {HEADER_KEY}"}
            async with s.http.post(f"{s.url}{path}?api_key={HEADER_KEY}", json=asked, headers=key) as response:
                assert response.status == 503
                assert_clean(await response.text())
    told = logged.getvalue()
    assert "activator.upstream_unreachable" in told
    assert_clean(told)


async def test_downloads(logged: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's token, and a password in the hub's address, through every way in which a download can fail."""
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    told: list[str] = []
    with Hub(small_buffers=True, tokens=(HUB_TOKEN,)) as hub:
        kit = Kit(hub, tmp_path)
        kit.commit = hub.repo("org/model", model_files(size=2**16))
        wanted = Wanted("m", "org/model", "main", Role.MODEL)
        for fault in (Status(401), Status(403), Status(404), Status(429), Status(500), Reset()):
            hub.clear_faults()
            hub.fault(fault, times=None)
            for call in (
                lambda: kit.client().listing("org/model", "main"),
                lambda: kit.chooser().choose(kit.copy),
            ):
                try:
                    await asyncio.to_thread(call)
                except WeightsError as error:
                    told.append(f"{error} {error!r}")
            store = kit.store()
            told.append(repr(await store.revisions.resolve([wanted], patience=5)))
            await store.close()
        hub.clear_faults()
        await asyncio.to_thread(kit.fetch)
        store = kit.store()
        told.append(repr(await store.revisions.resolve([wanted], patience=10)))
        await store.close()
    assert len(told) > 12
    assert_clean(*told, logged.getvalue())
    assert assert_clean_folder(tmp_path) > 5


def test_a_password_in_the_hubs_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub(small_buffers=True) as hub:
        address = hub.url.replace("://", f"://someone:{PASSWORD}@")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        client = Client(address)
        told = []
        hub.fault(Status(500), times=2)
        for repo in ("org/model", "org/absent"):
            with pytest.raises(WeightsError) as caught:
                client.listing(repo, "main")
            told.append(str(caught.value))
    with pytest.raises(WeightsError) as caught:
        client.listing("org/model", "main")
    assert_clean(*told, str(caught.value))


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 500, 503])
async def test_ray(status: int, logged: io.StringIO, tmp_path: Path) -> None:
    """Ray's token, before a dashboard that fails in every way."""
    token = tmp_path / "token"
    token.write_text(f"{RAY_TOKEN}\n")
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
        return web.Response(status=status, text="no", headers=headers)

    from activator_stack import serving

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with serving(app) as url, ServeClient(url, token) as client:
        for call in (client.instance(), client.put({"applications": []}), client.nodes()):
            with pytest.raises((ServeRefusedError, ServeUnreachableError)) as caught:
                await call
            assert_clean(str(caught.value), repr(caught.value))
    assert set(seen) == {f"Bearer {RAY_TOKEN}"}
    assert_clean(logged.getvalue())


@pytest.mark.parametrize("status", [400, 500])
async def test_a_dashboard_that_echoes_its_token(status: int, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(RAY_TOKEN)

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=f"invalid token: {request.headers['Authorization']}")

    from activator_stack import serving

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with serving(app) as url, ServeClient(url, token) as client:
        with pytest.raises((ServeRefusedError, ServeUnreachableError)) as caught:
            await client.instance()
        assert_clean(str(caught.value))


@pytest.mark.parametrize(
    "toml",
    [
        f'hub_token = "{HUB_TOKEN}"\n',
        f'ray_dashboard = "http://someone:{PASSWORD}@ray:8265"\n',
        f'ray_token = "{RAY_TOKEN}"\n',
        f'listen_host = "{HUB_TOKEN}"\n',
        f'engine = "{HUB_TOKEN}"\n',
        f'allow_code = "{HUB_TOKEN}"\n',
        f"hub_token = {HUB_TOKEN}\n",
        f'"{HUB_TOKEN}\n',
    ],
)
def test_settings(toml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reconcile.toml").write_text(toml)
    (tmp_path / FOLDER).mkdir()
    result = CliRunner().invoke(cli, ["validate"])
    assert result.exit_code != 0
    assert_clean(re.sub(r"listen_host.*", "", result.output), str(result.exception))


def test_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state directory knows where tokens are, and not what they are."""
    for name in ("HF_TOKEN", "RAY_AUTH_TOKEN", "RECONCILE_PLANTED"):
        monkeypatch.setenv(name, HUB_TOKEN)
    token = tmp_path / "token"
    token.write_text(RAY_TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    state = tmp_path / "state"
    settings = Settings(state_dir=state, models_dir=tmp_path / FOLDER, engine="cpu")
    settings.remember()
    assert assert_clean_folder(state) >= 1
    assert str(token) in "".join(path.read_text() for path in state.iterdir())
    assert_clean(repr(settings))


def test_the_search_finds_what_it_searches() -> None:
    for secret in SECRETS:
        with pytest.raises(AssertionError):
            assert_clean(f"x {secret} y".encode())
    assert RENDERER is not None
    assert os.environ.get("PLANTED") is None
