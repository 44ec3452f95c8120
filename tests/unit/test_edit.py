"""What a change of a model file is: names, diffs, conflicts, and which mistakes stand in its way."""

import asyncio
import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.cli.remove_commands import remove
from reconciler.core.desired import Snapshot
from reconciler.core.edit import (
    ConflictError,
    EditError,
    FileNameError,
    NoFileError,
    bytes_of,
    check_seen,
    digest_of,
    file_name,
    problems_of,
    unified,
)
from reconciler.core.render import Renderer
from reconciler.core.target import Platform
from reconciler.host.templates import read_template
from reconciler.loop.edits import Edits
from reconciler.sources.edit_folder import FolderEdits
from reconciler.sources.folder import FolderSource

RENDERER = Renderer(read_template("application.json.j2", None), Platform())
A, B = "source: {repo: o/a}\n", "source: {repo: o/b}\n"


def snapshot(**files: str) -> Snapshot:
    return Snapshot("r", {f"m/{name}.yaml": text.encode() for name, text in files.items()}, "/m")


@pytest.mark.parametrize(
    ("path", "name"),
    [("m/a.yaml", "a.yaml"), ("a.yml", "a.yml"), ("A.YAML", "A.YAML"), ("m/ä b.yaml", "ä b.yaml")],
)
def test_names_of_model_files(path: str, name: str) -> None:
    assert file_name(path, "m") == name


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "m/", "m", "a.txt", "a", ".yaml", ".a.yaml", "m/.a.yaml", "x/a.yaml", "m/m/a.yaml"),
        *("../a.yaml", "m/../a.yaml", "/etc/a.yaml", "m//a.yaml", "a\\b.yaml", "a\0.yaml", "a\n.yaml"),
        *("a\u202e.yaml", "\ud800.yaml", f"{'a' * 200}.yaml", f"{'ä' * 99}.yaml"),
    ],
)
def test_what_is_no_name_of_a_model_file(path: str) -> None:
    with pytest.raises(FileNameError):
        file_name(path, "m")


def test_a_change_names_what_its_author_saw() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    check_seen("p", b"x", digest)
    check_seen("p", None, None)
    for content, seen in ((b"x", None), (None, digest), (b"y", digest), (b"x", "x"), (b"x", "")):
        with pytest.raises(ConflictError, match="p "):
            check_seen("p", content, seen)


def test_a_diff_is_unified() -> None:
    before = "".join(f"{number}\n" for number in range(1, 31))
    after = before.replace("5\n", "five\n", 1).replace("30\n", "30")
    assert unified("m/a.yaml", before.encode(), after.encode()) == (
        "--- a/m/a.yaml\n+++ b/m/a.yaml\n"
        "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n"
        "@@ -27,4 +27,4 @@\n 27\n 28\n 29\n-30\n+30\n\\ No newline at end of file\n"
    )
    assert unified("p", None, b"a\n") == "--- /dev/null\n+++ b/p\n@@ -0,0 +1 @@\n+a\n"
    assert unified("p", b"a\nb", None) == (
        "--- a/p\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n\\ No newline at end of file\n"
    )
    assert unified("p", b"a", b"a") == ""


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "d\r", "e\x0b\u2028f"]), max_size=40)


@settings(deadline=None)
@given(LINES, LINES, st.booleans(), st.booleans())
def test_a_diff_says_what_git_can_apply(old: list[str], new: list[str], old_end: bool, new_end: bool) -> None:
    before = ("\n".join(old) + "\n" * old_end).encode()
    after = ("\n".join(new) + "\n" * new_end).encode()
    if before in (b"", after) or after == b"":
        return
    assert _patched(before, unified("f", before, after)) == after


