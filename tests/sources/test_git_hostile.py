"""Hostile repositories, servers and settings: each ends in an error that says where, and nothing else changes."""

import asyncio
import base64
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.git_names import GitError, check_path, check_ref, check_url
from reconciler.sources.git_command import size_of

from .conftest import MODEL, Make
from .git_server import GitServer, Repository

_TWINS = ((b"100644", b"a.yaml"), (b"160000", b"sub"))
TOKEN = "ghp_planted0123456789secret"


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /nonexistent/x",
        "ext::sh",
        "fd::17",
        "-u./payload",
        "--upload-pack=touch /nonexistent/x",
        "https://user:hunter2@example.com/x.git",
        "https://hunter2@example.com/x.git",
        "ssh://git:hunter2@example.com/x.git",
        "https://example.com/x.git?private_token=hunter2",
        "https://example.com/x.git#hunter2",
        "https://example.com/x\n.git",
        "https://example.com/x\0.git",
        "https://example.com/x y.git",
        "https://exämple.com/x.git",
        "ssh://-oProxyCommand=touch/x.git",
        "ssh://git@-oProxyCommand=touch/x.git",
        "git@-oProxyCommand=touch:x.git",
        "-oProxyCommand=x@host:path",
        "git@host:-path",
        "git@host::path",
        "git://example.com/x.git",
        "file:///etc",
        "/etc",
        "../x",
        "http://example.com/x.git",
        "http://127.0.0.1.example.com/x.git",
        "https://example.com:99999/x.git",
        "https://example.com:0/x.git",
        "https://[::1/x.git",
        "https:///x.git",
        "https://example.com",
        "https://example.com/",
        "https://example.com/../x.git",
        "HTTPS://example.com/x.git",
        "https:/example.com/x.git",
        "https::https://example.com/x.git",
        "https://a@b@example.com/x.git",
        "",
        "https://example.com/" + "x" * 5000,
    ],
)
def test_a_url_that_could_do_harm_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(GitError) as error:
        check_url(url, ("https", "ssh"))
    assert "hunter2" not in str(error.value)
    assert "payload" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("https://example.com/a/b.git", "https"),
        ("https://example.com:8443/a/b", "https"),
        ("ssh://git@example.com:22/a/b.git", "ssh"),
        ("git@example.com:a/b.git", "ssh"),
        ("http://127.0.0.1:3000/a", "http"),
        ("http://localhost/a", "http"),
        ("http://[::1]:80/a", "http"),
    ],
)
def test_a_url_as_people_write_it_is_accepted(url: str, protocol: str) -> None:
    assert check_url(url, ("https", "ssh")) == protocol


@pytest.mark.parametrize(
    "ref",
    [
        "-u", "--upload-pack=x", "a..b", "a@{1}", "@", "a b", "a~1", "a^", "a:b", "a?", "a*", "[a]", "a\\b",
        "a\nb", "a\0b", "a/", "/a", "a//b", "a.lock", "a/.b", "a.", ".", "x/-b", "\u202ea", "\udc80", "x" * 300,
    ],
)  # fmt: skip
def test_a_ref_that_is_none_is_refused(ref: str) -> None:
    with pytest.raises(GitError):
        check_ref(ref)


