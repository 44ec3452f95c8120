"""A proposed tree, read from a folder and from a revision of a real repository."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from reconciler.core.desired import Snapshot
from reconciler.core.yaml_reader import MAX_BYTES
from reconciler.sources.folder import FolderSource
from reconciler.sources.proposed import FixedSource, ProposedError, proposed

FILE = b"source: {repo: o/m}\n"


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def read(against: str, models: Path) -> Snapshot:
    return asyncio.run(proposed(against, models))


def commit(folder: Path, message: str = "change") -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The models folder of a work tree, inside another folder, with one commit."""
    folder = tmp_path / "repo" / "deploy" / "models.d"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_bytes(FILE)
    (folder / "b.yml").write_bytes(b"two\n")
    (folder / "notes.md").write_bytes(b"no model\n")
    (folder / ".hidden.yaml").write_bytes(b"no model\n")
    (folder / "examples").mkdir()
    (folder / "examples" / "c.yaml").write_bytes(b"no model\n")
    git(tmp_path / "repo", "init", "-q")
    commit(tmp_path / "repo", "the first | `one`")
    return folder


def test_a_revision_is_what_the_folder_was(models: Path) -> None:
    then = asyncio.run(FolderSource(models).read())
    (models / "a.yaml").unlink()
    (models / "d.yaml").write_bytes(b"new\n")
    found = read("HEAD", models)
    assert found.files == then.files == {"models.d/a.yaml": FILE, "models.d/b.yml": b"two\n"}
    assert (found.problems, found.unreadable, found.folder) == ((), "", then.folder)


def test_a_revision_says_which_commit_it_is(models: Path) -> None:
    first = git(models, "rev-parse", "HEAD")
    (models / "a.yaml").unlink()
    second = commit(models)
    found = read("HEAD~1", models)
    assert found.revision == first
    assert found.provenance is not None
    assert found.provenance.commit.id == first
    assert (found.provenance.commit.author, found.provenance.commit.subject) == ("Ann", "the first | `one`")
    assert found.provenance.commit.at > 1_500_000_000
    assert read(second[:10], models).revision == second


def test_the_work_tree_and_the_index_are_not_touched(models: Path) -> None:
    (models / "a.yaml").write_bytes(b"edited\n")
    before = git(models, "status", "--porcelain")
    read("main", models)
    assert git(models, "status", "--porcelain") == before
    assert (models / "a.yaml").read_bytes() == b"edited\n"


def test_a_folder_has_the_names_that_its_files_would_have(models: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "a.yaml").write_bytes(b"other\n")
    (other / "x.yaml").mkdir()
    found = read(str(other), models)
    assert found.files == {"models.d/a.yaml": b"other\n"}
    assert [problem.path for problem in found.problems] == ["models.d/x.yaml"]


def test_a_revision_without_the_folder_has_no_model(models: Path) -> None:
    git(models, "rm", "-q", "-r", "--cached", ".")
    git(models, "commit", "-q", "--allow-empty", "-m", "all gone")
    assert read("HEAD", models).files == {}


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_was_no_folder_is_not_read_as_one(models: Path, kind: str) -> None:
    kept = models.parent / "kept"
    models.rename(kept)
    if kind == "link":
        models.symlink_to("/etc")
    else:
        models.write_bytes(b"text")
    commit(models.parent)
    models.unlink()
    kept.rename(models)
    with pytest.raises(ProposedError, match="no folder in this revision"):
        read("HEAD", models)


def test_what_is_no_file_of_bounded_size_is_a_problem_at_its_place(models: Path) -> None:
    (models / "link.yaml").symlink_to("/etc/passwd")
    (models / "big.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    (models / "largest.yaml").write_bytes(b"#" * MAX_BYTES)
    (models / "empty.yaml").write_bytes(b"")
    commit(models)
    found = read("HEAD", models)
    assert [str(problem) for problem in found.problems] == [
        "models.d/big.yaml:1:1: is larger than 256 KiB",
        "models.d/link.yaml:1:1: is a link that leads to no file of this repository",
    ]
    assert found.files["models.d/largest.yaml"] == b"#" * MAX_BYTES
    assert found.files["models.d/empty.yaml"] == b""


def test_names_are_taken_as_they_are(models: Path) -> None:
    names = ["ü.yaml", "a b.yaml", '"q".yaml', "-x.yaml", ":(glob).yaml"]
    for name in names:
        (models / name).write_bytes(name.encode())
    commit(models)
    found = read("HEAD", models)
    assert {name: found.files[f"models.d/{name}"] for name in names} == {name: name.encode() for name in names}


def test_a_link_within_the_repository_is_the_file_that_it_leads_to(models: Path) -> None:
    (models / "link.yaml").symlink_to("examples/c.yaml")
    commit(models)
    assert read("HEAD", models).files["models.d/link.yaml"] == b"no model\n"


def test_a_pointer_to_content_that_is_elsewhere_is_no_model_file(models: Path) -> None:
    (models / "big.yaml").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    commit(models)
    found = read("HEAD", models)
    assert "models.d/big.yaml" not in found.files
    assert [problem.path for problem in found.problems] == ["models.d/big.yaml"]


@pytest.mark.parametrize(
    "revision",
    [
        "nonsense",
        "--help",
        "--output=x",
        "-",
        "",
        "HEAD:deploy",
        "a\nb",
        "x" * 5000,
        "../nowhere",
        "\0",
        "main..HEAD",
    ],
)
def test_what_is_neither_folder_nor_commit_is_said(models: Path, revision: str) -> None:
    with pytest.raises(ProposedError):
        read(revision, models)
    assert not list(models.glob("x"))


def test_outside_of_a_repository_only_folders_can_be_named(tmp_path: Path) -> None:
    with pytest.raises(ProposedError, match="not a git repository"):
        read("HEAD", tmp_path)
    with pytest.raises(ProposedError, match="is not there"):
        read("HEAD", tmp_path / "absent")


def test_without_git_it_says_so(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ProposedError, match="git is not installed"):
        read("HEAD", models)


def test_variables_of_git_lead_nowhere_else(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert "models.d/a.yaml" in read("HEAD", models).files


def test_no_program_that_a_repository_names_is_run(models: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    for key in (
        "core.fsmonitor", "core.pager", "pager.log", "pager.ls-tree", "core.sshCommand", "gpg.program",
        "core.editor", "diff.external",
        "core.askPass", "credential.helper", "alias.ls-tree", "alias.cat-file", "diff.x.textconv",
        "filter.x.smudge", "core.hooksPath", "core.alternateRefsCommand",
    ):  # fmt: skip
        git(models, "config", key, str(program))
    git(models, "config", "log.showSignature", "true")
    (models / ".gitattributes").write_text("* diff=x filter=x\n")
    # A blob that is not there, and a place to fetch it from.
    blob = git(models, "rev-parse", "HEAD:deploy/models.d/a.yaml")
    top = Path(git(models, "rev-parse", "--show-toplevel"))
    (top / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    git(models, "config", "remote.origin.url", "ssh://127.0.0.1/x")
    git(models, "config", "remote.origin.promisor", "true")
    git(models, "config", "extensions.partialClone", "origin")
    with pytest.raises(ProposedError):
        read("HEAD", models)
    assert not ran.exists()


def test_a_fixed_source_gives_the_same_files_each_time() -> None:
    snapshot = Snapshot("r", {"models.d/a.yaml": FILE}, "/m")
    source = FixedSource(snapshot)
    assert asyncio.run(source.read()) is snapshot
    assert asyncio.run(source.read()) is snapshot
