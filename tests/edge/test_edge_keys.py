"""Who may infer: checked by HAProxy against digests, with nobody of ours on the way to a hot model."""

import asyncio
import json
import stat
import time
from dataclasses import replace

import pytest
from edge_harness import CHAT, TEMPLATE, House, Seen, envelope, eventually, house, kill, post, raw, sized

from reconciler.core.keys import Key, KeyRing, Scope, digest_of, secret_from
from reconciler.edge.access import Access
from reconciler.edge.edge import Edge, EdgeUnreachableError

SECRET, OTHER = secret_from("a" * 43), secret_from("b" * 43)
BEARER = f"Authorization: Bearer {SECRET}"


def key(secret: str = SECRET, name: str = "k", **changes: object) -> Key:
    made = Key(name, digest_of(secret), frozenset({Scope.INFERENCE}), created=0.0)
    return replace(made, **changes)  # type: ignore[arg-type]


async def let(home: House, *keys: Key) -> None:
    await home.edge.set_keys(KeyRing(keys), time.time())


async def status(home: House, *headers: str, model: str = "m", path: str = CHAT) -> int:
    body = json.dumps({"model": model}).encode()
    return (await raw(home.options.listen_port, post(path, body, *headers)))[0]


async def test_without_any_key_it_is_open_and_with_the_first_one_it_is_not() -> None:
    async with house() as home:
        pids = home.pids()
        await let(home)
        assert await status(home) == 200
        await let(home, key(scopes=frozenset({Scope.ADMIN})))
        assert await status(home) == 200  # nobody was asked for an inference key
        await let(home, key())
        assert await status(home) == 401
        assert await status(home, BEARER) == 200
        assert home.pids() == pids
        assert home.activator.seen == []


async def test_a_refusal_is_openais_and_says_how_to_authenticate() -> None:
    async with house() as home:
        await let(home, key())
        for body in (b'{"model":"m"}', b'{"model":"m","stream":true}'):
            code, headers, answer = await raw(home.options.listen_port, post(CHAT, body))
            assert code == 401
            assert headers["www-authenticate"] == "Bearer"
            assert headers["x-request-id"]
            error = envelope(answer)
            assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        assert home.serve.seen == home.activator.seen == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([BEARER], 200),
        ([f"authorization: bEARER   {SECRET}"], 200),
        ([f"X-Api-Key: {SECRET}"], 200),
        # A bearer counts before the other header, whatever it says.
        ([BEARER, "X-Api-Key: wrong"], 200),
        (["Authorization: Bearer wrong", f"X-Api-Key: {SECRET}"], 401),
        (["Authorization: Bearer", f"X-Api-Key: {SECRET}"], 401),
        (["Authorization: Basic eDp5", f"X-Api-Key: {SECRET}"], 200),
        (["Authorization:", f"X-Api-Key: {SECRET}"], 200),
        ([f"X-Api-Key: {SECRET}", "Authorization: Basic eDp5", "Authorization: Bearer wrong"], 401),
        # A header that is there twice holds no key, in two lines or in one.
        ([BEARER, BEARER], 401),
        ([BEARER, "Authorization: Bearer wrong"], 401),
        ([f"X-Api-Key: {SECRET}", f"X-Api-Key: {SECRET}"], 401),
        ([f"{BEARER}, Bearer wrong"], 401),
        ([f"{BEARER},"], 401),
        ([f"X-Api-Key: {SECRET}, wrong"], 401),
        ([], 401),
        (["Authorization: Bearer"], 401),
        (["X-Api-Key:"], 401),
        ([f"Authorization: {SECRET}"], 401),
        ([f"Authorization: Basic {SECRET}"], 401),
        ([f"{BEARER}x"], 401),
        ([f"{BEARER} x"], 401),
        ([f"Authorization: Bearer {SECRET[:-1]}"], 401),
        ([f"Authorization: Bearer {SECRET.upper()}"], 401),
        # What is in the maps opens nothing.
        ([f"X-Api-Key: {digest_of(SECRET)}"], 401),
        ([f"X-Api-Key: {digest_of(SECRET).upper()}"], 401),
        ([f"X-Api-Key: {digest_of(SECRET)[:12]}"], 401),
        (["X-Api-Key: mode"], 401),
        (["X-Api-Key: %[var(txn.key)] \xff\x7f"], 401),
        ([f"X-Api-Key: {'a' * 100_000}"], 401),
        # What is no HTTP is refused as that.
        ([f"X-Api-Key: {SECRET}\0"], 400),
        ([f"{BEARER}\0x"], 400),
        ([f"Authorization : Bearer {SECRET}"], 400),
        (["Authorization: Bearer x\rX-Api-Key: y"], 400),
        ([f"X-Api-Key: {'a' * 300_000}"], 400),
    ],
)
async def test_what_counts_as_a_key(headers: list[str], expected: int) -> None:
    async with house() as home:
        await let(home, key())
        assert await status(home, *headers) == expected
        assert len(home.serve.seen) == (expected == 200)
        assert home.activator.seen == []


