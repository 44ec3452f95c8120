"""The git source against a real git server: what is taken over, when, and what is said about it."""

import asyncio
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.git_names import GitError

from .conftest import MODEL, Make
from .git_server import GitServer, Repository

B = "name: b\nsource: {repo: org/b}\n"


def _content(*parts: str) -> bytes:
    return Path(*parts).read_bytes()


def _damage(*parts: str) -> None:
    file = Path(*parts)
    file.chmod(0o600)
    file.write_text("name: evil\n")


def _events(events: list[Any], *names: str) -> list[Any]:
    return [each for each in events if each["event"] in (names or ("source.taken_over",))]


async def test_before_anything_is_fetched_the_source_is_unreadable(make: Make) -> None:
    snapshot = await make().read()
    assert snapshot.unreadable == "nothing has been fetched yet"
    assert not snapshot.files


async def test_the_first_fetch_takes_over_the_commit(make: Make, repo: Repository, events: list[Any]) -> None:
    commit = repo.commit(
        {"models.d/a.yaml": MODEL, "README.md": "x", "models.d/.hidden.yaml": "x"}, message="first"
    )
    source = make()
    assert await source.fetch()
    snapshot = await source.read()
    assert snapshot.files == {"models.d/a.yaml": MODEL.encode()}
    assert snapshot.revision == commit
    assert _content(snapshot.folder, "a.yaml").decode() == MODEL
    assert not snapshot.unreadable
    assert snapshot.provenance is not None
    assert snapshot.provenance.ref == "main"
    assert snapshot.provenance.commit.author == "Ada"
    assert snapshot.provenance.commit.subject == "first"
    assert abs(snapshot.provenance.checked_at - time.time()) < 10
    assert abs(snapshot.provenance.commit.at - time.time()) < 60
    assert snapshot.provenance.changed["models.d/a.yaml"].id == commit
    (event,) = _events(events)
    assert (event["before"], event["commit"], event["how"], event["ref"]) == ("", commit[:12], "first", "main")