def _patched(before: bytes, diff: str) -> bytes:
    """What git makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f"
        file.write_bytes(before)
        command = ["git", "apply", "--whitespace=nowarn", "--unidiff-zero", "-"]
        subprocess.run(
            command, cwd=folder, input=diff.encode(), check=True, env={"HOME": folder, "PATH": "/usr/bin:/bin"}
        )
        return file.read_bytes()


def test_a_diff_of_hostile_files_takes_bounded_time() -> None:
    repeated = "".join(f"{number % 91}\n" for number in range(60_000)).encode()
    turned = "".join(f"{(number * 7 + 3) % 91}\n" for number in range(60_000)).encode()
    for before, after in ((repeated, turned), (b"\n" * 200_000, b"\n" * 199_000 + b"x\n"), (repeated, None)):
        began = time.process_time()
        assert unified("p", before, after)
        assert time.process_time() - began < 5
    small = b"".join(b"%d\n" % (number % 45) for number in range(500))
    began = time.process_time()
    unified("p", small, b"".join(b"%d\n" % ((number * 7) % 45) for number in range(500)))
    assert time.process_time() - began < 5


def test_a_valid_change_has_no_problem() -> None:
    assert problems_of(snapshot(a=A), "m/b.yaml", B.encode(), RENDERER) == ()
    assert problems_of(snapshot(a=A), "m/a.yaml", None, RENDERER) == ()


def test_mistakes_are_said_with_their_place() -> None:
    (problem,) = problems_of(snapshot(a=A), "m/a.yaml", (A + "aliases: 7\n").encode(), RENDERER)
    assert problem.startswith("m/a.yaml:2:10: ")
    for content in (b"\xff", bytes_of("name: \ud800\n"), b"\0", b"[" * 1000, b"", b"x" * 300_000):
        problems = problems_of(snapshot(a=A), "m/a.yaml", content, RENDERER)
        assert problems
        assert all(each.startswith("m/a.yaml:1:") for each in problems)


def test_what_only_rendering_finds_is_a_problem() -> None:
    broken = Renderer("{{ fail }}{% if model.name == 'a' %}no json{% endif %}", Platform())
    (problem,) = problems_of(snapshot(b=B), "m/a.yaml", A.encode(), broken)
    assert problem.startswith("m/a.yaml:1:1: ")


def test_a_change_that_breaks_another_file_is_refused() -> None:
    problems = problems_of(snapshot(a=A, b=B), "m/b.yaml", (B + "aliases: [a]\n").encode(), RENDERER)
    assert {each.split(":")[0] for each in problems} == {"m/a.yaml", "m/b.yaml"}


def test_mistakes_of_others_from_before_do_not_stand_in_the_way() -> None:
    files = snapshot(a=A, bad="nothing: 1\n")
    assert problems_of(files, "m/b.yaml", B.encode(), RENDERER) == ()
    clash = snapshot(a="name: x\n" + A, b="name: x\n" + B, c="name: x\n" + A)
    # What it says of the two that are left differs from before, and is no new mistake.
    assert problems_of(clash, "m/c.yaml", None, RENDERER) == ()
    assert problems_of(clash, "m/c.yaml", (b"\n\nname: x\n" + A.encode()), RENDERER)
    assert problems_of(clash, "m/c.yaml", A.encode(), RENDERER) == ()


def test_files_that_cannot_be_read_do_not_stand_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "gone.yaml").symlink_to("nowhere")
    files = Snapshot("r", {}, str(folder))
    assert problems_of(files, "m/a.yaml", A.encode(), RENDERER) == ()


# The operation, over a folder.


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a.yaml").write_text(A)
    return folder


@pytest.fixture
def edits(folder: Path) -> Edits:
    return Edits(FolderSource(folder), RENDERER, FolderEdits(folder, folder.parent / "state"))


@pytest.fixture
def events() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as logs:
        yield logs


async def test_files_are_read(edits: Edits, folder: Path) -> None:
    (folder / "b.yml").write_bytes(b"\xff\n")
    found = await edits.files()
    assert [each.path for each in found] == ["m/a.yaml", "m/b.yml"]
    assert found[0] == await edits.read("a.yaml") == await edits.read("m/a.yaml")
    assert (found[0].text, found[0].digest) == (A, digest_of(A.encode()))
    assert (found[1].text, found[1].digest) == ("\ufffd\n", digest_of(b"\xff\n"))
    with pytest.raises(NoFileError):
        await edits.read("c.yaml")
    with pytest.raises(FileNameError):
        await edits.read("../secret.yaml")


async def test_a_preview_writes_nothing(edits: Edits, folder: Path, events: list[Any]) -> None:
    edit = await edits.preview("b.yaml", B, None)
    assert (edit.path, edit.problems, edit.written) == ("m/b.yaml", (), False)
    assert edit.diff.endswith("+source: {repo: o/b}\n")
    assert names(folder) == ["a.yaml"]
    assert not (folder.parent / "state").exists()
    assert events == []


async def test_an_invalid_change_is_not_written(edits: Edits, folder: Path, events: list[Any]) -> None:
    digest = digest_of(A.encode())
    edit = await edits.apply("a.yaml", "sauce: 1\n", digest, message="", author="ada")
    assert not edit.written
    assert edit.problems[0].startswith("m/a.yaml:1:1: ")
    assert (folder / "a.yaml").read_text() == A
    assert events == []


async def test_changes_are_carried_out_and_told(edits: Edits, folder: Path, events: list[Any]) -> None:
    made = await edits.apply("b.yaml", B, None, message="more", author="ada\n\x1b")
    assert (made.written, made.backup) == (True, None)
    changed = await edits.apply("b.yaml", B + "# 2\n", digest_of(B.encode()), message="", author="ada")
    gone = await edits.apply("m/b.yaml", None, digest_of(f"{B}# 2\n".encode()), message="", author="ada")
    assert not (folder / "b.yaml").exists()
    assert changed.backup is not None
    assert (folder.parent / "state" / changed.backup).read_text() == B
    assert [(each["event"], each["change"], each["backup"]) for each in events] == [
        ("file.changed", "added", ""),
        ("file.changed", "changed", changed.backup),
        ("file.changed", "removed", gone.backup),
    ]
    assert events[0]["by"] == "ada\ufffd\ufffd"


async def test_a_change_that_changes_nothing_writes_nothing(edits: Edits, folder: Path) -> None:
    before = (folder / "a.yaml").stat()
    edit = await edits.apply("a.yaml", A, digest_of(A.encode()), message="", author="ada")
    assert (edit.diff, edit.written, edit.backup) == ("", False, None)
    assert (folder / "a.yaml").stat() == before


async def test_conflicts(edits: Edits, folder: Path) -> None:
    for path, text, seen in (("a.yaml", B, None), ("a.yaml", B, "0" * 64), ("b.yaml", B, "0" * 64)):
        for call in (edits.preview(path, text, seen), edits.apply(path, text, seen, message="", author="")):
            with pytest.raises(ConflictError):
                await call
    with pytest.raises(NoFileError):
        await edits.preview("b.yaml", None, None)
    assert (folder / "a.yaml").read_text() == A


async def test_of_changes_at_one_time_one_wins(edits: Edits, folder: Path) -> None:
    digest = digest_of(A.encode())
    done = await asyncio.gather(
        *(edits.apply("a.yaml", f"{A}# {n}\n", digest, message="", author="") for n in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, ConflictError) for each in done) == 7
    (won,) = [n for n, each in enumerate(done) if not isinstance(each, BaseException)]
    assert (folder / "a.yaml").read_text() == f"{A}# {won}\n"


async def test_a_source_that_cannot_be_read_is_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    edits = Edits(FolderSource(folder), RENDERER, FolderEdits(folder, tmp_path / "state"))
    with pytest.raises(EditError, match="No such file"):
        await edits.files()
    with pytest.raises(EditError, match="No such file"):
        await edits.apply("b.yaml", B, None, message="", author="")


async def test_a_file_that_cannot_be_read_is_not_overwritten(edits: Edits, folder: Path) -> None:
    (folder / "b.yaml").write_bytes(b"#" * 300_000)
    for call in (edits.read("b.yaml"), edits.preview("b.yaml", B, None)):
        with pytest.raises(EditError, match="larger than 256 KiB"):
            await call


# `reconcile remove`.


def command(folder: Path, *args: str) -> Result:
    shared = {"state_dir": folder.parent / "state", "models_dir": folder, "output": "text"}
    return CliRunner().invoke(remove, args, obj=shared)


def test_remove_asks_for_a_yes(folder: Path) -> None:
    result = command(folder, "a")
    assert (result.exit_code, "--yes" in result.output) == (1, True)
    assert (folder / "a.yaml").exists()


def test_remove_removes_the_file_and_keeps_it(folder: Path) -> None:
    (folder / "b.yaml").write_text("name: team/b\n" + B)
    result = command(folder, "team/b", "--yes")
    assert result.exit_code == 0, result.output
    assert names(folder) == ["a.yaml"]
    (backup,) = (folder.parent / "state" / "backups").iterdir()
    assert backup.read_text() == "name: team/b\n" + B
    assert str(backup) in result.output


def test_remove_takes_the_name_of_an_invalid_file(folder: Path) -> None:
    (folder / "b.yaml").write_text("{")
    (folder / "c.yaml").write_text("name: c\nsauce: 1\n")
    assert command(folder, "b.yaml", "--yes").exit_code == 0
    assert command(folder, "c", "--yes").exit_code == 0
    assert names(folder) == ["a.yaml"]


def test_remove_says_what_was_perhaps_meant(folder: Path) -> None:
    (folder / "qwen.yaml").write_text(B)
    result = command(folder, "qwem", "--yes")
    assert result.exit_code == 1
    assert "did you mean qwen?" in result.output
    (folder / "b.yaml").write_text("name: qwen\n" + B)
    result = command(folder, "qwen", "--yes")
    assert "m/b.yaml and m/qwen.yaml declare qwen" in result.output
    assert command(folder, "b.yaml", "--yes").exit_code == 0
    assert command(folder, "qwen", "--yes").exit_code == 0


def test_remove_as_json(folder: Path) -> None:
    result = command(folder, "a", "--output", "json")
    assert (result.exit_code, "--yes" in result.output) == (1, True)
    result = command(folder, "a", "--output", "json", "--yes")
    said = json.loads(result.stdout)
    assert (said["path"], said["written"], said["problems"]) == ("m/a.yaml", True, [])
    assert said["diff"].startswith("--- a/m/a.yaml\n+++ /dev/null\n")
    assert (folder.parent / "state" / said["backup"]).read_text() == A