async def test_no_secret_is_kept_and_what_is_kept_is_the_owners() -> None:
    async with house() as home:
        await let(home, key(models=frozenset({"m"})))
        assert await status(home, BEARER) == 200
        assert await status(home, f"Authorization: Bearer {OTHER}") == 401
        for file in home.options.folder.rglob("*"):
            if file.is_file():
                assert SECRET.encode() not in file.read_bytes()
                assert OTHER.encode() not in file.read_bytes()
                assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0 or file.name in ("edge.lock", "edge.pid")


async def test_the_engine_gets_no_key_and_the_activator_gets_it_as_it_came() -> None:
    async with house() as home:
        await let(home, key())
        assert await status(home, BEARER) == 200
        assert not {"authorization", "x-api-key"} & _headers(home.serve.seen[-1]).keys()
        assert await status(home, BEARER, model="cold") == 200
        assert _headers(home.activator.seen[-1])["authorization"] == f"Bearer {SECRET}"
        assert await status(home, f"X-Api-Key: {SECRET}", model="cold") == 200
        assert _headers(home.activator.seen[-1])["x-api-key"] == SECRET


def _headers(seen: Seen) -> dict[str, str]:
    return {name.lower(): value for name, value in seen.headers.items()}


async def test_a_key_opens_its_models_alone_with_all_their_names() -> None:
    routes = {"m": "app-m", "m-alias": "app-m", "n": "app-n"}
    async with house(routes) as home:
        mine = key(models=frozenset({"m", "absent"}))
        await let(home, mine, key(OTHER, "all"))
        for model in ("m", "m-alias"):
            assert await _server(home, model, SECRET) == "serve"
        # The activator says what it says of a model that it does not know.
        assert await _server(home, "n", SECRET) == "activator"
        assert await _server(home, "n", OTHER) == "serve"
        await home.edge.set_routes({"m": "app-n", "n": "app-m"})
        assert await _server(home, "m", SECRET) == "serve"
        assert await _server(home, "n", SECRET) == "activator"
        await let(home, replace(mine, models=frozenset({"n"})))
        assert await _server(home, "n", SECRET) == "serve"
        assert await _server(home, "m", SECRET) == "activator"
        await let(home, replace(mine, models=None))
        assert await _server(home, "m", SECRET) == "serve"


async def _server(home: House, model: str, secret: str) -> str:
    async with home.client.post(
        CHAT, json={"model": model}, headers={"Authorization": f"Bearer {secret}"}
    ) as answer:
        assert answer.status == 200
        return str((await answer.json())["server"])


