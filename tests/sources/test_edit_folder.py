"""Changes of files in a folder: whole or not at all, kept, and never over somebody else's."""

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.edit import Change, ConflictError, Edit, EditError, FileNameError
from reconciler.host.files import write_atomic
from reconciler.sources import edit_folder
from reconciler.sources.edit_folder import FolderEdits
from reconciler.sources.folder import FolderSource

OLD, NEW = b"source: {repo: o/a}\n", b"source: {repo: o/b}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models.d"
    folder.mkdir()
    (folder / "a.yaml").write_bytes(OLD)
    return folder


@pytest.fixture
def edits(folder: Path, tmp_path: Path) -> FolderEdits:
    return FolderEdits(folder, tmp_path / "state")


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def backups(folder: Path) -> list[Path]:
    return sorted((folder.parent / "state" / "backups").glob("*"))


def test_a_file_is_replaced_and_kept(edits: FolderEdits, folder: Path) -> None:
    (folder / "a.yaml").chmod(0o664)
    inode = (folder / "a.yaml").stat().st_ino
    backup = edits.write("a.yaml", NEW, before=OLD)
    assert (folder / "a.yaml").read_bytes() == NEW
    # A new file by rename, so nobody reads half of it.
    assert (folder / "a.yaml").stat().st_ino != inode
    assert stat.S_IMODE((folder / "a.yaml").stat().st_mode) == 0o664
    (kept,) = backups(folder)
    assert backup == f"backups/{kept.name}"
    assert kept.read_bytes() == OLD
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert names(folder) == ["a.yaml"]


def test_a_file_is_added_for_everybody_to_read(edits: FolderEdits, folder: Path) -> None:
    assert edits.write("b.yml", "# ä\r\n".encode(), before=None) is None
    assert (folder / "b.yml").read_bytes() == "# ä\r\n".encode()
    assert stat.S_IMODE((folder / "b.yml").stat().st_mode) == 0o644
    assert backups(folder) == []


def test_the_folder_is_made_for_the_first_file(tmp_path: Path) -> None:
    edits = FolderEdits(tmp_path / "new" / "m", tmp_path / "state")
    assert edits.read("a.yaml") is None
    edits.write("a.yaml", NEW, before=None)
    assert (tmp_path / "new" / "m" / "a.yaml").read_bytes() == NEW


def test_a_file_is_removed_and_kept(edits: FolderEdits, folder: Path) -> None:
    (folder / "a.yaml").write_bytes(b"\xff no text")
    edits.write("a.yaml", None, before=b"\xff no text")
    assert names(folder) == []
    assert [each.read_bytes() for each in backups(folder)] == [b"\xff no text"]


def test_the_newest_backups_of_each_file_stay(edits: FolderEdits, folder: Path) -> None:
    other = "a.20260101T000000.000000Z.yaml"
    (folder / other).write_bytes(OLD)
    edits.write(other, NEW, before=OLD)
    (folder / "a.yml").write_bytes(OLD)
    edits.write("a.yml", NEW, before=OLD)
    content = OLD
    for number in range(25):
        edits.write("a.yaml", b"# %d\n" % number, before=content)
        content = b"# %d\n" % number
    kept = [each.read_bytes() for each in backups(folder) if each.read_bytes() != OLD]
    assert kept == [b"# %d\n" % number for number in range(4, 24)]
    assert len(backups(folder)) == 22


@pytest.mark.parametrize("after", [NEW, None])
@pytest.mark.parametrize("before", [None, b"what was seen"])
def test_what_somebody_else_wrote_stays(
    edits: FolderEdits, folder: Path, after: bytes | None, before: bytes | None
) -> None:
    with pytest.raises(ConflictError):
        edits.write("a.yaml", after, before=before)
    assert (folder / "a.yaml").read_bytes() == OLD
    assert names(folder) == ["a.yaml"]
    assert backups(folder) == []


