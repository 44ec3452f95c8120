"""The store beside the loop: revisions, downloads that come and go, what is shared, offline, and removed."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, Slow, Status

from reconciler.core.weights import Copy, CopyState, Keep, Phase, Resolution, Role, Wanted
from reconciler.weights import fetch_file
from reconciler.weights.store import WeightStore

from .repository import SHARDS, Kit, expected, model_files

FILES = model_files()
NEWER = model_files(seed=5)
MAIN = Wanted("m", "org/model", "main", Role.MODEL)
TRACKED = Wanted("m", "org/model", "main", Role.MODEL, track=True)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_file, "_FIRST_PAUSE", 0.05)


async def resolve(store: WeightStore, wanted: Wanted) -> Resolution:
    return (await store.revisions.resolve([wanted], patience=5))[wanted]


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def fetch(store: WeightStore, wanted: Mapping[Copy, str] = {}, keep: Collection[Copy] = ()) -> None:
    """As the loop asks for it: these and no others."""
    store.fetch(wanted, still_wanted=(), keep=Keep(frozenset(keep)))


# --- revisions ----------------------------------------------------------------------------------------------


async def test_a_revision_is_found_out_beside_the_loop(kit: Kit) -> None:
    """The first answer is that it is not known yet; the loop is woken when it is."""
    woken: list[bool] = []
    store = kit.store()
    store.revisions.wake = lambda: woken.append(True)
    assert (await store.revisions.resolve([MAIN]))[MAIN] == Resolution()
    await until(lambda: woken)
    assert (await store.revisions.resolve([MAIN]))[MAIN] == Resolution(kit.commit)
    await store.close()


async def test_a_branch_that_moved_is_told_and_not_followed(kit: Kit) -> None:
    assert await resolve(kit.store(), MAIN) == Resolution(kit.commit)
    moved = kit.hub.repo("org/model", NEWER)
    # Another start of the reconciler, which remembers.
    assert await resolve(kit.store(), MAIN) == Resolution(kit.commit, moved_to=moved)


async def test_a_branch_that_is_tracked_is_followed(kit: Kit) -> None:
    store = kit.store(check_seconds=0.01)
    assert await resolve(store, TRACKED) == Resolution(kit.commit)
    moved = kit.hub.repo("org/model", NEWER)
    await asyncio.sleep(0.05)
    assert await resolve(store, TRACKED) == Resolution(moved)
    # And what was followed is what is pinned, once the file does not track any more.
    assert (await resolve(kit.store(), MAIN)).commit == moved


async def test_a_commit_is_asked_of_nobody(kit: Kit) -> None:
    wanted = Wanted("m", "org/model", kit.commit, Role.MODEL)
    kit.hub.clear()
    assert await resolve(kit.store(), wanted) == Resolution(kit.commit)
    assert kit.hub.requests == []


async def test_a_tag_is_a_revision_too(kit: Kit) -> None:
    kit.hub.tag("org/model", "v1.0", kit.commit)
    kit.hub.repo("org/model", NEWER)
    assert (await resolve(kit.store(), Wanted("m", "org/model", "v1.0", Role.MODEL))).commit == kit.commit


async def test_a_pin_goes_with_its_model(kit: Kit) -> None:
    store = kit.store()
    await resolve(store, MAIN)
    moved = kit.hub.repo("org/model", NEWER)
    store.revisions.forget([], ["other"])
    assert await resolve(kit.store(), MAIN) == Resolution(moved)


async def test_a_hub_that_does_not_answer_is_said_and_asked_again_later(kit: Kit) -> None:
    kit.hub.fault(Status(503), times=None)
    now = [1000.0]
    store = kit.store(clock=lambda: now[0])
    found = await resolve(store, MAIN)
    assert "HTTP 503" in found.problem
    assert found.retry_at is not None
    asked = len(kit.hub.requests)
    await resolve(store, MAIN)
    assert len(kit.hub.requests) == asked, "it was asked again at once"
    kit.hub.clear_faults()
    now[0] = found.retry_at
    assert await resolve(store, MAIN) == Resolution(kit.commit)


async def test_with_a_known_commit_a_silent_hub_is_a_note(kit: Kit) -> None:
    await resolve(kit.store(), MAIN)
    kit.hub.fault(Status(500), times=None)
    found = await resolve(kit.store(), MAIN)
    assert found.commit == kit.commit
    assert "planned with the commit that is known" in found.note


async def test_offline_the_cache_says_which_commit_it_is(kit: Kit) -> None:
    kit.fetch()
    (kit.folder / "state" / "revisions.json").unlink(missing_ok=True)
    kit.hub.clear()
    store = kit.store(offline=True)
    found = await resolve(store, MAIN)
    assert found.commit == kit.commit
    other = await resolve(store, Wanted("m", "org/other", "main", Role.MODEL))
    assert "HF_HUB_OFFLINE" in other.problem
    assert kit.hub.requests == []


# --- downloads ----------------------------------------------------------------------------------------------


async def test_two_models_of_one_commit_are_one_download(kit: Kit) -> None:
    store = kit.store()
    others = [Wanted(name, "org/model", "main", Role.MODEL) for name in ("a", "b")]
    found = await store.revisions.resolve(others, patience=5)
    copies = {Copy("org/model", found[each].commit): "main" for each in others}
    for _ in range(3):
        fetch(store, copies)
    await store.finished(copies)
    assert kit.snapshot() == expected(FILES)
    assert [len(kit.hub.requests_for(shard, "GET")) for shard in SHARDS] == [1, 1]
    await store.close()


async def test_what_nobody_wants_any_more_stops_and_goes_on_later(kit: Kit) -> None:
    kit.hub.fault(Slow(300_000), path="*.safetensors", times=None)
    store = kit.store()
    fetch(store, {kit.copy: "main"})
    await until(lambda: store.under_way()[kit.copy].done > 200_000)
    fetch(store)
    await until(lambda: not store.under_way(), 3)
    there = (await store.states([kit.copy]))[kit.copy]
    assert there.phase is Phase.ABSENT
    assert there.done > 200_000
    kit.hub.clear_faults()
    fetch(store, {kit.copy: "main"})
    await store.finished([kit.copy])
    assert kit.snapshot() == expected(FILES)
    await store.close()


async def test_progress_is_told_while_it_goes(kit: Kit) -> None:
    """Bytes, rate, time left and phase, of the copy and of each file."""
    kit.hub.fault(Slow(1_000_000), path="*.safetensors", times=None)
    store = kit.store()
    fetch(store, {kit.copy: "main"})
    seen: list[CopyState] = []
    async for states in store.subscribe(every=0.05):
        if kit.copy not in states:
            if seen:
                break
            continue
        seen.append(states[kit.copy])
    total = sum(len(content) for content in expected(FILES).values())
    moving = [state for state in seen if state.phase is Phase.FETCHING and state.rate > 0]
    assert moving
    assert {state.total for state in moving} == {total}
    assert all(state.seconds_left is not None and 0 <= state.seconds_left < 3600 for state in moving)
    assert [state.done for state in moving] == sorted(state.done for state in moving)
    assert {file.path for file in moving[-1].files} == set(expected(FILES))
    files = [file for state in moving for file in state.files if file.phase is Phase.FETCHING and file.rate > 0]
    assert {file.path for file in files} == set(SHARDS)
    assert all(file.seconds_left is not None and 0 <= file.seconds_left < 3600 for file in files)
    await store.close()


async def test_one_download_after_the_other_where_only_one_may_be_under_way(kit: Kit) -> None:
    other = Copy("org/other", kit.hub.repo("org/other", NEWER))
    kit.hub.fault(Slow(2_000_000), path="*.safetensors", times=None)
    store = kit.store(downloads_at_once=1)
    fetch(store, {kit.copy: "main", other: "main"})
    await until(lambda: store.under_way()[kit.copy].phase is Phase.FETCHING)
    assert store.under_way()[other].phase is Phase.QUEUED
    await store.finished([kit.copy, other])
    assert {state.phase for state in (await store.states([kit.copy, other])).values()} == {Phase.READY}
    await store.close()


async def test_a_failed_download_waits_and_can_be_forgiven(kit: Kit) -> None:
    closed = Copy("org/closed", kit.hub.repo("org/closed", FILES, gated=True))
    now = [1000.0]
    store = kit.store(clock=lambda: now[0])
    fetch(store, {closed: "main"})
    state = (await store.finished([closed]))[closed]
    assert state.phase is Phase.FAILED
    assert "is gated" in state.reason
    assert state.retry_at == 1030.0
    now[0] = 1031.0
    assert (await store.states([closed]))[closed].phase is Phase.ABSENT
    now[0] = 1001.0
    store.forgive()
    assert (await store.states([closed]))[closed].phase is Phase.ABSENT
    await store.close()


async def test_one_who_looks_only_once_learns_the_size_and_writes_nothing(kit: Kit) -> None:
    store = kit.store(read_only=True)
    await resolve(store, MAIN)
    state = (await store.states([kit.copy], sizes=True))[kit.copy]
    assert state.total == sum(len(content) for content in expected(FILES).values())
    assert (state.done, state.phase) == (0, Phase.ABSENT)
    assert state.free
    assert not kit.cache.root.exists()
    assert not (kit.folder / "state").exists()
    assert sum(kit.hub.bytes_sent(shard) for shard in SHARDS) == 0
    await store.close()


async def test_a_repository_for_a_tokenizer_or_an_adapter_brings_what_it_is_for(kit: Kit) -> None:
    tokenizer = Copy("org/model", kit.commit, Role.TOKENIZER)
    adapter_files = {
        "adapter_config.json": b'{"r": 8}',
        "adapter_model.safetensors": FILES[SHARDS[1]],
        "training_args.bin": b"pickle",
    }
    adapter = Copy("org/lora", kit.hub.repo("org/lora", adapter_files), Role.ADAPTER)
    store = kit.store()
    fetch(store, {tokenizer: "main", adapter: "main"})
    states = await store.finished([tokenizer, adapter])
    assert {state.phase for state in states.values()} == {Phase.READY}
    assert set(kit.snapshot()) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    folder = kit.cache.snapshot("org/lora", adapter.commit)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    await store.close()


# --- removing -----------------------------------------------------------------------------------------------


async def test_only_what_is_ours_and_not_needed_is_removed(kit: Kit) -> None:
    kit.fetch()
    newer = Copy("org/model", kit.hub.repo("org/model", NEWER))
    kit.fetch(newer)
    store = kit.store()
    (found,) = store.garbage.unneeded(Keep(frozenset({newer})))
    assert (found.repo, found.commit, found.ours) == ("org/model", kit.commit, True)
    # The tokenizer and the configuration are the same in both, so they stay.
    assert 0 < found.size < sum(len(content) for content in expected(FILES).values())
    freed = store.garbage.remove([found], Keep(frozenset({newer})))
    assert freed == found.size
    assert kit.snapshot(newer.commit) == expected(NEWER)
    assert (await store.states([newer]))[newer].phase is Phase.READY
    assert (await store.states([kit.copy]))[kit.copy].phase is Phase.ABSENT


async def test_what_others_fetched_is_removed_only_if_told(kit: Kit) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download("org/model", cache_dir=kit.cache.root, endpoint=kit.hub.url)
    store = kit.store()
    assert store.garbage.unneeded(Keep()) == []
    assert [found.ours for found in store.garbage.unneeded(Keep(), everything=True)] == [False]


async def test_room_is_made_of_what_nobody_needs(kit: Kit) -> None:
    """With a limit for the cache, an unused copy goes and a needed one never does."""
    kit.fetch()
    other = Copy("org/other", kit.hub.repo("org/other", NEWER))
    limit = kit.cache.size() + 1000
    store = kit.store(cache_limit=limit)
    fetch(store, {other: "main"}, [kit.copy])
    state = (await store.finished([other]))[other]
    assert state.phase is Phase.FAILED
    assert "cache_limit_gib" in state.reason
    assert kit.snapshot() == expected(FILES)
    store.forgive()
    fetch(store, {other: "main"}, [])
    assert (await store.finished([other]))[other].phase is Phase.READY
    assert not kit.cache.snapshot("org/model", kit.commit).exists()
    await store.close()


# --- as a person uses it ------------------------------------------------------------------------------------

TOKEN = "hf_verysecretindeed123"


def environment(kit: Kit, **more: str) -> dict[str, str]:
    """A person's, in front of the test's hub and without a cluster."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RECONCILE_", "HF_", "RAY_"))}
    return {
        **clean,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_ENDPOINT": kit.hub.url,
        "HF_HOME": str(kit.folder / "home"),
        "RECONCILE_ENGINE": "cpu",
        "RECONCILE_RAY_DASHBOARD": "http://127.0.0.1:9",
        **more,
    }