async def test_a_revoked_key_ends_at_once_and_a_stream_that_began_does_not() -> None:
    async with house() as home:
        await let(home, key(), key(OTHER, "other"))
        pids = home.pids()
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with home.client.post(CHAT, json={"model": "m", "x": "stream"}, headers=headers) as response:
            assert await response.content.readline() == b"data: one\n"
            await let(home, key(revoked=1.0), key(OTHER, "other"))
            assert await status(home, BEARER) == 401
            assert await status(home, f"Authorization: Bearer {OTHER}") == 200
            home.serve.gate.set()
            assert b"data: two" in await response.content.read()
        # With the last one the door is shut and not open.
        await let(home, key(revoked=1.0), key(OTHER, "other", revoked=1.0))
        assert await status(home, f"Authorization: Bearer {OTHER}") == 401
        assert await status(home) == 401
        assert home.pids() == pids


async def test_a_key_expires_by_the_clock_though_nobody_refreshes_the_maps() -> None:
    async with house() as home:
        end = time.time() + 2.5
        await let(home, key(expires=end))
        assert await status(home, BEARER) == 200

        async def refused() -> bool:
            return await status(home, BEARER) == 401

        await eventually(refused)
        assert end - 1.1 < time.time() < end + 5
        assert len(_keys_on_file(home)) == 2
        # And it is taken away by whoever looks.
        await home.edge.set_keys(KeyRing((key(expires=end),)), end)
        assert _keys_on_file(home) == ["mode"]


def _keys_on_file(home: House) -> list[str]:
    return [line.split()[0] for line in (home.options.folder / "keys.map").read_text().splitlines()]


async def test_keys_survive_the_edge_and_a_damaged_file_opens_nothing() -> None:
    async with house() as home:
        await let(home, key(models=frozenset({"m"})))
        kill(home.pids()[0])

        async def down() -> bool:
            return not await home.edge.is_running()

        await eventually(down)
        # Set while it is down, by somebody else, it is what it starts with.
        another = home.another()
        assert await another.ensure_running()
        assert await _server(home, "m", SECRET) == "serve"
        assert await status(home) == 401
        file = home.options.folder / "keys.map"
        for text in ("garbage\n", "\0\xff\n", file.read_text()[:30]):
            await home.edge.stop(grace_seconds=0)
            file.write_text(text)
            assert await another.ensure_running()
            assert await status(home) == 401
            assert await status(home, BEARER) == 401
        await let(home, key())
        assert await status(home, BEARER) == 200


async def test_keys_set_while_it_is_down_are_there_when_it_is_up() -> None:
    async with house(running=False) as home:
        await let(home, key())
        await home.edge.ensure_running()
        assert await status(home) == 401
        assert await status(home, BEARER) == 200


async def test_a_reload_forgets_no_key() -> None:
    async with house() as home:
        await let(home, key(models=frozenset({"m"})))
        before = home.pids()
        assert await home.another(max_connections=100).ensure_running() is False
        assert home.pids() != before
        assert await status(home) == 401
        assert await _server(home, "m", SECRET) == "serve"


async def test_a_key_that_is_none_changes_nothing() -> None:
    async with house() as home:
        await let(home, key())
        for changes in ({"digest": "x"}, {"digest": digest_of("y") + "\n"}, {"requests_per_minute": 0}):
            with pytest.raises(ValueError):
                await let(home, key(OTHER, "bad", **changes))
        # Names are no business of HAProxy's.
        await let(home, key(models=frozenset({"a b\nset map", "m"})))
        assert await _server(home, "m", SECRET) == "serve"


async def test_a_template_of_the_operators_that_knows_no_keys_cannot_seem_to_check_them() -> None:
    async with house(running=False) as home:
        edge = Edge(home.options, TEMPLATE.replace("keys.map", "routes.map"))
        assert await edge.ensure_running()
        await edge.set_keys(KeyRing(), time.time())
        with pytest.raises(EdgeUnreachableError, match="does not take"):
            await edge.set_keys(KeyRing((key(),)), time.time())


