"""Writes what the git source takes of a fetched commit: model files, and folders that models may name.

There is no checkout: contents come out of the bare repository by their ids, and every file is written by us.
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from reconciler.core.provenance import Commit
from reconciler.sources.git_remote import RefusedError, Remote
from reconciler.sources.git_store import Revision, Store
from reconciler.sources.git_tree import (
    Chosen,
    Entry,
    has_folder,
    links_of,
    model_files,
    named_folders,
    plain_files,
    sizes_of,
    without_pointers,
)


class Target(NamedTuple):
    """What is exported: the commit, the name of the export, the folder of model files and what it is called."""

    commit: Commit
    revision: str
    path: str
    folder: str


async def export(remote: Remote, store: Store, target: Target) -> Revision:
    """Write a fetched commit beside what is served; one that is there already is left as it is.

    Raises:
        RefusedError: It is too large, or has no such folder.
        GitError: The bare repository is damaged.
        OSError: It cannot be written.
    """
    loaded = await asyncio.to_thread(store.load, target.revision)
    if loaded is not None:
        return loaded[0]
    entries = await remote.listing(target.commit.id)
    if not has_folder(entries, target.path):
        raise RefusedError(f"the commit has no folder {target.path!r}")
    sizes = sizes_of(entries)
    chosen = model_files(entries, target.path, target.folder, await _texts(remote, links_of(entries), sizes))
    files, folders = plain_files(entries), named_folders(entries, target.path)
    wanted = set(chosen.files.values())
    for place in folders.values():
        wanted.update(files.get(place, {}).values())
    lacking = await asyncio.to_thread(store.lacking, wanted)
    async for object_id, content in remote.contents({each: sizes[each] for each in lacking}):
        await asyncio.to_thread(store.keep_blob, object_id, content)
    await asyncio.to_thread(_keep_folders, store, entries, files, folders)
    return await asyncio.to_thread(_keep_revision, store, target, chosen, entries, folders)


async def _texts(remote: Remote, links: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, str]:
    ids = {each: sizes[each] for each in links.values()}
    found = {each: content async for each, content in remote.contents(ids)}
    return {path: found[each].decode(errors="surrogateescape") for path, each in links.items()}


def _keep_folders(
    store: Store,
    entries: Mapping[str, Entry],
    files: Mapping[str, Mapping[str, str]],
    folders: Mapping[str, str],
) -> None:
    inner: dict[str, dict[str, str]] = {}
    for place in folders.values():
        parent, _, name = place.rpartition("/")
        inner.setdefault(parent, {})[name] = entries[place].id
    # A folder is put together from those within it.
    for place in sorted(folders.values(), key=lambda each: each.count("/"), reverse=True):
        store.keep_folder(entries[place].id, files.get(place, {}), inner.get(place, {}))


def _keep_revision(
    store: Store, target: Target, chosen: Chosen, entries: Mapping[str, Entry], folders: Mapping[str, str]
) -> Revision:
    chosen = without_pointers(chosen, {path: store.blob(each) for path, each in chosen.files.items()})
    revision = Revision(
        name=target.revision,
        commit=target.commit,
        folder=target.folder,
        files=chosen.files,
        problems=chosen.problems,
        objects={path: entries[place].id for path, place in folders.items()},
    )
    store.keep_revision(revision)
    return revision