async def test_a_look_that_finds_nothing_new_fetches_nothing(
    make: Make, repo: Repository, server: GitServer, events: list[Any]
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    first = await source.read()
    server.requests.clear()
    assert not await source.fetch()
    # One request for the protocol, one for the refs; a fetch would make more.
    assert len(server.requests) <= 2
    assert await source.read() == first
    assert len(events) == 1


async def test_a_new_commit_is_taken_over(make: Make, repo: Repository, events: list[Any]) -> None:
    first = repo.commit({"models.d/a.yaml": MODEL, "models.d/b.yaml": B})
    source = make()
    await source.fetch()
    second = repo.commit({"models.d/a.yaml": MODEL + "# changed\n"})
    assert await source.fetch()
    snapshot = await source.read()
    assert snapshot.revision == second
    assert snapshot.files["models.d/a.yaml"].endswith(b"# changed\n")
    assert snapshot.provenance is not None
    assert {path: each.id for path, each in snapshot.provenance.changed.items()} == {
        "models.d/a.yaml": second,
        "models.d/b.yaml": first,
    }
    assert _events(events)[1]["how"] == "forward"


async def test_after_a_restart_without_a_network_the_last_revision_is_served(
    make: Make, repo: Repository, server: GitServer
) -> None:
    repo.commit({"models.d/a.yaml": MODEL, "models.d/weights/a/w.bin": "w"})
    source = make()
    await source.fetch()
    before = await source.read()
    server.stop()
    again = make(timeout=5.0)
    assert await again.read() == before
    assert not await again.fetch()
    after = await again.read()
    assert after == before
    assert after.provenance is not None
    assert before.provenance is not None
    assert "connect" in after.provenance.problem.lower()
    assert abs(before.provenance.checked_at - after.provenance.checked_at) < 5


@pytest.mark.parametrize("changed", [{"ref": "other"}, {"path": "other"}, {"url": "https://example.com/x.git"}])
async def test_what_was_fetched_for_other_settings_is_not_served(
    make: Make, repo: Repository, changed: dict[str, str]
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    await make().fetch()
    snapshot = await make(**changed).read()
    assert snapshot.unreadable
    assert not snapshot.files


async def test_a_forced_push_is_taken_over_and_said(make: Make, repo: Repository, events: list[Any]) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    first = repo.commit({"models.d/b.yaml": B})
    source = make()
    await source.fetch()
    repo.git("reset", "--quiet", "--hard", "HEAD~1")
    second = repo.commit({"models.d/c.yaml": B})
    assert await source.fetch()
    assert sorted((await source.read()).files) == ["models.d/a.yaml", "models.d/c.yaml"]
    event = _events(events)[1]
    assert (event["before"], event["commit"], event["how"]) == (first[:12], second[:12], "forced")


async def test_a_forced_push_back_is_taken_over(make: Make, repo: Repository, events: list[Any]) -> None:
    first = repo.commit({"models.d/a.yaml": MODEL})
    repo.commit({"models.d/b.yaml": B})
    source = make()
    await source.fetch()
    repo.git("reset", "--quiet", "--hard", first)
    repo.push()
    assert await source.fetch()
    assert (await source.read()).revision == first
    assert _events(events)[1]["how"] == "forced"


async def test_unrelated_history_is_taken_over_and_said(make: Make, repo: Repository, events: list[Any]) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    repo.git("checkout", "--quiet", "--orphan", "new")
    commit = repo.commit({"models.d/b.yaml": B})
    repo.push("new:main")
    assert await source.fetch()
    assert (await source.read()).revision == commit
    assert _events(events)[1]["how"] == "unrelated"


async def test_a_deleted_branch_leaves_the_last_good_revision(
    make: Make, repo: Repository, events: list[Any]
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    repo.push("HEAD:staging")
    source = make(ref="staging")
    await source.fetch()
    before = await source.read()
    repo.push(":staging")
    for _ in range(3):
        assert not await source.fetch()
    after = await source.read()
    assert after == before
    assert after.provenance is not None
    assert after.provenance.problem == "the repository has no branch or tag 'staging'"
    assert len(_events(events, "source.refused")) == 1
    repo.push("HEAD:staging")
    assert not await source.fetch()
    assert (await source.read()).provenance.problem == ""  # type: ignore[union-attr]
    assert len(_events(events, "source.recovered")) == 1


async def test_a_moved_tag_is_taken_over_and_said(make: Make, repo: Repository, events: list[Any]) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    repo.git("tag", "-a", "-m", "x", "v1")
    repo.push("v1")
    source = make(ref="v1")
    await source.fetch()
    second = repo.commit({"models.d/b.yaml": B})
    repo.git("tag", "-f", "-a", "-m", "x", "v1")
    repo.push("v1")
    assert await source.fetch()
    snapshot = await source.read()
    assert snapshot.revision == second
    assert snapshot.provenance is not None
    assert snapshot.provenance.ref == "v1"
    assert _events(events)[1]["how"] == "moved tag"


async def test_a_new_tag_object_for_the_same_commit_changes_nothing(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    repo.git("tag", "-a", "-m", "x", "v1")
    repo.push("v1")
    source = make(ref="v1")
    await source.fetch()
    before = await source.read()
    repo.git("tag", "-f", "-a", "-m", "another", "v1")
    repo.push("v1")
    assert not await source.fetch()
    assert await source.read() == before


async def test_one_commit_can_be_followed(make: Make, repo: Repository) -> None:
    first = repo.commit({"models.d/a.yaml": MODEL})
    repo.commit({"models.d/b.yaml": B})
    source = make(ref=first)
    assert await source.fetch()
    assert (await source.read()).revision == first
    assert not await source.fetch()


async def test_a_commit_that_is_pushed_later_is_taken_over_then(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    repo.git("commit", "--quiet", "--allow-empty", "-m", "not pushed yet")
    source = make(ref=repo.head())
    for _ in range(2):
        assert not await source.fetch()
        assert "the repository has no" in (await source.read()).unreadable
    repo.push()
    assert await source.fetch()


async def test_what_was_refused_is_judged_anew_when_somebody_asks(
    make: Make, repo: Repository, server: GitServer
) -> None:
    repo.commit({"README": "x"})
    source = make()
    assert not await source.fetch()
    server.requests.clear()
    assert not await source.fetch()
    looked = len(server.requests)
    source.forget_refusal()
    assert not await source.fetch()
    assert len(server.requests) - looked > looked  # It was fetched too.


async def test_a_name_of_both_a_branch_and_a_tag_is_refused(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    repo.git("tag", "main")
    repo.push("refs/tags/main")
    source = make(ref="main")
    assert not await source.fetch()
    assert "is a branch and a tag" in (await source.read()).unreadable
    assert await make(ref="refs/heads/main").fetch()


async def test_a_branch_whose_name_only_ends_so_is_another(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    repo.push("HEAD:refs/heads/x/refs/heads/live")
    source = make(ref="live")
    assert not await source.fetch()
    assert "no branch or tag 'live'" in (await source.read()).unreadable


async def test_an_empty_repository_is_refused(make: Make, repo: Repository, events: list[Any]) -> None:
    source = make()
    assert not await source.fetch()
    assert (await source.read()).unreadable == (
        "nothing has been fetched yet: the repository is empty: it has no commit"
    )
    assert len(_events(events, "source.refused")) == 1
    repo.commit({"models.d/a.yaml": MODEL})
    assert await source.fetch()


async def test_a_commit_without_the_folder_is_refused_and_not_an_empty_set(
    make: Make, repo: Repository, server: GitServer, events: list[Any]
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    before = await source.read()
    repo.git("mv", "models.d", "elsewhere")
    repo.commit()
    assert not await source.fetch()
    server.requests.clear()
    assert not await source.fetch()
    assert len(server.requests) <= 2, "the same commit is not fetched again"
    after = await source.read()
    assert after == before
    assert after.provenance is not None
    assert after.provenance.problem == "the commit has no folder 'models.d'"
    assert len(_events(events, "source.refused")) == 1


async def test_a_file_in_place_of_the_folder_is_refused(make: Make, repo: Repository) -> None:
    repo.commit({"models.d": MODEL})
    source = make()
    assert not await source.fetch()
    assert "no folder" in (await source.read()).unreadable


async def test_an_empty_folder_is_an_empty_set(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    repo.git("rm", "--quiet", "models.d/a.yaml")
    commit = repo.commit({"models.d/.gitkeep": ""})
    assert await source.fetch()
    snapshot = await source.read()
    assert (snapshot.files, snapshot.unreadable, snapshot.revision) == ({}, "", commit)


@pytest.mark.parametrize(
    ("path", "key"), [("", "models/a.yaml"), ("deep/er/x", "x/a.yaml"), ("m [1]*", "m [1]*/a.yaml")]
)
async def test_any_folder_of_the_repository_can_hold_the_model_files(
    make: Make, repo: Repository, path: str, key: str
) -> None:
    commit = repo.commit({f"{path}/a.yaml".lstrip("/"): MODEL, "other/b.yaml": B})
    source = make(path=path)
    await source.fetch()
    snapshot = await source.read()
    assert list(snapshot.files) == [key]
    assert snapshot.provenance is not None
    assert snapshot.provenance.changed[key].id == commit


async def test_a_folder_lies_where_its_content_says(make: Make, repo: Repository) -> None:
    repo.commit(
        {
            "models.d/a.yaml": MODEL,
            "models.d/weights/a/config.json": "{}",
            "models.d/weights/a/sub/w.bin": b"\0\1",
            "shared/b/w.bin": "b",
        }
    )
    source = make()
    await source.fetch()
    first = await source.read()
    assert set(first.objects) == {"weights", "weights/a", "weights/a/sub", "../shared", "../shared/b"}
    assert _content(first.objects["weights/a"], "sub", "w.bin") == b"\0\1"
    assert _content(first.objects["../shared"], "b", "w.bin").decode() == "b"
    repo.commit({"models.d/a.yaml": MODEL + "# x\n"})
    assert await source.fetch()
    assert (await source.read()).objects == first.objects
    repo.commit({"models.d/weights/a/sub/w.bin": b"\0\2"})
    assert await source.fetch()
    third = await source.read()
    assert third.objects["../shared"] == first.objects["../shared"]
    assert third.objects["weights/a"] != first.objects["weights/a"]
    assert _content(third.objects["weights/a"], "sub", "w.bin") == b"\0\2"
    assert _content(first.objects["weights/a"], "sub", "w.bin") == b"\0\1"


async def test_who_changed_a_file_is_known_behind_the_fetched_history(make: Make, repo: Repository) -> None:
    first = repo.commit({"models.d/a.yaml": MODEL, "models.d/b.yaml": B})
    source = make(depth=3)
    await source.fetch()
    for count in range(6):
        last = repo.commit({"models.d/b.yaml": f"{B}# {count}\n"})
    assert await source.fetch()
    changed = (await source.read()).provenance.changed  # type: ignore[union-attr]
    assert {path: each.id for path, each in changed.items()} == {"models.d/a.yaml": first, "models.d/b.yaml": last}
    # One that never saw the commit names nothing: the oldest one that was fetched would be a guess.
    shutil.rmtree(source._store.folder)
    other = make(depth=3)
    assert await other.fetch()
    changed = (await other.read()).provenance.changed  # type: ignore[union-attr]
    assert set(changed) == {"models.d/b.yaml"}


async def test_who_removed_a_file_is_known_though_others_came_later(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL, "models.d/b.yaml": B, "models.d/notes": "x"})
    source = make(depth=3)
    await source.fetch()
    for file in ("b.yaml", "notes"):
        (repo.work / "models.d" / file).unlink()
    gone = repo.commit()
    repo.commit({"README": "x"})
    for count in range(2):
        assert await source.fetch()
        provenance = (await source.read()).provenance
        assert provenance is not None
        assert {path: each.id for path, each in provenance.removed.items()} == {"models.d/b.yaml": gone}
        assert "models.d/b.yaml" not in provenance.changed
        for each in range(5):  # Behind what is fetched, by the second time.
            repo.commit({"README": f"{count} {each}"})
    again = (await make(depth=3).read()).provenance
    assert again is not None
    assert set(again.removed) == {"models.d/b.yaml"}


async def test_a_change_that_came_by_a_merge_is_its_authors(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    repo.git("checkout", "--quiet", "-b", "topic")
    topic = repo.commit({"models.d/b.yaml": B}, "--author=Eve <eve@example.com>")
    repo.git("checkout", "--quiet", "main")
    repo.commit({"README": "x"})
    repo.git("merge", "--quiet", "--no-edit", "topic")
    repo.push()
    source = make()
    await source.fetch()
    changed = (await source.read()).provenance.changed  # type: ignore[union-attr]
    assert (changed["models.d/b.yaml"].id, changed["models.d/b.yaml"].author) == (topic, "Eve")


async def test_only_so_many_revisions_stay(make: Make, repo: Repository, tmp_path: Path) -> None:
    source = make(keep=2)
    commits = []
    for count in range(5):
        commits.append(repo.commit({"models.d/a.yaml": f"{MODEL}# {count}\n", "models.d/w/x": str(count)}))
        assert await source.fetch()
        os.utime(source._store.folder_of(source._revision).parents[1], (count, count))  # type: ignore[arg-type]
    state = tmp_path / "state" / "source"
    assert sorted(each.name[:40] for each in (state / "revisions").iterdir()) == sorted(commits[-2:])
    assert len(list((state / "objects").iterdir())) == 2
    assert len(list((state / "blobs").iterdir())) == 4
    assert await make(keep=2).read() == await source.read()


async def test_the_folder_that_a_running_version_reads_stays_whatever_comes(
    make: Make, repo: Repository, tmp_path: Path
) -> None:
    records = tmp_path / "records.json"
    source = make(keep=1, in_use=records)
    repo.commit({"models.d/a.yaml": MODEL, "models.d/w/x": "0"})
    await source.fetch()
    folder = Path((await source.read()).objects["w"])
    records.write_text(json.dumps({"a": {"previous": {"args": [str(folder)]}}}))
    for count in range(1, 5):
        repo.commit({"models.d/w/x": str(count)})
        assert await source.fetch()
    assert (folder / "x").read_text() == "0"
    records.unlink()
    repo.commit({"models.d/w/x": "5"})
    assert await source.fetch()
    assert folder not in list(folder.parent.iterdir())


async def test_another_revision_is_looked_at_and_not_taken_over(make: Make, repo: Repository) -> None:
    first = repo.commit({"models.d/a.yaml": MODEL})
    second = repo.commit({"models.d/b.yaml": B})
    repo.git("tag", "v1", first)
    repo.git("checkout", "--quiet", "-b", "topic")
    third = repo.commit({"models.d/c.yaml": B})
    repo.push("v1")
    repo.push("topic:refs/pull/7/head")
    repo.git("checkout", "--quiet", "main")
    source = make()
    await source.fetch()
    before = await source.read()
    expected = [
        (first, first),
        ("v1", first),
        (first[:8], first),
        (second, second),
        ("topic", third),
        (third[:10], third),
    ]
    for rev, commit in [*expected, ("refs/pull/7/head", third)]:
        snapshot = await source.look_at(rev)
        assert snapshot.revision == commit, rev
        assert _content(snapshot.folder, "a.yaml")
    assert "models.d/c.yaml" in snapshot.files
    assert await source.read() == before
    assert not await source.fetch()


async def test_a_revision_that_was_served_is_looked_at_without_a_network(
    make: Make, repo: Repository, server: GitServer
) -> None:
    first = repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    repo.commit({"models.d/b.yaml": B})
    await source.fetch()
    server.stop()
    assert (await make().look_at(first)).revision == first
    assert (await make().look_at(first[:9])).revision == first


@pytest.mark.parametrize(
    "rev", ["nothing", "0" * 40, "abcdef1", "HEAD~1", "--upload-pack=x", "main:models.d", "@{u}", ""]
)
async def test_what_cannot_be_looked_at_is_said(make: Make, repo: Repository, rev: str) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    if rev == "":
        assert (await source.look_at(rev)).revision == repo.head(), "the repository's own branch"
        return
    with pytest.raises(GitError):
        await source.look_at(rev)
    assert (await source.read()).files


@pytest.mark.parametrize(
    "damage",
    ["empty packs", "no HEAD", "garbage HEAD", "stale lock", "no objects", "garbage config", "file"],
)
async def test_a_damaged_local_repository_is_made_again(make: Make, repo: Repository, damage: str) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    local = source._store.repo
    if damage == "empty packs":
        for pack in (local / "objects" / "pack").iterdir():
            pack.chmod(0o600)
            pack.write_bytes(b"")
    elif damage == "no HEAD":
        (local / "HEAD").unlink()
    elif damage == "garbage HEAD":
        (local / "HEAD").write_text("garbage")
    elif damage == "stale lock":
        for name in ("shallow.lock", "refs/reconciler/incoming.lock"):
            (local / name).touch()
    elif damage == "no objects":
        shutil.rmtree(local / "objects")
    elif damage == "garbage config":
        (local / "config").write_text("[[[")
    else:
        shutil.rmtree(local)
        local.write_text("x")
    commit = repo.commit({"models.d/b.yaml": B})
    assert await source.fetch()
    assert (await source.read()).revision == commit


async def test_a_damaged_revision_is_not_served_and_fetched_again(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    before = await source.read()
    _damage(before.folder, "a.yaml")
    again = make()
    assert (await again.read()).unreadable == "what was fetched last is damaged"
    assert await again.fetch()
    assert await again.read() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 7}', "\x00"])
async def test_a_damaged_pointer_is_no_error(make: Make, repo: Repository, content: str) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    (source._store.folder / "current.json").write_text(content)
    again = make()
    assert (await again.read()).unreadable
    assert await again.fetch()
    assert (await again.read()).files


async def test_while_a_fetch_lasts_what_is_on_disk_is_read(
    make: Make, repo: Repository, server: GitServer
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    await make().fetch()
    server.delay = 2.0
    source = make()
    fetching = asyncio.create_task(source.fetch())
    await asyncio.sleep(0.2)
    started = time.monotonic()
    assert (await source.read()).files
    assert time.monotonic() - started < 1.7
    await fetching


async def test_two_processes_fetch_one_after_the_other(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    # Two objects share no lock but the kernel's, as two processes do.
    sources = [make(), make()]
    await asyncio.gather(*(each.fetch() for each in sources))
    first, second = [await each.read() for each in sources]
    assert first == second
    commit = repo.commit({"models.d/b.yaml": B})
    assert await sources[0].fetch()
    await sources[1].fetch()
    assert (await sources[1].read()).revision == commit


async def test_a_writer_that_never_ends_is_waited_for_only_so_long(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    async with source._store.locked(1):
        other = make(timeout=0.2)
        assert not await other.fetch()
        assert "another process is fetching" in (await other.read()).unreadable


async def test_a_full_disk_leaves_what_is_served(
    make: Make, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    before = await source.read()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source._store, "keep_blob", full)
    commit = repo.commit({"models.d/b.yaml": B})
    assert not await source.fetch()
    after = await source.read()
    assert after == before
    assert after.provenance is not None
    assert "No space left" in after.provenance.problem
    monkeypatch.undo()
    assert await source.fetch()
    assert (await source.read()).revision == commit
