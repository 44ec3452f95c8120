"""The source that the settings name: a folder, or a git repository; and what wakes the loop when it changes."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from reconciler.core.desired import Snapshot
from reconciler.core.forge import checked_url, forge_of
from reconciler.core.git_names import GitError
from reconciler.host.errors import UserError
from reconciler.host.settings import Settings
from reconciler.loop.memory import RECORDS_FILE
from reconciler.loop.write_back import CommitStatus, Notify, Target, WriteBack
from reconciler.sources import Source
from reconciler.sources.folder import FolderSource
from reconciler.sources.git import GitSource
from reconciler.sources.git_options import GitOptions

TOKEN_VARIABLE = "RECONCILE_GIT_TOKEN"  # noqa: S105 -- its name, not its value
FOLDER = "source"


class SourceSettingsError(UserError):
    """The settings name no source that can be used; the message says which of them, and why."""


def make_source(settings: Settings) -> Source:
    """The source.

    Raises:
        SourceSettingsError: It cannot be meant so.
    """
    return make_git(settings) if settings.source == "git" else FolderSource(settings.models_dir)


def check_source(settings: Settings) -> None:
    """Raise SourceSettingsError where a source, or who is told of it, cannot be meant so."""
    make_source(settings)
    make_write_back(settings)


def make_git(settings: Settings) -> GitSource:
    """The git source.

    Raises:
        SourceSettingsError: It cannot be meant so.
    """
    try:
        return GitSource(git_options(settings))
    except GitError as error:
        raise SourceSettingsError(f"the git source cannot be used: {error}") from error


def git_options(settings: Settings) -> GitOptions:
    """Which repository is followed, and how; not checked.

    Raises:
        SourceSettingsError: There is none.
    """
    if not settings.git_url:
        raise SourceSettingsError("source is git, and git_url does not say which repository")
    return GitOptions(
        url=settings.git_url,
        folder=settings.state_dir / FOLDER,
        # A version that is suspended or held may run for long after its revision was forgotten.
        in_use=settings.state_dir / RECORDS_FILE,
        ref=settings.git_ref,
        path=settings.git_path,
        token=_token(settings.git_token_path),
        username=settings.git_username,
        ssh_key=settings.git_ssh_key_path,
        known_hosts=settings.git_known_hosts_path,
        ca_file=settings.git_ca_path,
        verify=settings.git_verify,
        allowed_signers=settings.git_allowed_signers_path,
        gpg_keys=settings.git_gpg_keys_path,
        timeout=settings.git_timeout,
        max_mib=settings.git_max_mib,
    )


def at(source: Source) -> Callable[[str], Awaitable[Snapshot]] | None:
    """How the source gives another revision than the one that is served; None where it has only the one.

    A revision that it does not have, or does not trust, is a snapshot that says so in `unreadable`.
    """
    if not isinstance(source, GitSource):
        return None

    async def look_at(revision: str) -> Snapshot:
        try:
            return await source.look_at(revision, verified=True)
        except GitError as error:
            return Snapshot(revision="", files={}, folder="", unreadable=str(error))

    return look_at


def make_write_back(settings: Settings) -> WriteBack | None:
    """What tells others what became of a revision; None where nobody is to be told.

    Raises:
        SourceSettingsError: It cannot be meant so.
    """
    targets: list[Target] = []
    if settings.status_to != "none":
        try:
            forge = forge_of(settings.git_url, settings.status_to, settings.status_api)
        except ValueError as error:
            raise SourceSettingsError(f"status_to: {error}") from error
        targets.append(CommitStatus(forge, f"reconcile/{settings.status_name}", settings.status_token_path))
    if settings.notify_url:
        try:
            checked_url(settings.notify_url)
        except ValueError as error:
            raise SourceSettingsError(f"notify_url: {error}") from error
        told = {
            "reconciler": settings.status_name,
            "repository": settings.git_url,
            "ref": settings.git_ref,
        }
        targets.append(Notify(settings.notify_url, told, settings.notify_secret_path))
    return WriteBack(targets) if targets else None


def _token(path: Path | None) -> Callable[[], str]:
    """The token, read anew at each use: from its file, or from the environment."""
    if path is not None:
        return lambda: path.read_text(encoding="utf-8")
    return lambda: os.environ.get(TOKEN_VARIABLE, "")