def command(kit: Kit, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`reconcile`, as a person runs it."""
    (kit.folder / "models.d").mkdir(exist_ok=True, parents=True)
    return subprocess.run(
        [sys.executable, "-m", "reconciler", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=kit.folder,
        env=environment(kit, **more),
    )


def test_pull_fetches_without_a_cluster(kit: Kit) -> None:
    (kit.folder / "models.d").mkdir(parents=True)
    (kit.folder / "models.d" / "m.yaml").write_text("source: {repo: org/model}\n")
    done = command(kit, "pull", "m", "--output", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["copies"]
    assert (row["repo"], row["commit"], row["phase"]) == ("org/model", kit.commit, "ready")
    folder = kit.folder / "home" / "hub" / "models--org--model" / "snapshots" / kit.commit
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == expected(FILES)
    # What would be applied names the commit, and the engine stays off the network.
    rendered = json.loads(command(kit, "render", "--output", "json").stdout)
    llm = rendered["applications"][0]["args"]["llm_configs"][0]
    assert llm["model_loading_config"]["model_source"] == str(folder)
    assert llm["runtime_env"]["env_vars"]["HF_HUB_OFFLINE"] == "1"
    again = command(kit, "pull")
    assert again.returncode == 0
    assert "on disk and verified" in again.stdout
    assert command(kit, "pull", "nobody").returncode == 1


def test_gc_says_what_would_go_and_then_it_goes(kit: Kit) -> None:
    (kit.folder / "models.d").mkdir(parents=True)
    file = kit.folder / "models.d" / "m.yaml"
    file.write_text("source: {repo: org/model}\n")
    (kit.folder / "models.d" / "n.yaml").write_text("source: {path: /nowhere}\n")
    assert command(kit, "pull").returncode == 0
    nothing = command(kit, "gc", "--without-cluster")
    assert "Nothing to remove" in nothing.stdout
    file.unlink()
    unseen = command(kit, "gc")
    assert unseen.returncode == 4
    assert "--without-cluster" in unseen.stderr
    dry = command(kit, "gc", "--without-cluster", "--dry-run")
    assert dry.returncode == 0
    assert "would be free" in dry.stdout
    snapshot = kit.folder / "home" / "hub" / "models--org--model" / "snapshots" / kit.commit
    assert snapshot.exists()
    real = command(kit, "gc", "--without-cluster")
    assert "freed" in real.stdout
    assert not snapshot.exists()


def test_gc_refuses_where_no_file_says_what_is_needed(kit: Kit) -> None:
    assert command(kit, "gc", "--without-cluster").returncode == 4


def test_no_token_is_in_any_output_file_or_process_list(kit: Kit) -> None:
    """In everything that is printed, everything that is written, and every command line meanwhile."""
    commit = kit.hub.repo("org/private", FILES, private=True, tokens=(TOKEN,))
    kit.hub.repo("org/gated", FILES, gated=True)
    kit.hub.fault(Status(500), path=SHARDS[0])
    kit.hub.fault(Slow(1_500_000), path="*.safetensors", times=None)
    (kit.folder / "models.d").mkdir(parents=True)
    for name in ("private", "gated", "absent"):
        (kit.folder / "models.d" / f"{name}.yaml").write_text(f"source: {{repo: org/{name}}}\n")
    lists: list[str] = []

    async def watch() -> list[subprocess.CompletedProcess[str]]:
        running = asyncio.create_task(
            asyncio.to_thread(
                command, kit, "--output", "json", "pull", HF_TOKEN=TOKEN, RECONCILE_LOG_LEVEL="debug"
            )
        )
        while not running.done():
            lists.append(await asyncio.to_thread(processes))
            await asyncio.sleep(0.2)
        return [await running, command(kit, "render", HF_TOKEN=TOKEN)]

    outputs = asyncio.run(watch())
    rows = {row["repo"]: row for row in json.loads(outputs[0].stdout)["copies"]}
    assert rows["org/private"]["commit"] == commit
    assert rows["org/private"]["phase"] == "ready", "the token was not used at all"
    assert any("reconciler" in text for text in lists)
    written = [path.read_bytes() for path in kit.folder.rglob("*") if path.is_file()]
    texts = [text for done in outputs for text in (done.stdout, done.stderr)] + lists
    assert not any(TOKEN in text for text in texts)
    assert not any(TOKEN.encode() in content for content in written)


def processes() -> str:
    return subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    kit = Kit(hub, tmp_path)
    (tmp_path / "models.d").mkdir()
    (tmp_path / "models.d" / "m.yaml").write_text("source: {repo: org/model}\n")
    done = command(kit, "pull", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 3
    assert "the hub at http://127.0.0.1:9 does not answer" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


async def test_other_commands_see_what_the_running_reconciler_downloads(kit: Kit, tmp_path: Path) -> None:
    """`reconcile status` asks over the control socket, and gets bytes, rate and files."""
    from reconciler.activator.server import serve_unix
    from reconciler.loop.control import control_of
    from reconciler.loop.operations import Operations
    from reconciler.loop.running import CONTROL_SOCKET, learn_from_running

    closed = Copy("org/closed", kit.hub.repo("org/closed", FILES, gated=True))
    kit.hub.fault(Slow(500_000), path="*.safetensors", times=None)
    store = kit.store()
    loop: Any = None  # Only the other routes need these.
    by_hand: Any = None
    server = asyncio.create_task(
        serve_unix(
            control_of(
                Operations(loop, store, by_hand, rollback=by_hand, sync=by_hand, lease=by_hand, journal=by_hand)
            ),
            tmp_path / CONTROL_SOCKET,
        )
    )
    fetch(store, {kit.copy: "main"})
    await until(lambda: (tmp_path / CONTROL_SOCKET).exists() and store.under_way()[kit.copy].done > 100_000)
    fetch(store, {kit.copy: "main", closed: "main"})
    await until(lambda: closed in store.failures)
    await resolve(store, Wanted("m", "org/none", "main", Role.MODEL))
    other = kit.store(ask_hub=False)
    await learn_from_running(tmp_path, other)
    states = await other.states([kit.copy, closed])
    moving = states[kit.copy]
    assert moving.phase is Phase.FETCHING
    assert 100_000 < moving.done < (moving.total or 0)
    assert {file.path for file in moving.files} == set(expected(FILES))
    assert states[closed].phase is Phase.FAILED
    assert "is gated" in states[closed].reason
    assert "not on the hub" in (await resolve(other, Wanted("m", "org/none", "main", Role.MODEL))).problem
    await store.close()
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)


def test_a_proxy_is_used_as_the_hubs_own_tools_do(kit: Kit) -> None:
    """With HTTP_PROXY, a request for the hub goes to the proxy, which here knows no other host and says so."""
    (kit.folder / "models.d").mkdir(parents=True)
    (kit.folder / "models.d" / "m.yaml").write_text("source: {repo: org/model}\n")
    done = command(kit, "pull", HTTP_PROXY=kit.hub.url, HF_ENDPOINT="http://hub.example")
    assert (done.returncode, "HTTP 404 for org/model" in done.stdout) == (3, True), done.stdout + done.stderr
    assert {request.host for request in kit.hub.requests} == {"hub.example"}


def test_a_person_on_a_terminal_sees_a_bar(kit: Kit) -> None:
    """On a real pseudo-terminal: the repository, the bytes and the phase, and at the end one line."""
    import pty

    kit.hub.fault(Slow(1_500_000), path="*.safetensors", times=None)
    (kit.folder / "models.d").mkdir(parents=True)
    (kit.folder / "models.d" / "m.yaml").write_text("source: {repo: org/model}\n")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "reconciler", "pull"],
        stdout=slave,
        stderr=slave,
        cwd=kit.folder,
        env=environment(kit, COLUMNS="160", TERM="xterm"),
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # The terminal ends with the process.
        while piece := os.read(master, 4096):
            shown += piece
    os.close(master)
    assert process.wait() == 0, shown.decode()
    text = shown.decode()
    assert f"org/model@{kit.commit[:8]}" in text
    assert "MiB" in text
    assert "downloading" in text
    assert "on disk and verified" in text
