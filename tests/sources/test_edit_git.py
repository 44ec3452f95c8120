"""Changes of files in a git repository, against a real git server: a branch of their own, or a patch."""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.cli.add import add
from reconciler.cli.remove_commands import remove
from reconciler.core.desired import Snapshot
from reconciler.core.edit import Change, ConflictError, Edit, EditError, digest_of
from reconciler.core.git_names import GitError
from reconciler.core.parse import ParsedFile, parse_model
from reconciler.core.render import Renderer
from reconciler.core.target import Platform
from reconciler.host.settings import Settings
from reconciler.host.templates import read_template
from reconciler.loop.edits import Edits
from reconciler.sources import edit_git
from reconciler.sources.edit_git import GitEdits
from reconciler.sources.git import GitSource
from reconciler.sources.git_options import GitOptions
from reconciler.weights.hub import Hub

from .conftest import Make
from .git_server import GitServer, Repository

A, B = "source: {repo: o/a}\n", "source: {repo: o/b}\n"
AUTHOR = "Grace Hopper <grace@example.com>"
RENDERER = Renderer(read_template("application.json.j2", None), Platform())
MakeEdits = Callable[..., GitEdits]


@pytest.fixture
def make_edits(tmp_path: Path, server: GitServer, repo: Repository) -> MakeEdits:
    """Edits of the same repository, in the same folder, as the source of `make`."""
    repo.git("config", "http.receivepack", "true", cwd=repo.bare)

    def make_edits(*, push_branch: str = "", push_token: Any = None, **options: Any) -> GitEdits:
        settings: dict[str, Any] = {
            "url": f"{server.url}/models.git",
            "folder": tmp_path / "state" / "source",
            "timeout": 20.0,
        }
        return GitEdits(GitOptions(**(settings | options)), push_branch=push_branch, push_token=push_token)

    return make_edits


async def taken_over(source: GitSource) -> Snapshot:
    await source.fetch()
    snapshot = await source.read()
    assert not snapshot.unreadable
    return snapshot


def changed(snapshot: Snapshot, name: str, after: str | None, **fields: str) -> tuple[Edit, Change]:
    path = next(iter(snapshot.files)).rpartition("/")[0] + f"/{name}"
    before = snapshot.files.get(path)
    content = None if after is None else after.encode()
    about = {"message": "", "author": AUTHOR, **fields}
    return Edit(path, "diff"), Change(name, before, content, snapshot, **about)


def branches(repo: Repository) -> list[str]:
    return repo.git("for-each-ref", "--format=%(refname:short)", "refs/heads", cwd=repo.bare).split()


def show(repo: Repository, what: str) -> str:
    return repo.git("show", what, cwd=repo.bare)


async def test_a_change_is_pushed_to_a_branch_of_its_own(
    make: Make, make_edits: MakeEdits, repo: Repository
) -> None:
    base = repo.commit({"models.d/a.yaml": A, "models.d/b.yaml": B, "other/x": "x", "README": "r"})
    snapshot = await taken_over(make())
    edits = make_edits(push_branch="reconcile/{model}")
    edit = await edits.apply(*changed(snapshot, "a.yaml", A + "# new\n", message="Say more\nthan before"))
    assert (edit.written, edit.branch, edit.backup, edit.patch) == (True, "reconcile/a", None, None)
    assert branches(repo) == ["main", "reconcile/a"]
    assert repo.git("rev-parse", "main", cwd=repo.bare) == base
    assert repo.git("rev-parse", "reconcile/a", cwd=repo.bare) == edit.commit
    assert repo.git("diff", "--name-status", "main", "reconcile/a", cwd=repo.bare) == "M\tmodels.d/a.yaml"
    assert show(repo, "reconcile/a:models.d/a.yaml") == (A + "# new\n").strip()
    about = repo.git("log", "-1", "--format=%P|%an|%ae|%cn|%s|%b", "reconcile/a", cwd=repo.bare)
    assert about == f"{base}|Grace Hopper|grace@example.com|reconcile|Say more than before|"
    # Nothing that is served has changed.
    assert await make().read() == snapshot


