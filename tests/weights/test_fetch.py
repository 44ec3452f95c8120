"""One copy, over real HTTP: what is fetched, what may go wrong on the way, and every byte right at the end."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hub_server import Fault, Flip, Hub, IgnoreRange, LyingLength, MoveBranch, Redirect, Reset, Slow, Stall, Status
from huggingface_hub import scan_cache_dir, snapshot_download

from reconciler.core.weights import Copy, Phase
from reconciler.weights import fetch_file
from reconciler.weights.errors import StoppedError, Trouble, WeightsError
from reconciler.weights.hashing import ContentHash

from .repository import CHUNK, SHARDS, WANTED, Kit, expected, model_files

FILES = model_files()
SHARD = SHARDS[0]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_file, "_FIRST_PAUSE", 0.05)


def fetched_twice(hub: Hub, file: str) -> int:
    """Bytes of a file that were sent more than once."""
    return hub.bytes_sent(file) - len(FILES[file])


def test_a_copy_is_what_vllm_reads_and_nothing_else(kit: Kit) -> None:
    kit.fetch()
    assert kit.snapshot() == expected(FILES)
    assert kit.state().phase is Phase.READY
    asked = {request.file for request in kit.hub.requests if request.file}
    assert asked == set(WANTED)


def test_the_cache_is_the_hubs_own(kit: Kit) -> None:
    """Other tools see the revision, and find it without asking the hub."""
    kit.fetch()
    (repo,) = scan_cache_dir(kit.cache.root).repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash, set(revision.refs)) == ("org/model", kit.commit, {"main"})
    assert {file.file_name for file in revision.files} == set(WANTED)
    found = snapshot_download(
        "org/model", cache_dir=kit.cache.root, local_files_only=True, allow_patterns=list(WANTED)
    )
    assert Path(found) == kit.cache.snapshot("org/model", kit.commit)


def test_what_is_there_is_neither_fetched_nor_read_again(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.fetch()
    kit.hub.clear()
    read: list[Path] = []

    def update_from(_self: object, path: Path, _step: object) -> int:
        read.append(path)
        return 0

    monkeypatch.setattr(ContentHash, "update_from", update_from)
    kit.fetch()
    assert kit.state().phase is Phase.READY
    assert (kit.hub.requests, read) == ([], [])


def test_what_another_tool_fetched_is_verified_and_kept(kit: Kit) -> None:
    snapshot_download("org/model", cache_dir=kit.cache.root, endpoint=kit.hub.url)
    kit.hub.clear()
    kit.fetch()
    assert [request.file for request in kit.hub.requests if request.file in SHARDS] == []
    assert kit.state().phase is Phase.READY
    manifest = kit.manifests.load(kit.copy)
    assert manifest is not None
    assert not manifest.fetched, "it is not ours to remove"


# --- faults on the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Reset(after=None)], id="reset before the answer"),
        pytest.param([Reset(after=700_000)], id="reset in the middle"),
        pytest.param([Reset(after=100_000)] * 5, id="reset again and again"),
        pytest.param([Status(429, {"Retry-After": "1"})], id="429 with Retry-After"),
        pytest.param([Status(429)], id="429 without"),
        pytest.param([Status(500)], id="500"),
        pytest.param([Status(503), Status(502), Status(504)], id="5xx three times"),
        pytest.param([Stall(after=600_000, seconds=30)], id="stall"),
        pytest.param([LyingLength(+5000)], id="declares more than it sends"),
        pytest.param([LyingLength(-5000)], id="declares less than there is"),
    ],
)
def test_a_fault_of_the_connection_ends_in_a_whole_copy(kit: Kit, faults: list[Fault]) -> None:
    """And the file goes on where it stopped: at most one chunk of it comes twice."""
    for fault in faults:
        kit.hub.fault(fault, path=SHARD)
    kit.fetch()
    assert kit.hub.pending == 0
    assert kit.snapshot() == expected(FILES)
    assert kit.state().phase is Phase.READY
    assert fetched_twice(kit.hub, SHARD) <= CHUNK * len(faults)
    assert kit.progress.corrupted == []


def test_a_server_that_knows_no_ranges_costs_the_beginning_again_and_nothing_else(kit: Kit) -> None:
    kit.hub.fault(Reset(after=700_000), path=SHARD)
    kit.hub.fault(IgnoreRange(), path=SHARD)
    kit.fetch()
    assert kit.hub.pending == 0
    assert kit.snapshot() == expected(FILES)
    assert kit.progress.corrupted == []


@pytest.mark.parametrize("path", WANTED)
def test_a_byte_that_was_flipped_on_the_way_is_found(kit: Kit, path: str) -> None:
    """In any file; and only that file is fetched again."""
    kit.hub.fault(Flip(len(FILES[path]) // 2), path=path)
    kit.fetch()
    assert kit.hub.pending == 0
    assert kit.snapshot() == expected(FILES)
    # Those by which files are chosen are read once for that, without being written anywhere.
    chosen_by = {"config.json", "tokenizer_config.json", "model.safetensors.index.json"}
    asked = {file: len(kit.hub.requests_for(file)) for file in WANTED}
    assert asked == {file: 1 + (file in chosen_by) + (file == path) for file in WANTED}


def test_content_that_is_always_wrong_is_never_served(kit: Kit) -> None:
    kit.hub.fault(Flip(1000), path=SHARD, times=None)
    with pytest.raises(WeightsError, match="other content than the hub listed") as caught:
        kit.fetch()
    assert caught.value.trouble is Trouble.CORRUPT
    assert kit.state().phase is Phase.ABSENT
    assert SHARD not in kit.snapshot()


def test_another_host_gets_no_token(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub sends us to a storage server for large files, and the token stays with the hub."""
    kit.commit = kit.hub.repo("org/model", FILES, private=True, tokens=("hf_secretsecret",))
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    kit.hub.fault(Redirect(kit.hub.other_url), path="*.safetensors", times=None)
    kit.fetch()
    assert kit.snapshot() == expected(FILES)
    with_token = {request.host for request in kit.hub.requests if "authorization" in request.headers}
    without = {request.host for request in kit.hub.requests if "authorization" not in request.headers}
    assert with_token
    assert without
    assert with_token.isdisjoint(without)


