"""What is removed from the cache, and what never is."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from hub_server import Slow

from reconciler.core.weights import Copy, Keep, Role, Wanted
from reconciler.weights.garbage import Garbage

from .repository import SHARDS, Kit, expected, model_files
from .test_store import command, environment, until

FILES = model_files()
# Only the second shard differs, so the first is shared.
NEWER = {**FILES, SHARDS[1]: model_files(seed=5)[SHARDS[1]]}


def garbage(kit: Kit) -> Garbage:
    return Garbage(kit.cache, kit.manifests)


async def test_removing_an_old_commit_leaves_what_the_new_one_is_being_fetched_of(kit: Kit) -> None:
    """The shared shard and the partial one stay, though the new snapshot is not there yet."""
    kit.fetch()
    newer = Copy("org/model", kit.hub.repo("org/model", NEWER))
    kit.hub.fault(Slow(300_000), path=SHARDS[1], times=None)
    kit.hub.clear()
    store = kit.store()
    keep = Keep(frozenset({newer}))
    store.fetch({newer: "main"}, still_wanted=(), keep=keep)
    shared = sum(map(len, expected(NEWER).values())) - len(NEWER[SHARDS[1]])
    await until(lambda: store.under_way()[newer].done > shared + 100_000)
    (old,) = garbage(kit).unneeded(keep)
    assert (old.commit, old.size) == (kit.commit, len(FILES[SHARDS[1]]))
    assert garbage(kit).partial(keep) == []
    assert garbage(kit).remove([old], keep) == len(FILES[SHARDS[1]])
    kit.hub.clear_faults()
    await store.finished([newer])
    assert kit.snapshot(newer.commit) == expected(NEWER)
    assert kit.hub.requests_for(SHARDS[0], "GET") == [], "the shared shard was fetched again"
    assert len(kit.hub.requests_for(SHARDS[1], "GET")) == 1
    assert not kit.cache.snapshot("org/model", kit.commit).exists()
    await store.close()


def test_one_commit_under_two_names_is_two_copies(kit: Kit) -> None:
    """A repository that was renamed: the old name's copy goes, the new name's stays."""
    kit.fetch()
    twin = Copy("org/renamed", kit.commit)
    shutil.copytree(kit.cache.folder("org/model"), kit.cache.folder("org/renamed"), symlinks=True)
    noted = kit.manifests.load(kit.copy)
    assert noted is not None
    kit.manifests.save(dataclasses.replace(noted, copy=twin))
    keep = Keep(frozenset({twin}))
    (old,) = garbage(kit).unneeded(keep)
    assert old.repo == "org/model"
    garbage(kit).remove([old], keep)
    assert {path.name for path in kit.cache.snapshot("org/renamed", kit.commit).iterdir()} == set(expected(FILES))
    assert all(path.exists() for path in kit.cache.snapshot("org/renamed", kit.commit).iterdir())
    assert not kit.cache.folder("org/model").exists()


def test_a_repository_of_which_it_is_not_known_what_is_needed_stays_whole(kit: Kit) -> None:
    kit.fetch()
    assert garbage(kit).unneeded(Keep(repos=frozenset({"org/model"}))) == []
    assert len(garbage(kit).unneeded(Keep())) == 1


async def test_partial_files_of_downloads_that_were_given_up_go(kit: Kit) -> None:
    """Also those of a commit that the branch has left, in a repository that is needed."""
    kit.hub.fault(Slow(400_000), path="*.safetensors", times=None)
    store = kit.store()
    store.fetch({kit.copy: "main"}, still_wanted=(), keep=None)
    await until(lambda: not (store.under_way()[kit.copy].done < 300_000))
    other = Copy("org/model", "f" * 40)
    assert garbage(kit).partial(Keep(frozenset({other}))) == [], "it is being written"
    await store.close()
    assert garbage(kit).partial(Keep(frozenset({kit.copy}))) == []
    partial = garbage(kit).partial(Keep(frozenset({other})))
    assert partial
    assert garbage(kit).remove([], Keep(), partial) > 100_000
    assert not any(path.exists() for path in partial)


def test_a_role_more_is_no_reason_to_lose_one(kit: Kit) -> None:
    """Kept as a tokenizer, kept as a model: it is one snapshot."""
    kit.fetch()
    assert garbage(kit).unneeded(Keep(frozenset({Copy("org/model", kit.commit, Role.TOKENIZER)}))) == []


async def test_what_a_model_asked_for_before_is_needed_no_more(kit: Kit) -> None:
    """Its file names another repository now; and going back later takes what the branch is then."""
    kit.hub.repo("org/other", FILES)
    store = kit.store()
    before, after = (Wanted("m", f"org/{repo}", "main", Role.MODEL) for repo in ("model", "other"))
    await store.revisions.resolve([before], patience=5)
    await store.revisions.resolve([after], patience=5)
    store.revisions.forget([after], [])
    moved = kit.hub.repo("org/model", NEWER)
    again = kit.store()
    assert (await again.revisions.resolve([before], patience=5))[before].commit == moved
    await store.close()
    await again.close()


async def test_a_file_that_is_broken_for_a_moment_loses_nothing(kit: Kit) -> None:
    store = kit.store()
    wanted = Wanted("m", "org/model", "main", Role.MODEL)
    await store.revisions.resolve([wanted], patience=5)
    store.revisions.forget([], ["m"])
    kit.hub.repo("org/model", NEWER)
    again = kit.store()
    assert (await again.revisions.resolve([wanted], patience=5))[wanted].commit == kit.commit
    await store.close()
    await again.close()


# --- the command --------------------------------------------------------------------------------------------


def write(kit: Kit, name: str, text: str) -> Path:
    folder = kit.folder / "models.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    return folder / f"{name}.yaml"


def test_gc_touches_nothing_while_a_file_is_invalid(kit: Kit) -> None:
    write(kit, "m", f"source: {{repo: org/model, revision: {kit.commit}}}\n")
    write(kit, "n", "source: {path: /nowhere}\n")
    assert command(kit, "pull").returncode == 0
    write(kit, "m", f"source: {{repo: org/model, revison: {kit.commit}}}\n")
    done = command(kit, "gc", "--without-cluster")
    assert done.returncode == 4, done.stdout
    assert "m.yaml" in done.stderr


def test_gc_touches_nothing_where_the_pins_cannot_be_read(kit: Kit) -> None:
    write(kit, "m", "source: {repo: org/model}\n")
    assert command(kit, "pull").returncode == 0
    (kit.folder / ".reconcile" / "revisions.json").write_text("[")
    done = command(kit, "gc", "--without-cluster")
    assert done.returncode == 1
    assert "revisions.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_gc_keeps_what_may_come_back(kit: Kit) -> None:
    """The version that made way for the current one is in the records, on disk, also where no Ray runs."""
    file = write(kit, "m", "source: {repo: org/model}\n")
    write(kit, "n", "source: {path: /nowhere}\n")
    assert command(kit, "pull").returncode == 0
    config = json.loads(command(kit, "render", "m", "--output", "json").stdout)["applications"][0]
    row = {"model": "m", "file": "models.d/m.yaml", "application": "m-2", "spec": {}, "previous": config}
    (kit.folder / ".reconcile" / "records.json").write_text(json.dumps([row]))
    file.unlink()
    done = command(kit, "gc", "--without-cluster")
    assert "Nothing to remove" in done.stdout, done.stdout + done.stderr


def test_a_download_that_was_killed_and_is_wanted_no_more_shows_in_a_dry_run(kit: Kit) -> None:
    file = write(kit, "m", "source: {repo: org/model}\n")
    write(kit, "n", "source: {path: /nowhere}\n")
    kit.hub.fault(Slow(300_000), path="*.safetensors", times=None)
    with subprocess.Popen(
        [sys.executable, "-m", "reconciler", "pull"],
        cwd=kit.folder,
        env=environment(kit),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        blobs = kit.folder / "home" / "hub" / "models--org--model" / "blobs"
        deadline = time.monotonic() + 30
        while not sum(path.stat().st_size for path in blobs.glob("*.incomplete")) > 200_000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    file.unlink()
    done = command(kit, "gc", "--without-cluster", "--dry-run", "--output", "json")
    assert sum(json.loads(done.stdout)["partial"].values()) > 200_000, done.stdout