@pytest.mark.parametrize("after", [NEW, None])
def test_an_editor_that_saves_while_the_new_file_is_made_wins(
    edits: FolderEdits, folder: Path, monkeypatch: pytest.MonkeyPatch, after: bytes | None
) -> None:
    real_keep = FolderEdits._keep

    def save() -> None:
        (folder / "saved").write_bytes(b"by an editor")
        (folder / "saved").replace(folder / "a.yaml")

    def keep(self: FolderEdits, name: str, content: bytes) -> Path:
        backup = real_keep(self, name, content)
        if after is None:
            save()
        return backup

    def write(path: Path, text: str, **options: Any) -> None:
        write_atomic(path, text, **options)
        save()

    monkeypatch.setattr(FolderEdits, "_keep", keep)
    monkeypatch.setattr(edit_folder, "write_atomic", write)
    with pytest.raises(ConflictError, match="meanwhile"):
        edits.write("a.yaml", after, before=OLD)
    assert (folder / "a.yaml").read_bytes() == b"by an editor"
    assert names(folder) == ["a.yaml"]
    assert backups(folder) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_leaves_the_file_as_it_was(
    edits: FolderEdits, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def write(path: Path, text: str, **options: Any) -> None:
        path.write_text(text[:3])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(edit_folder, "write_atomic", write)
    with pytest.raises(EditError, match=f"models.d/a.yaml: {os.strerror(code)}"):
        edits.write("a.yaml", NEW, before=OLD)
    assert (folder / "a.yaml").read_bytes() == OLD
    assert names(folder) == ["a.yaml"]
    assert backups(folder) == []


def test_a_reader_sees_the_old_file_or_the_new_one(edits: FolderEdits, folder: Path) -> None:
    contents = [b"# %d\n" % number * 10_000 for number in range(2)]
    (folder / "a.yaml").write_bytes(contents[0])
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add((folder / "a.yaml").read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(40):
        edits.write("a.yaml", contents[(number + 1) % 2], before=contents[number % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)


def _configmap(folder: Path) -> None:
    """As the kubelet mounts one."""
    (folder / "a.yaml").unlink()
    (folder / "..2026_01_01").mkdir()
    (folder / "..2026_01_01" / "a.yaml").write_bytes(OLD)
    (folder / "..data").symlink_to("..2026_01_01")
    (folder / "a.yaml").symlink_to("..data/a.yaml")


@pytest.mark.parametrize("name", ["a.yaml", "b.yaml"])
async def test_a_configmap_is_refused(edits: FolderEdits, folder: Path, name: str) -> None:
    _configmap(folder)
    assert (await FolderSource(folder).read()).files == {"models.d/a.yaml": OLD}
    before = OLD if name == "a.yaml" else None
    for after in (NEW, None):
        with pytest.raises(EditError, match="ConfigMap"):
            edits.write(name, after, before=before)
    with pytest.raises(EditError, match="ConfigMap"):
        await edits.check(name)
    assert (folder / "..2026_01_01" / "a.yaml").read_bytes() == OLD


async def test_a_link_is_not_followed(edits: FolderEdits, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_bytes(OLD)
    (folder / "l.yaml").symlink_to(outside)
    for after in (NEW, None):
        with pytest.raises(EditError, match=r"models\.d/l\.yaml is a link"):
            edits.write("l.yaml", after, before=OLD)
    with pytest.raises(EditError):
        edits.read("l.yaml")
    # One link among files is no hindrance for these; where all are, a new file would be the only one of its kind.
    edits.write("a.yaml", None, before=OLD)
    with pytest.raises(EditError, match=r"each file in .* is a link"):
        await edits.check("new.yaml")
    assert outside.read_bytes() == OLD
    assert (folder / "l.yaml").is_symlink()


async def test_a_folder_behind_a_link_is_written(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "link.d").symlink_to(folder)
    edits = FolderEdits(tmp_path / "link.d", tmp_path / "state")
    edits.write("a.yaml", NEW, before=OLD)
    assert (folder / "a.yaml").read_bytes() == NEW
    assert edits.name == "link.d"


def test_a_read_only_folder_is_refused(edits: FolderEdits, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o555)
    if os.geteuid() == 0:  # To whom the mode says nothing; a mount that is read-only does.
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EditError, match="read-only"):
        asyncio.run(edits.check("a.yaml"))
    with pytest.raises(EditError, match="read-only"):
        edits.write("a.yaml", NEW, before=OLD)
    folder.chmod(0o755)
    assert (folder / "a.yaml").read_bytes() == OLD


@pytest.mark.parametrize("name", ["../x.yaml", "sub/x.yaml", ".x.yaml", "x.txt", "/x.yaml", "..", "x.yaml\0"])
def test_nothing_is_written_elsewhere(edits: FolderEdits, folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(FileNameError):
        edits.write(name, NEW, before=None)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused(edits: FolderEdits, folder: Path) -> None:
    os.mkfifo(folder / "p.yaml")
    (folder / "d.yaml").mkdir()
    (folder / "big.yaml").write_bytes(b"#" * (256 * 1024 + 1))
    for name in ("p.yaml", "d.yaml", "big.yaml"):
        with pytest.raises(EditError):
            edits.read(name)
        for after in (NEW, None):
            with pytest.raises(EditError):
                edits.write(name, after, before=None)
    assert names(folder) == ["a.yaml", "big.yaml", "d.yaml", "p.yaml"]


async def test_apply_says_where_the_file_is_kept(edits: FolderEdits, folder: Path) -> None:
    snapshot = await FolderSource(folder).read()
    change = Change("a.yaml", OLD, None, snapshot, "", "ada")
    edit = await edits.apply(Edit("models.d/a.yaml", "-x\n"), change)
    assert edit.written
    assert edit.backup == f"backups/{backups(folder)[0].name}"
    assert (edit.diff, edit.commit, edit.branch, edit.patch) == ("-x\n", None, None, None)