def test_a_branch_that_moves_meanwhile_changes_nothing(kit: Kit) -> None:
    kit.hub.fault(MoveBranch(model_files(seed=7)), path="tokenizer.json")
    kit.fetch()
    assert kit.hub.pending == 0
    assert kit.snapshot() == expected(FILES)


def test_a_disk_that_is_full_halfway_is_said_and_resumed(kit: Kit, tmp_path: Path) -> None:
    """On a real file system of 2 MiB, in a mount namespace of a process of its own."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    script = f"""
        import subprocess, sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from hub_server import Hub
        from weights.repository import Kit
        folder = Path({str(tmp_path / "small")!r})
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        kit = Kit(type("There", (), {{"url": {kit.hub.url!r}}}), folder)
        kit.commit = {kit.commit!r}
        # Somebody else fills the disk once the room was checked.
        free, kit.cache.free = kit.cache.free, lambda: 2**40
        try:
            kit.fetch()
        except Exception as error:
            print(type(error).__name__, error)
        there = sum(path.stat().st_size for path in folder.rglob("*.incomplete"))
        print("there:", there)
        subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
        kit.cache.free = free
        kit.fetch()
        print(kit.state().phase.value)
    """
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("WeightsError"), done.stdout
    assert "full" in lines[0]
    assert int(lines[1].removeprefix("there: ")) > 100_000, "what was received was thrown away"
    assert lines[2] == "ready"
    assert fetched_twice(kit.hub, SHARD) <= CHUNK


# --- refused before the first byte --------------------------------------------------------------------------


def shards_asked_for(hub: Hub) -> int:
    return sum(len(hub.requests_for(shard)) for shard in SHARDS)


def test_what_has_no_room_is_refused_before_the_first_byte(kit: Kit) -> None:
    free = shutil.disk_usage(kit.folder).free
    with pytest.raises(WeightsError, match="disk_reserve_gib") as caught:
        kit.fetch(reserve=free)
    assert caught.value.trouble is Trouble.NO_SPACE
    with pytest.raises(WeightsError, match="cache_limit_gib"):
        kit.fetch(limit=1000)
    assert shards_asked_for(kit.hub) == 0


@pytest.mark.parametrize(
    ("options", "token", "said"),
    [
        pytest.param(
            {"gated": True, "tokens": ("hf_good12345",)}, None, "is gated: accept its terms at", id="gated"
        ),
        pytest.param({"gated": True}, "hf_other12345", "is gated", id="gated, with a token that may not"),
        pytest.param({"private": True, "tokens": ("hf_good12345",)}, None, "or is private", id="private"),
        pytest.param({"private": True}, "hf_wrong12345", "token", id="private, with a token that is not valid"),
    ],
)
def test_a_repository_that_is_not_for_us_is_refused_with_what_helps(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], token: str | None, said: str
) -> None:
    commit = kit.hub.repo("org/closed", FILES, **options)  # type: ignore[arg-type]  # a test's table
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WeightsError, match=said) as caught:
        kit.fetch(Copy("org/closed", commit))
    assert caught.value.trouble is Trouble.DENIED
    assert "hf_" not in str(caught.value)
    assert sum(kit.hub.bytes_sent(shard) for shard in SHARDS) == 0


def test_a_repository_that_is_not_there_is_said(kit: Kit) -> None:
    with pytest.raises(WeightsError, match="org/none is not on the hub"):
        kit.fetch(Copy("org/none", "0" * 40))


# --- stopping and killing -----------------------------------------------------------------------------------


def test_a_download_that_nobody_wants_any_more_stops_at_once(kit: Kit) -> None:
    kit.hub.fault(Slow(200_000), path=SHARD, times=None)
    cancel, errors = threading.Event(), []

    def run() -> None:
        try:
            kit.fetcher().fetch(kit.copy, "main", kit.progress, cancel)
        except StoppedError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 10
    while kit.progress.state().done < 100_000 and time.monotonic() < deadline:
        time.sleep(0.02)
    cancel.set()
    thread.join(timeout=3)
    assert not thread.is_alive()
    assert errors


def test_killed_at_ten_random_points_it_completes_and_fetches_little_twice(kit: Kit) -> None:
    """Kill -9: what was received is on disk, and the next start goes on from there."""
    kit.hub.fault(Slow(600_000), path="*.safetensors", times=None)
    script = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from weights.repository import Kit
        kit = Kit(type("There", (), {{"url": {kit.hub.url!r}}}), Path({str(kit.folder)!r}))
        kit.commit = {kit.commit!r}
        print("starts", flush=True)
        kit.fetch()
    """
    chance = random.Random(4)
    kills = 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.1, 0.9))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 5, "it was over before it could be killed"
    kit.hub.clear_faults()
    kit.fetch()
    assert kit.snapshot() == expected(FILES)
    assert kit.state().phase is Phase.READY
    for shard in SHARDS:
        assert fetched_twice(kit.hub, shard) <= kills * CHUNK


# --- what happens on the disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WANTED)
def test_a_byte_that_was_changed_on_disk_is_found_and_only_that_file_fetched_again(kit: Kit, path: str) -> None:
    kit.fetch()
    blob = (kit.cache.snapshot("org/model", kit.commit) / path).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    kit.hub.clear()
    assert kit.state().phase is not Phase.READY
    kit.fetch()
    assert kit.snapshot() == expected(FILES)
    assert kit.progress.corrupted == [path]
    assert {request.file for request in kit.hub.requests if request.file} == {path}


def test_a_file_that_was_removed_is_fetched_again(kit: Kit) -> None:
    kit.fetch()
    (kit.cache.snapshot("org/model", kit.commit) / SHARD).resolve().unlink()
    assert kit.state().phase is not Phase.READY
    kit.fetch()
    assert kit.snapshot() == expected(FILES)
