"""`reconcile validate`: whatever a name leads to, it ends, with the mistake and its place."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.cli.main import cli
from reconciler.core.yaml_reader import MAX_BYTES


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["validate", *arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.output


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _device(file: Path) -> None:
    file.symlink_to("/dev/null")


def _unreadable(file: Path) -> None:
    # Also for root, whom no mode keeps out: an error of the read itself.
    file.symlink_to("/proc/self/mem")


def _huge(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(100 * 1024 * 1024)


NOT_READ = [
    (_pipe, "not a regular file"),
    (_endless, "not a regular file"),
    (_device, "not a regular file"),
    (_unreadable, "Input/output error"),
    (_huge, f"larger than {MAX_BYTES // 1024} KiB"),
]


@pytest.mark.parametrize(("make", "why"), NOT_READ)
def test_a_named_file_that_is_none_is_one_located_mistake(
    tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    file = tmp_path / "a.yaml"
    make(file)
    began = time.monotonic()
    code, text = run(str(file))
    assert (code, text) == (3, f"error {file}:1:1: cannot be read: {why}\n0 files, 1 mistake.\n")
    assert time.monotonic() - began < 5


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode keeps root out")
@pytest.mark.parametrize("closed", ["a.yaml", "."])
def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, closed: str) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    file = folder / "a.yaml"
    file.write_text("source: {repo: o/a}\n")
    (folder / closed).chmod(0)
    try:
        code, text = run(str(file))
    finally:
        (folder / closed).chmod(0o700)
    assert code in (1, 3)
    assert re.search(r"a\.yaml\b.*Permission denied", text)


def test_a_folder_that_may_not_be_looked_into_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exists(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", exists)
    assert run(str(tmp_path / "a.yaml")) == (1, f"reconcile: {tmp_path}/a.yaml: Permission denied\n")


def test_a_link_that_leads_nowhere_or_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to(tmp_path / "nothing.yaml")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "b.yaml")
    for name, why in (("a", "No such file or directory"), ("b", "Too many levels of symbolic links")):
        assert run(str(tmp_path / f"{name}.yaml")) == (1, f"reconcile: {tmp_path}/{name}.yaml: {why}\n")


def test_files_whose_names_are_no_text_are_checked(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.yaml")
    file.write_text("engin: 1\nsource: {repo: o/a}\n")
    code, text = run(str(file))
    assert code == 3
    assert f"{tmp_path}/\\udcff.yaml:1:1: " in text


def test_others_are_checked_beside_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("source: {repo: o/a}\n")
    _pipe(tmp_path / "b.yaml")
    code, text = run(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert (code, text.endswith("1 file, 1 mistake.\n")) == (3, True)
