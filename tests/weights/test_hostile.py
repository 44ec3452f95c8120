"""A hub, a mirror, a proxy or another process that means no good, or is merely odd."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hub_server import Status

from reconciler.core.choose_files import Rules
from reconciler.core.weights import Copy, Phase, Role, Wanted
from reconciler.weights import choosing
from reconciler.weights.errors import Trouble, WeightsError
from reconciler.weights.hub import Hub as Client
from reconciler.weights.revisions import PinsUnreadableError

from .repository import CONFIG, SHARDS, Kit, expected, model_files, safetensors
from .test_store import until

FILES = model_files()
COMMIT = "a" * 40


@contextmanager
def answering(body: bytes, content_type: str = "application/json") -> Iterator[tuple[str, list[str]]]:
    """A server that says the same to everybody; gives its address and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def listing(sha: object = COMMIT, **file: object) -> bytes:
    sibling = {"rfilename": "config.json", "size": 2, "blobId": "b" * 40, **file}
    return json.dumps({"id": "org/model", "sha": sha, "siblings": [sibling]}).encode()


@pytest.mark.parametrize(
    "etag", ["/etc/passwd", "../../../../victim", "", None, "B" * 40, "b" * 39, 7, "b" * 40 + "/x"]
)
def test_a_hash_that_is_none_is_refused_before_it_is_part_of_a_path(etag: object, tmp_path: Path) -> None:
    with answering(listing(blobId=etag)) as (url, _), pytest.raises(WeightsError, match="without a hash"):
        Client(url).listing("org/model", "main")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [-1, None, "many"])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with answering(listing(size=size)) as (url, _), pytest.raises(WeightsError):
        Client(url).listing("org/model", "main")


@pytest.mark.parametrize("sha", ["../../../evil", "", None, 7, "a" * 39, "A" * 40])
def test_a_commit_that_is_none_is_refused(sha: object) -> None:
    with answering(listing(sha)) as (url, _):
        for ask in (Client(url).listing, Client(url).commit_of):
            with pytest.raises(WeightsError, match="names no commit"):
                ask("org/model", "main")


def test_a_hub_that_answers_for_another_commit_is_refused(kit: Kit) -> None:
    with answering(listing("c" * 40)) as (url, _):
        kit.hub = type("There", (), {"url": url})()
        with pytest.raises(WeightsError, match="another commit"):
            kit.chooser().choose(Copy("org/model", COMMIT))


@pytest.mark.parametrize("body", [b"<html>please log in</html>", b"[]", b"null", b'{"siblings": [{}]}', b""])
async def test_a_captive_portal_is_asked_once_and_then_later(kit: Kit, body: bytes) -> None:
    """Neither in a circle nor for ever: it is a failure like any other."""
    with answering(body, "text/html") as (url, asked):
        kit.hub = type("There", (), {"url": url})()
        store = kit.store()
        wanted = Wanted("m", "org/model", "main", Role.MODEL)
        found = (await store.revisions.resolve([wanted], patience=10))[wanted]
        assert found.problem
        assert found.retry_at is not None
        copy = Copy("org/model", COMMIT)
        store.fetch({copy: "main"}, still_wanted=(), keep=None)
        state = (await store.finished([copy]))[copy]
        assert state.phase is Phase.FAILED
        before = len(asked)
        for _ in range(5):
            await store.revisions.resolve([wanted])
            assert (await store.states([copy]))[copy].phase is Phase.FAILED
        assert len(asked) == before
        await store.close()


@pytest.mark.parametrize("value", ["9" * 400, "999999999999", "²", "-5", "Thu, 99 Nov 9999 99:99:99 GMT", "soon"])
async def test_any_retry_after_leads_to_a_next_try(kit: Kit, value: str) -> None:
    kit.hub.fault(Status(429, {"Retry-After": value}), times=None)
    now = 1000.0
    store = kit.store(clock=lambda: now)
    wanted = Wanted("m", "org/model", "main", Role.MODEL)
    found = (await store.revisions.resolve([wanted], patience=10))[wanted]
    assert found.retry_at is not None
    assert found.retry_at <= now + 3600
    await store.close()


def test_a_configuration_that_is_none_is_not_read(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "MAX_READ", 10)
    with pytest.raises(WeightsError, match=r"so it is no config\.json") as caught:
        kit.fetch()
    assert caught.value.trouble is Trouble.REFUSED


# --- other processes and other tools ------------------------------------------------------------------------


def test_weights_that_somebody_put_beside_are_verified_or_refused(kit: Kit) -> None:
    """The engine reads every safetensors file of the folder, so none may be there unseen."""
    kit.fetch()
    extra = kit.cache.snapshot("org/model", kit.commit) / "evil.safetensors"
    extra.write_bytes(safetensors(100, 9))
    assert kit.state().phase is not Phase.READY
    with pytest.raises(WeightsError, match="is no file of org/model"):
        kit.fetch()
    extra.unlink()
    kit.fetch()
    assert kit.state().phase is Phase.READY


def test_a_tokenizer_out_of_a_models_own_repository_is_a_copy_of_its_own(kit: Kit) -> None:
    kit.fetch()
    tokenizer = Copy("org/model", kit.commit, Role.TOKENIZER)
    kit.hub.clear()
    kit.fetch(tokenizer)
    assert kit.state(tokenizer).phase is Phase.READY
    assert kit.state().phase is Phase.READY
    assert not [request for request in kit.hub.requests if request.file in SHARDS]
    manifest = kit.manifests.load(tokenizer)
    assert manifest is not None
    assert {seen.file.path for seen in manifest.files} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_what_is_ours_stays_ours_when_it_is_chosen_anew(kit: Kit) -> None:
    kit.fetch()
    kit.fetch(rules=Rules(allow_code=("org/model",)))
    manifest = kit.manifests.load(kit.copy)
    assert manifest is not None
    assert manifest.fetched