@pytest.mark.parametrize(
    "path", ["..", "a/../b", "/etc", ".git", "a/.GIT/b", "a//b", "a\nb", "a\0", "a\\b", "x" * 3000]
)
def test_a_path_out_of_the_repository_is_refused(path: str) -> None:
    with pytest.raises(GitError):
        check_path(path)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "ext::sh -c true"},
        {"ref": "--upload-pack=x"},
        {"path": "../x"},
        {"url": "git@host:x"},
        {"verify": "head"},
        {"username": "a:b"},
    ],
)
def test_a_source_of_such_options_cannot_be_made(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(GitError):
        make(**options)


async def _serves_only(make: Make, expected: dict[str, bytes], problems: dict[str, str]) -> None:
    source = make()
    assert await source.fetch()
    snapshot = await source.read()
    assert snapshot.files == expected
    assert {problem.path: problem.message for problem in snapshot.problems} == problems
    assert await make().read() == snapshot, "as after a restart"


async def test_links_are_followed_within_the_tree_only(make: Make, repo: Repository) -> None:
    links = {
        "in": "../shared/b.yaml",
        "chain": "in.yaml",
        "through": "../dir/b.yaml",
        "out": "../../../../etc/passwd",
        "absolute": "/etc/passwd",
        "nowhere": "missing.yaml",
        "itself": "itself.yaml",
        "folder": "../shared",
        "root": "..",
        "repository": "../.git/config",
    }
    repo.commit({"models.d/a.yaml": MODEL, "shared/b.yaml": "name: b\n"})
    (repo.work / "dir").symlink_to("shared")
    for name, target in links.items():
        (repo.work / "models.d" / f"{name}.yaml").symlink_to(target)
    (repo.work / "models.d" / "no-model").symlink_to("/etc/passwd")
    repo.commit()
    good = {"in", "chain", "through"}
    await _serves_only(
        make,
        {"models.d/a.yaml": MODEL.encode()} | {f"models.d/{each}.yaml": b"name: b\n" for each in good},
        {
            f"models.d/{each}.yaml": "is a link that leads to no file of this repository"
            for each in set(links) - good
        },
    )


async def test_links_in_folders_that_models_name_are_left_out(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL, "models.d/w/x": "x"})
    (repo.work / "models.d" / "w" / "passwd").symlink_to("/etc/passwd")
    (repo.work / "models.d" / "w" / "etc").symlink_to("/etc")
    repo.commit()
    source = make()
    await source.fetch()
    assert [each.name for each in os.scandir((await source.read()).objects["w"])] == ["x"]