async def test_who_is_refused_may_still_be_sending() -> None:
    async with house() as home:
        await let(home, key())
        # Nobody waits for the body of a stranger.
        head = post(CHAT, b"").replace(b"Content-Length: 0", b"Content-Length: 1000000")
        assert (await asyncio.wait_for(raw(home.options.listen_port, head), 5))[0] == 401
        for size in (1000, 300_000, 5_000_000):
            async with home.client.post(CHAT, data=sized(size)) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == "invalid_api_key"


async def test_what_is_not_routed_is_the_activators_to_judge() -> None:
    async with house() as home:
        await let(home, key())
        for request in (b"GET /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", b"GET / HTTP/1.1\r\nHost: e\r\n\r\n"):
            assert (await raw(home.options.listen_port, request))[0] == 200
        assert await status(home, path="/v1//chat/completions") == 200
        assert len(home.activator.seen) == 3
        assert home.serve.seen == []


async def test_an_edge_that_does_not_take_its_keys_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house() as home:

        async def deaf(*_: object) -> None:
            return None

        monkeypatch.setattr(home.edge._api, "tell", deaf)
        with pytest.raises(EdgeUnreachableError, match=r"keys\.map"):
            await let(home, key())


async def test_a_revoked_key_ends_though_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house({"m": "app-m", "n": "app-n"}) as home:
        gone, less = key(), key(OTHER, "less", models=frozenset({"m", "n"}))
        await let(home, gone, less)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("reconciler.edge.live_maps.write_atomic", full)
            with pytest.raises(OSError, match="No space left"):
                await let(home, replace(gone, revoked=1.0), replace(less, models=frozenset({"m"})))
            assert await status(home, BEARER) == 401
            assert await _server(home, "m", OTHER) == "serve"
            assert await _server(home, "n", OTHER) == "activator"
            # Routes that a start would not know are not set.
            with pytest.raises(OSError, match="No space left"):
                await home.edge.set_routes({})
            assert await home.edge.routes() == {"m": "app-m", "n": "app-n"}


def test_what_the_edge_is_told_has_the_valid_keys_alone() -> None:
    keys = (
        key(),
        key("expired", "e", expires=5.0),
        key("revoked", "r", revoked=1.0),
        key("admin", "a", scopes=frozenset({Scope.ADMIN, Scope.METRICS})),
        key("late", "l", expires=20.9, models=frozenset({"z", "b"}), requests_per_minute=3, concurrent=10**12),
        key("for ever", "f", expires=float("inf")),
    )
    access = Access.of(KeyRing(keys), 10.0)
    assert {entry.digest for entry in access.keys} == {digest_of(each) for each in (SECRET, "late", "for ever")}
    late = digest_of("late")
    assert access.key_entries()[late.upper()] == f"{late[:12]}:20:3:4294967295:listed"
    assert access.key_entries()[digest_of("for ever").upper()].split(":")[1] == "253402300799"
    assert access.model_entries({"z": "app", "y": "other"}) == {f"{late[:12]}/app": "1"}
    assert Access.model_validate_json(access.model_dump_json()) == access
    assert Access.of(KeyRing(), 0.0).key_entries() == {}
    assert Access.of(KeyRing((key(revoked=1.0),)), 9.0).key_entries() == {"mode": "required"}


async def test_one_that_strangers_reach_is_never_open() -> None:
    async with house(listen_host="0.0.0.0", running=False) as home:
        # Nobody has said anything about keys yet, as after the loss of all files.
        assert await home.edge.ensure_running()
        assert await status(home) == 401
        await home.edge.set_keys(KeyRing(), time.time())
        assert await status(home) == 401
        await let(home, key())
        assert await status(home, f"Authorization: Bearer {SECRET}") == 200
        await home.edge.set_keys(KeyRing(), time.time())
        assert await status(home, f"Authorization: Bearer {SECRET}") == 401