def test_another_precision_that_another_tool_fetched_is_verified_too(kit: Kit) -> None:
    from huggingface_hub import snapshot_download

    files = {
        "config.json": FILES["config.json"],
        "model.safetensors": FILES[SHARDS[0]],
        "model.fp32.safetensors": FILES[SHARDS[1]],
    }
    copy = Copy("org/two", kit.hub.repo("org/two", files))
    snapshot_download("org/two", cache_dir=kit.cache.root, endpoint=kit.hub.url)
    other = (kit.cache.snapshot("org/two", copy.commit) / "model.fp32.safetensors").resolve()
    content = bytearray(other.read_bytes())
    content[500] ^= 1
    other.write_bytes(content)
    kit.fetch(copy)
    assert kit.progress.corrupted == ["model.fp32.safetensors"]
    assert other.read_bytes() == FILES[SHARDS[1]]


def test_a_byte_changed_with_its_time_put_back_is_found(kit: Kit) -> None:
    import os

    kit.fetch()
    blob = (kit.cache.snapshot("org/model", kit.commit) / SHARDS[0]).resolve()
    info = blob.stat()
    with blob.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(blob, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert kit.state().phase is not Phase.READY
    kit.fetch()
    assert kit.progress.corrupted == [SHARDS[0]]


def test_what_was_allowed_counts_for_as_long_as_it_is_allowed(kit: Kit) -> None:
    only_pickles = {"config.json": FILES["config.json"], "pytorch_model.bin": b"pickle"}
    copy = Copy("org/pickles", kit.hub.repo("org/pickles", only_pickles))
    kit.fetch(copy, rules=Rules(allow_pickle=("org/*",)))
    assert kit.chooser(Rules(allow_pickle=("org/*",))).noted(copy) is not None
    assert kit.state(copy).phase is not Phase.READY
    with pytest.raises(WeightsError, match="RECONCILE_ALLOW_PICKLE"):
        kit.fetch(copy)


def test_code_that_is_allowed_later_is_fetched_then(kit: Kit) -> None:
    kit.fetch()
    assert "modeling_own.py" not in kit.snapshot()
    kit.fetch(rules=Rules(allow_code=("org/model",)))
    assert kit.snapshot()["modeling_own.py"] == FILES["modeling_own.py"]


async def test_a_whole_cache_of_another_tool_is_enough_offline(kit: Kit) -> None:
    """The air-gapped machine: `hf download` elsewhere, the cache carried here, no hub."""
    from huggingface_hub import snapshot_download

    snapshot_download("org/model", cache_dir=kit.cache.root, endpoint=kit.hub.url)
    kit.hub.close()
    store = kit.store(offline=True, ask_hub=False)
    wanted = Wanted("m", "org/model", "main", Role.MODEL)
    found = (await store.revisions.resolve([wanted]))[wanted]
    assert found.commit == kit.commit
    store.fetch({kit.copy: "main"}, still_wanted=(), keep=None)
    assert (await store.finished([kit.copy]))[kit.copy].phase is Phase.READY
    await store.close()


async def test_two_downloads_are_not_promised_the_same_room(kit: Kit) -> None:
    from hub_server import Slow

    other = Copy("org/other", kit.hub.repo("org/other", model_files(seed=5)))
    total = sum(len(content) for content in expected(FILES).values())
    kit.hub.fault(Slow(1_000_000), path="*.safetensors", times=None)
    kit.cache.free = lambda: int(total * 1.5)  # type: ignore[method-assign]  # a disk of that size
    store = kit.store()
    store.fetch({kit.copy: "main", other: "main"}, still_wanted=(), keep=None)
    await until(lambda: not (store.under_way().get(other) or not store.failures))
    assert [failure.reason for failure in store.failures.values() if "disk_reserve_gib" in failure.reason]
    assert len(store.failures) == 1
    await store.close()


def test_pins_that_cannot_be_read_are_no_empty_list(kit: Kit) -> None:
    (kit.folder / "state").mkdir(parents=True)
    (kit.folder / "state" / "revisions.json").write_text("{broken")
    with pytest.raises(PinsUnreadableError, match=r"revisions\.json"):
        kit.store()


async def test_two_processes_that_remember_do_not_undo_each_other(kit: Kit) -> None:
    kit.hub.repo("org/other", FILES)
    first, second = kit.store(), kit.store()
    a, b = (Wanted(name, f"org/{repo}", "main", Role.MODEL) for name, repo in (("a", "model"), ("b", "other")))
    await first.revisions.resolve([a], patience=5)
    await second.revisions.resolve([b], patience=5)
    moved = kit.hub.repo("org/model", model_files(seed=3))
    third = kit.store()
    found = await third.revisions.resolve([a, b], patience=5)
    assert found[a].commit == kit.commit
    assert found[a].moved_to == moved
    assert found[b].commit
    for store in (first, second, third):
        await store.close()


def test_the_config_is_a_known_architecture() -> None:
    """Or the tests above would be refused for another reason."""
    assert CONFIG["architectures"] == ["LlamaForCausalLM"]