async def test_submodules_large_files_and_pointers_are_said(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    blob, large = repo.blob(MODEL.encode()), repo.blob(b"#" * 300_000)
    pointer = repo.blob(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    folder = repo.tree(
        [
            ("100644", blob, "a.yaml"),
            ("160000", "1" * 40, "sub.yaml"),
            ("160000", "1" * 40, "sub"),
            ("100644", large, "large.yml"),
            ("100644", pointer, "lfs.yaml"),
            ("120000", repo.blob(b"x" * 5000), "long.yaml"),
        ]
    )
    repo.commit_tree(repo.tree([("040000", folder, "models.d")]))
    await _serves_only(
        make,
        {"models.d/a.yaml": MODEL.encode()},
        {
            "models.d/sub.yaml": "is a submodule, and these are not fetched",
            "models.d/large.yml": "is larger than 256 KiB",
            "models.d/lfs.yaml": "is kept in git LFS, which is not fetched: commit the file itself",
            "models.d/long.yaml": "is a link that leads to no file of this repository",
        },
    )


async def test_a_submodule_with_the_id_of_a_file_changes_nothing(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    blob = repo.blob(MODEL.encode())
    raw = b"".join(mode + b" " + name + b"\0" + bytes.fromhex(blob) for mode, name in _TWINS)
    folder = repo.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=raw)
    repo.commit_tree(repo.tree([("040000", folder, "models.d")]))
    await _serves_only(make, {"models.d/a.yaml": MODEL.encode()}, {})


async def test_odd_names_are_left_out_and_said(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    blob = repo.blob(MODEL.encode())
    names = [
        "new\nline.yaml",
        "esc\x1b[2J.yaml",
        "\udcff\udcfe.yaml",
        "\u202egnp.yaml",
        "back\\slash.yaml",
        "\x01.yml",
    ]
    lines = sorted(
        [("100644", blob, each) for each in [*names, "a.yaml", "no\nmodel.txt"]], key=lambda each: each[2]
    )
    inner = repo.tree([("100644", blob, "x")])
    folder = repo.tree([*lines, ("040000", inner, "odd\nfolder")])
    repo.commit_tree(repo.tree([("040000", folder, "models.d")]))
    source = make()
    assert await source.fetch()
    snapshot = await source.read()
    assert list(snapshot.files) == ["models.d/a.yaml"]
    assert len(snapshot.problems) == len(names)
    assert all(str(each).isascii() and str(each).isprintable() for each in snapshot.problems)
    assert snapshot.objects == {}


@pytest.mark.parametrize("name", ["..", ".", ".git", ".GIT", "git~1"])
async def test_a_tree_with_a_name_that_leads_elsewhere_is_refused(
    make: Make, repo: Repository, name: str, events: list[Any]
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make()
    await source.fetch()
    before = await source.read()
    inner = repo.tree([("100644", repo.blob(MODEL.encode()), "evil.yaml")])
    repo.commit_tree(repo.tree([("040000", inner, name)]))
    assert not await source.fetch()
    after = await source.read()
    assert after == before
    assert after.provenance is not None
    assert "not sound" in after.provenance.problem
    assert events[-1]["event"] == "source.refused"


async def test_what_a_commit_says_cannot_write_on_a_terminal(
    make: Make, repo: Repository, events: list[Any]
) -> None:
    repo.commit(
        {"models.d/a.yaml": MODEL},
        "--author=E\x1b[31mve\x01 <e@x>",
        message="sub\x1b]0;x\x07ject\x01\n\nbody" + "x" * 999,
    )
    source = make()
    await source.fetch()
    provenance = (await source.read()).provenance
    assert provenance is not None
    for commit in (provenance.commit, provenance.changed["models.d/a.yaml"]):
        assert commit.author.startswith("E")
        assert commit.author.isprintable()
        assert commit.subject.isprintable()
        assert "body" not in commit.subject
    assert events[0]["author"].isprintable()


async def test_a_commit_of_any_age_is_taken(make: Make, repo: Repository) -> None:
    repo.write("models.d/a.yaml", MODEL)
    repo.git("add", "--all")
    repo.git("commit", "-q", "-m", "x", GIT_AUTHOR_DATE="@1 +0000", GIT_COMMITTER_DATE="@4102444800 +0000")
    repo.push()
    source = make()
    assert await source.fetch()
    assert (await source.read()).provenance.commit.at == 4102444800  # type: ignore[union-attr]


async def test_a_tree_that_explodes_is_refused_soon(make: Make, repo: Repository) -> None:
    tree = repo.tree([("100644", repo.blob(b"x"), "x")])
    for _ in range(12):
        tree = repo.tree([("040000", tree, f"d{count}") for count in range(10)])
    repo.commit_tree(tree)
    source = make(path="")
    started = time.monotonic()
    assert not await source.fetch()
    assert time.monotonic() - started < 15
    assert "more than 10000 files and folders" in (await source.read()).unreadable


async def test_files_that_are_large_unpacked_are_refused(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(max_mib=1)
    await source.fetch()
    repo.commit({"zeros": bytes(8 << 20)})
    assert not await source.fetch()
    snapshot = await source.read()
    assert "larger than 1 MiB together" in snapshot.provenance.problem  # type: ignore[union-attr]
    assert size_of(source._store.folder) < 1 << 20


async def test_a_fetch_that_grows_too_large_is_stopped(make: Make, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(max_mib=1)
    await source.fetch()
    repo.commit({"large": os.urandom(8 << 20)})
    largest = 0
    fetching = asyncio.create_task(source.fetch())
    while not fetching.done():
        largest = max(largest, size_of(source._store.folder))
        await asyncio.sleep(0.01)
    assert not await fetching
    assert "more than 1 MiB" in (await source.read()).provenance.problem  # type: ignore[union-attr]
    assert largest < 3 << 20
    assert size_of(source._store.folder) < 1 << 20
    repo.git("reset", "--quiet", "--hard", "HEAD~1")
    commit = repo.commit({"models.d/b.yaml": MODEL})
    assert await source.fetch()
    assert (await source.read()).revision == commit


async def test_many_files_that_grow_too_large_together_are_stopped(make: Make, repo: Repository) -> None:
    source = make(max_mib=1)
    repo.commit({"models.d/a.yaml": MODEL, **{f"f{count}": os.urandom(200_000) for count in range(40)}})
    assert not await source.fetch()
    assert "MiB" in (await source.read()).unreadable
    assert size_of(source._store.folder) < 1 << 20


async def test_too_many_files_are_refused(make: Make, repo: Repository) -> None:
    repo.commit({f"models.d/{count}.yaml": MODEL for count in range(30)})
    source = make(max_files=20)
    assert not await source.fetch()
    assert "more than 20 files" in (await source.read()).unreadable


async def test_a_server_that_is_slow_is_left_in_time(
    make: Make, repo: Repository, server: GitServer, events: list[Any]
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(timeout=1.0)
    await source.fetch()
    server.delay = 3.0
    started = time.monotonic()
    assert not await source.fetch()
    assert time.monotonic() - started < 2.9
    assert "did not end within 1 s" in (await source.read()).provenance.problem  # type: ignore[union-attr]
    assert events[-1]["event"] == "source.unreachable"
    assert not _children()


async def test_a_fetch_that_is_cancelled_leaves_no_process(
    make: Make, repo: Repository, server: GitServer
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    server.delay = 4.0
    fetching = asyncio.create_task(make().fetch())
    await asyncio.sleep(0.5)
    assert _children()
    fetching.cancel()
    cancelled = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert time.monotonic() - cancelled < 1.5, "or it was waited for"
    assert not _children()


async def test_the_token_is_seen_by_the_server_and_by_nobody_else(
    make: Make, repo: Repository, server: GitServer, events: list[Any], tmp_path: Path
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    server.token, server.delay = TOKEN, 0.1
    with _command_lines() as seen:
        source = make(token=lambda: f"{TOKEN}\n")
        assert await source.fetch()
    server.token = "another"
    assert not await source.fetch()
    problem = (await source.read()).provenance.problem  # type: ignore[union-attr]
    assert "token" in problem
    assert any("ls-remote" in each for each in seen)
    assert any("remote-http" in each for each in seen)
    basic = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert f"Basic {basic}" in server.headers
    state = b"".join(each.read_bytes() for each in (tmp_path / "state").rglob("*") if each.is_file())
    for secret in (TOKEN, basic):
        assert secret not in repr((seen, events, problem, source._options, await source.read()))
        assert secret.encode() not in state


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_wrong_credentials_are_said_and_the_last_good_revision_stays(
    make: Make, repo: Repository, server: GitServer, token: str
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(token=lambda: token)
    await source.fetch()
    server.token = TOKEN
    repo.commit({"models.d/b.yaml": MODEL})
    assert not await source.fetch()
    snapshot = await source.read()
    assert list(snapshot.files) == ["models.d/a.yaml"]
    assert "token" in snapshot.provenance.problem  # type: ignore[union-attr]


@pytest.mark.parametrize("token", ["a\nHost: evil", "a\0b", "ä", "x" * 5000])
async def test_a_token_that_is_none_is_not_sent(
    make: Make, repo: Repository, server: GitServer, token: str
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(token=lambda: token)
    assert not await source.fetch()
    assert "the token is not" in (await source.read()).unreadable
    assert not server.requests


async def test_a_token_file_that_is_gone_is_said(make: Make, repo: Repository, tmp_path: Path) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(token=(tmp_path / "token").read_text)
    assert not await source.fetch()
    assert "the token cannot be read: No such file" in (await source.read()).unreadable


async def test_a_redirect_takes_the_token_nowhere(
    make: Make, repo: Repository, server: GitServer, tmp_path: Path
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    with GitServer(server.root) as other:
        server.redirect = other.url
        source = make(token=lambda: TOKEN)
        assert not await source.fetch()
        assert "the repository has moved" in (await source.read()).unreadable
        assert not other.requests


async def test_the_machines_own_settings_do_not_count(
    make: Make, repo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {mark}\n")
    evil.chmod(0o755)
    (tmp_path / ".gitconfig").write_text(
        f'[core]\n hooksPath={tmp_path}\n fsmonitor={evil}\n[url "http://127.0.0.1:9/"]\n insteadOf = http://127.0.0.1\n'
        f"[credential]\n helper = {evil}\n"
    )
    for name, value in {
        "HOME": str(tmp_path),
        "GIT_CONFIG_GLOBAL": str(tmp_path / ".gitconfig"),
        "GIT_DIR": "/nonexistent",
        "GIT_SSH_COMMAND": str(evil),
        "GIT_ASKPASS": str(evil),
        "GIT_EXEC_PATH": str(tmp_path),
        "GIT_TRACE": str(mark),
        "GIT_TRACE_CURL": str(mark),
        "http_proxy": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    # The state folder may lie within somebody's work tree.
    repo.git("init", "--quiet", str(tmp_path / "state"))
    repo.git("config", "--file", str(tmp_path / "state" / ".git" / "config"), "core.fsmonitor", str(evil))
    repo.commit({"models.d/a.yaml": MODEL})
    assert await make().fetch()
    assert not mark.exists()


@pytest.mark.parametrize("protocols", [("https", "ssh"), ("https", "ssh", "file")])
async def test_local_repositories_are_for_those_who_name_the_protocol(
    make: Make, repo: Repository, protocols: tuple[str, ...]
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    options = {"url": f"file://{repo.bare}", "protocols": protocols}
    if "file" not in protocols:
        with pytest.raises(GitError, match="file is not allowed here"):
            make(**options)
    else:
        assert await make(**options).fetch()


def _children() -> list[str]:
    """Command lines of git processes that this process started, by their parents."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if parent == os.getpid() and line.startswith("git ") and "http-backend" not in line:
                    found.append(line)
    return found


@contextlib.contextmanager
def _command_lines() -> Iterator[set[str]]:
    """Command lines of all processes of this machine that run git meanwhile."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if "git" in line:
                        seen.add(line)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