async def test_files_are_added_and_removed_in_any_folder(
    make: Make, make_edits: MakeEdits, repo: Repository
) -> None:
    repo.write("x/y/m/a.yaml", A)
    (repo.work / "x" / "y" / "m" / "a.yaml").chmod(0o755)
    repo.commit({"x/y/z": "z", "x/w/ä b": "w", "r": "r"})
    snapshot = await taken_over(make(path="x/y/m/"))
    edits = make_edits(path="x/y/m/", push_branch="p/{model}")
    added = await edits.apply(*changed(snapshot, "new.yaml", B))
    assert repo.git("diff", "--raw", "--abbrev=7", "main", "p/new", cwd=repo.bare).endswith("A\tx/y/m/new.yaml")
    assert show(repo, f"{added.commit}:x/y/m/new.yaml") == B.strip()
    assert repo.git("log", "-1", "--format=%s", "p/new", cwd=repo.bare) == "Add x/y/m/new.yaml"
    await edits.apply(*changed(snapshot, "a.yaml", B))
    # It stays as executable as it was.
    assert repo.git("ls-tree", "p/a", "x/y/m/a.yaml", cwd=repo.bare).startswith("100755")
    repo.commit({"x/y/m/b.yaml": B})
    snapshot = await taken_over(make(path="x/y/m/"))
    await edits.apply(*changed(snapshot, "b.yaml", None))
    assert repo.git("diff", "--name-status", "main", "p/b", cwd=repo.bare) == "D\tx/y/m/b.yaml"


async def test_in_the_root_of_the_repository(make: Make, make_edits: MakeEdits, repo: Repository) -> None:
    repo.commit({"a.yaml": A})
    snapshot = await taken_over(make(path=""))
    edit = await make_edits(path="", push_branch="p").apply(*changed(snapshot, "a.yaml", None))
    assert repo.git("ls-tree", str(edit.commit), cwd=repo.bare) == ""


async def test_the_last_file_of_the_folder_is_not_removed(
    make: Make, make_edits: MakeEdits, repo: Repository
) -> None:
    repo.commit({"models.d/a.yaml": A, "models.d-not/x": "x"})
    snapshot = await taken_over(make())
    with pytest.raises(EditError, match=r"last file in models\.d"):
        await make_edits(push_branch="p").apply(*changed(snapshot, "a.yaml", None))
    repo.commit({"models.d/.gitkeep": ""})
    snapshot = await taken_over(make())
    assert (await make_edits(push_branch="p").apply(*changed(snapshot, "a.yaml", None))).written


async def test_a_branch_that_exists_is_left_alone(make: Make, make_edits: MakeEdits, repo: Repository) -> None:
    base = repo.commit({"models.d/a.yaml": A})
    # Where the base is what the branch has, a push would not even have to force.
    repo.git("push", "--quiet", "origin", "HEAD:refs/heads/reconcile/a")
    snapshot = await taken_over(make())
    edits = make_edits(push_branch="reconcile/{model}")
    edit = await edits.apply(*changed(snapshot, "a.yaml", B))
    again = await edits.apply(*changed(snapshot, "a.yaml", B + "#\n"))
    assert (edit.branch, again.branch) == ("reconcile/a-2", "reconcile/a-3")
    assert repo.git("rev-parse", "reconcile/a", cwd=repo.bare) == base


async def test_a_branch_that_somebody_makes_meanwhile_is_left_alone(
    make: Make, make_edits: MakeEdits, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = repo.commit({"models.d/a.yaml": A})
    snapshot = await taken_over(make())
    real = edit_git.GitEdits._heads

    async def heads(self: GitEdits, *args: Any) -> set[str]:
        found = await real(self, *args)
        repo.git("push", "--quiet", "origin", "HEAD:refs/heads/p")
        return found

    monkeypatch.setattr(edit_git.GitEdits, "_heads", heads)
    edit = await make_edits(push_branch="p").apply(*changed(snapshot, "a.yaml", B))
    assert edit.branch == "p-2"
    assert repo.git("rev-parse", "p", cwd=repo.bare) == base


@pytest.mark.parametrize("ref", ["", "main", "refs/heads/main"])
async def test_the_followed_branch_is_never_written(
    make: Make, make_edits: MakeEdits, repo: Repository, ref: str
) -> None:
    base = repo.commit({"models.d/a.yaml": A})
    snapshot = await taken_over(make(ref=ref))
    edit = await make_edits(ref=ref, push_branch="main").apply(*changed(snapshot, "a.yaml", B))
    assert edit.branch == "main-2"
    assert repo.git("rev-parse", "main", cwd=repo.bare) == base
    # Not even where it is gone: it would be followed again, with a change that nobody merged.
    repo.git("update-ref", "-d", "refs/heads/main", cwd=repo.bare)
    edit = await make_edits(ref=ref, push_branch="main").apply(*changed(snapshot, "a.yaml", B))
    assert (edit.branch, branches(repo)) == ("main-3", ["main-2", "main-3"])


async def test_a_shallow_copy_is_enough(
    make: Make, make_edits: MakeEdits, repo: Repository, tmp_path: Path
) -> None:
    for number in range(6):
        repo.commit({"models.d/a.yaml": A + f"# {number}\n"})
    snapshot = await taken_over(make(depth=1))
    assert (tmp_path / "state" / "source" / "repo" / "shallow").exists()
    edit = await make_edits(depth=1, push_branch="p").apply(*changed(snapshot, "a.yaml", B))
    assert repo.git("rev-list", "--count", "p", cwd=repo.bare) == "7"
    patch = (await make_edits(depth=1).apply(*changed(snapshot, "a.yaml", B))).patch
    repo.git("am", "--keep-cr", "-", stdin=str(patch).encode())
    assert repo.git("rev-parse", "HEAD^{tree}") == repo.git("rev-parse", f"{edit.commit}^{{tree}}", cwd=repo.bare)


async def test_a_copy_that_was_lost_is_fetched_again(
    make: Make, make_edits: MakeEdits, repo: Repository, tmp_path: Path
) -> None:
    base = repo.commit({"models.d/a.yaml": A})
    source = make()
    snapshot = await taken_over(source)
    repo.commit({"models.d/a.yaml": A + "# newer\n"})
    await asyncio.to_thread(shutil.rmtree, tmp_path / "state" / "source" / "repo")
    edit = await make_edits(push_branch="p").apply(*changed(snapshot, "a.yaml", B))
    assert repo.git("rev-parse", "p^", cwd=repo.bare) == base
    assert edit.written
    # And the source goes on as if nothing had been.
    assert (await taken_over(source)).files["models.d/a.yaml"].endswith(b"# newer\n")


AWKWARD = {
    "a plain change": (A, B),
    "line ends of Windows": (A.replace("\n", "\r\n"), B.replace("\n", "\r\n") + "# x\r\n"),
    "no line end": (A.strip(), B.strip()),
    "what looks like a mail or a diff": (A, A + "#\nFrom me\n---\n-- \ndiff --git a/x b/x\n# > From you\n"),
    "letters": (A, A + "# ä 漢字 \u2028 🦆\n"),
    "a new file": (None, B),
    "no file any more": (A, None),
}


@pytest.mark.parametrize(("before", "after"), AWKWARD.values(), ids=AWKWARD)
async def test_git_am_applies_the_patch(
    make: Make, make_edits: MakeEdits, repo: Repository, before: str | None, after: str | None
) -> None:
    files: dict[str, str | bytes] = {"models.d/z.yaml": B}
    repo.commit(files | ({} if before is None else {"models.d/a.yaml": before.encode()}))
    snapshot = await taken_over(make())
    message = 'Say: it\'s "ä" -- at last, in a subject that is so long that a mail has to break it in two or three'
    edits = make_edits()
    assert not edits.writes
    edit = await edits.apply(*changed(snapshot, "a.yaml", after, message=message))
    assert (edit.written, edit.branch, edit.commit) == (False, None, None)
    assert branches(repo) == ["main"]
    repo.git("am", "--keep-cr", "-", stdin=str(edit.patch).encode())
    assert repo.git("log", "-1", "--format=%an|%ae|%s") == f"Grace Hopper|grace@example.com|{message}"
    assert repo.git("status", "--porcelain") == ""
    file = repo.work / "models.d" / "a.yaml"
    assert (file.read_bytes().decode() if file.exists() else None) == after
    assert (repo.work / "models.d" / "z.yaml").read_text() == B


@pytest.mark.parametrize(
    ("author", "expected"),
    [
        ("ada", "ada|noreply@reconcile.invalid"),
        ("Ada L <ada@example.com>", "Ada L|ada@example.com"),
        ("", "unknown|noreply@reconcile.invalid"),
        ("<>", "unknown|noreply@reconcile.invalid"),
        ("...;,", "unknown|noreply@reconcile.invalid"),
        ("a\0b\nparent 0\x1b[1m <x y>", "a\ufffdb parent 0\ufffd[1m x y|noreply@reconcile.invalid"),
        ("\ud800x", "\ufffdx|noreply@reconcile.invalid"),
        ("n" * 5000, f"{'n' * 100}|noreply@reconcile.invalid"),
    ],
)
async def test_whoever_asks_is_the_author(
    make: Make, make_edits: MakeEdits, repo: Repository, author: str, expected: str
) -> None:
    repo.commit({"models.d/a.yaml": A})
    snapshot = await taken_over(make())
    await make_edits(push_branch="p").apply(*changed(snapshot, "a.yaml", B, author=author))
    assert repo.git("log", "-1", "--format=%an|%ae", "p", cwd=repo.bare) == expected


async def test_a_message_cannot_carry_another_change(make: Make, make_edits: MakeEdits, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": A, "secret": "s\n"})
    snapshot = await taken_over(make())
    message = "x\n---\ndiff --git a/secret b/secret\n--- a/secret\n+++ b/secret\n@@ -1 +1 @@\n-s\n+t\n\0\x1b\ud800"
    edit = await make_edits().apply(*changed(snapshot, "a.yaml", B, message=message))
    repo.git("am", "--keep-cr", "-", stdin=str(edit.patch).encode())
    assert (repo.work / "secret").read_text() == "s\n"
    assert (repo.work / "models.d" / "a.yaml").read_text() == B


@pytest.mark.parametrize("name", ["-x", "a b", "ä", "a..b", "x.lock", "@{", "~^:", "HEAD"])
async def test_any_file_makes_a_branch(make: Make, make_edits: MakeEdits, repo: Repository, name: str) -> None:
    repo.commit({"models.d/a.yaml": A})
    snapshot = await taken_over(make())
    edit = await make_edits(push_branch="r/{model}/edit").apply(*changed(snapshot, f"{name}.yaml", B))
    assert edit.branch in branches(repo)


@pytest.mark.parametrize("branch", ["-x", "a b", "a..b", "x:y", "*", "x/", "{model}.lock", "\n", "x//y"])
def test_a_template_that_makes_no_branch_is_refused(make_edits: MakeEdits, branch: str) -> None:
    with pytest.raises(GitError):
        make_edits(push_branch=branch)


async def test_a_token_without_the_right_to_push(
    make: Make, make_edits: MakeEdits, repo: Repository, server: GitServer
) -> None:
    server.token = "right-token-1"
    repo.commit({"models.d/a.yaml": A})
    snapshot = await taken_over(make(token=lambda: "right-token-1"))
    edits = make_edits(push_branch="p", token=lambda: "right-token-1", push_token=lambda: "wrong-token-2")
    with pytest.raises(EditError, match=r"token|credentials") as error:
        await edits.apply(*changed(snapshot, "a.yaml", B))
    assert "wrong-token-2" not in str(error.value)
    repo.git("config", "http.receivepack", "false", cwd=repo.bare)
    edits = make_edits(push_branch="p", token=lambda: "right-token-1")
    with pytest.raises(EditError, match="no right to push"):
        await edits.apply(*changed(snapshot, "a.yaml", B))
    repo.git("config", "http.receivepack", "true", cwd=repo.bare)
    edits = make_edits(push_branch="p", token=lambda: "unused-token-3", push_token=lambda: "right-token-1")
    assert (await edits.apply(*changed(snapshot, "a.yaml", B))).branch == "p"

    def missing() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(EditError, match="the token cannot be read: No such file"):
        await make_edits(push_branch="p", push_token=missing).apply(*changed(snapshot, "a.yaml", B))
    assert branches(repo) == ["main", "p"]


async def test_a_server_that_refuses_is_quoted(make: Make, make_edits: MakeEdits, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": A})
    hook = repo.bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    snapshot = await taken_over(make())
    with pytest.raises(EditError, match="pre-receive hook declined"):
        await make_edits(push_branch="p").apply(*changed(snapshot, "a.yaml", B))
    assert branches(repo) == ["main"]


async def test_a_server_that_does_not_answer(
    make: Make, make_edits: MakeEdits, repo: Repository, server: GitServer
) -> None:
    repo.commit({"models.d/a.yaml": A})
    snapshot = await taken_over(make())
    server.stop()
    with pytest.raises(EditError, match="connect"):
        await make_edits(push_branch="p", timeout=5.0).apply(*changed(snapshot, "a.yaml", B))
    # A patch needs nobody.
    assert (await make_edits().apply(*changed(snapshot, "a.yaml", B))).patch


async def test_links_and_what_is_no_file_are_refused(make: Make, make_edits: MakeEdits, repo: Repository) -> None:
    repo.write("models.d/a.yaml", A)
    (repo.work / "models.d" / "l.yaml").symlink_to("a.yaml")
    repo.commit({"models.d/f.yaml/x": "x"})
    snapshot = await taken_over(make())
    assert snapshot.files["models.d/l.yaml"] == A.encode()
    edits = make_edits()
    for after in (B, None):
        with pytest.raises(EditError, match="is a link in the repository"):
            await edits.apply(*changed(snapshot, "l.yaml", after))
    with pytest.raises(ConflictError, match="something else by that name"):
        await edits.apply(*changed(snapshot, "f.yaml", B))
    edit, change = changed(snapshot, "a.yaml", B)
    with pytest.raises(ConflictError):
        await edits.apply(edit, replace(change, before=b"what was never there"))


async def test_submodules_and_odd_names_beside_it_stay(
    make: Make, make_edits: MakeEdits, repo: Repository
) -> None:
    repo.commit({"models.d/a.yaml": A})
    blob = repo.blob(A.encode())
    inner = repo.tree(
        [("100644", blob, "a.yaml"), ("120000", repo.blob(b"a.yaml"), "l"), ("160000", "1" * 40, "sub"),
         ("100644", blob, "\udcff odd"), ("100644", blob, 'a\nb\t"')]
    )  # fmt: skip
    repo.commit_tree(repo.tree([("040000", inner, "models.d"), ("100644", blob, "models.d.txt")]))
    snapshot = await taken_over(make())
    await make_edits(push_branch="p").apply(*changed(snapshot, "a.yaml", B))
    assert repo.git("diff", "--name-status", "main", "p", cwd=repo.bare) == "M\tmodels.d/a.yaml"
    repo.git("fsck", "--strict", cwd=repo.bare)


async def test_a_fetch_at_the_same_time_is_waited_for(make: Make, make_edits: MakeEdits, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": A})
    source = make()
    snapshot = await taken_over(source)
    edits = make_edits(push_branch="p")
    repo.commit({"models.d/b.yaml": B})
    done = await asyncio.gather(
        source.fetch(), *(edits.apply(*changed(snapshot, "a.yaml", f"{A}# {n}\n")) for n in range(3))
    )
    assert done[0] is True
    assert sorted(branches(repo)) == ["main", "p", "p-2", "p-3"]


async def test_the_whole_operation(make: Make, make_edits: MakeEdits, repo: Repository) -> None:
    repo.commit({"models.d/a.yaml": A})
    source = make()
    await source.fetch()
    edits = Edits(source, RENDERER, make_edits(push_branch="reconcile/{model}"))
    (file,) = await edits.files()
    assert (file.path, file.digest) == ("models.d/a.yaml", digest_of(A.encode()))
    bad = await edits.apply("a.yaml", "sauce: 1\n", file.digest, message="", author="ada")
    assert bad.problems
    with pytest.raises(ConflictError):
        await edits.apply("a.yaml", B, digest_of(B.encode()), message="", author="ada")
    assert branches(repo) == ["main"]
    edit = await edits.apply("a.yaml", B, file.digest, message="", author="ada")
    assert edit.diff == "--- a/models.d/a.yaml\n+++ b/models.d/a.yaml\n@@ -1 +1 @@\n-" + A + "+" + B
    # Once it is merged, it is what is served.
    repo.git("push", "--quiet", "origin", "refs/heads/main:refs/heads/old")
    repo.git("update-ref", "refs/heads/main", str(edit.commit), cwd=repo.bare)
    assert await source.fetch()
    assert (await edits.read("a.yaml")).text == B


@pytest.fixture
def command(server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("RECONCILE_SOURCE", "git")
    monkeypatch.setenv("RECONCILE_GIT_URL", f"{server.url}/models.git")

    def command(*args: str) -> Result:
        shared = {"state_dir": tmp_path / "state", "models_dir": None, "output": "text"}
        return CliRunner().invoke(remove, args, obj=shared)

    return command


@pytest.mark.usefixtures("make_edits")
def test_remove_prints_a_patch_or_pushes(
    make: Make, repo: Repository, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.git("config", "http.receivepack", "true", cwd=repo.bare)
    repo.commit({"models.d/a.yaml": A, "models.d/b.yaml": B})
    assert "nothing has been fetched yet" in command("a").output
    asyncio.run(make().fetch())
    result = command("a")
    assert result.exit_code == 0, result.output
    assert "Nothing was changed" in result.stderr
    repo.git("am", "--keep-cr", "-", stdin=result.stdout_bytes)
    assert not (repo.work / "models.d" / "a.yaml").exists()
    monkeypatch.setenv("RECONCILE_GIT_PUSH_BRANCH", "gone/{model}")
    assert "--yes" in command("a").output
    result = command("a", "--yes", "--message", "Not needed")
    assert result.exit_code == 0, result.output
    assert "Pushed gone/a" in result.output
    assert repo.git("log", "-1", "--format=%s", "gone/a", cwd=repo.bare) == "Not needed"
    monkeypatch.setenv("RECONCILE_GIT_PUSH_BRANCH", "a..b")
    result = command("a", "--yes")
    assert result.exit_code == 1


@pytest.mark.usefixtures("make_edits")
def test_add_prints_a_patch_or_pushes(
    make: Make, repo: Repository, server: GitServer, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    repo.commit({"models.d/a.yaml": A})
    nobody = Hub("http://127.0.0.1:9", timeout=1)

    def run(*, push: str = "", force: bool = False, name: str | None = None, output: str = "text") -> int:
        settings = Settings(
            source="git",
            git_url=f"{server.url}/models.git",
            git_push_branch=push,
            state_dir=tmp_path / "state",
            models_dir=tmp_path / "not-asked",
        )
        about: dict[str, Any] = {"revision": None, "name": name, "stdout": False, "force": force, "output": output}
        return add(settings, "qwen3-0.6b", hub=nobody, **about)

    with pytest.raises(SystemExit):
        run()
    assert b"nothing has been fetched yet" in capfdbinary.readouterr().err
    asyncio.run(make().fetch())
    assert run() == 0
    patch, said = capfdbinary.readouterr()
    assert b"Nothing was changed" in said
    assert b"note: " in said, "a patch is a patch, and no more"
    repo.git("am", "--keep-cr", "-", stdin=patch)
    found = parse_model("models.d/x.yaml", (repo.work / "models.d" / "qwen3-0.6b.yaml").read_bytes())
    assert isinstance(found, ParsedFile)
    assert found.spec.source.repo == "Qwen/Qwen3-0.6B"
    assert run(push="add/{model}") == 0
    assert b"Pushed add/qwen3-0-6b" in capfdbinary.readouterr().out
    assert repo.git("diff", "--name-status", "main", "add/qwen3-0-6b", cwd=repo.bare) == (
        "A\tmodels.d/qwen3-0.6b.yaml"
    )
    assert run(push="json", output="json") == 0
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["path"], told["branch"], told["patch"]) == ("models.d/qwen3-0.6b.yaml", "json", None)
    assert told["commit"] == repo.git("rev-parse", "json", cwd=repo.bare)
    # What is there already is left, and so is a name that another file has.
    repo.push()
    asyncio.run(make().fetch())
    with pytest.raises(SystemExit):
        run(push="again")
    assert b"models.d/qwen3-0.6b.yaml exists; --force" in capfdbinary.readouterr().err
    assert run(push="again", force=True) == 0
    assert b"models.d/qwen3-0.6b.yaml says that already" in capfdbinary.readouterr().out
    with pytest.raises(SystemExit):
        run(push="again", name="a")
    assert b"--name chooses another name" in capfdbinary.readouterr().err
    assert "again" not in branches(repo)
    assert not (tmp_path / "not-asked").exists()
