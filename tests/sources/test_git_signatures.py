"""Signatures by ssh and by GPG, on commits and on tags: what is not trusted is refused, the last good stays."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.git_names import GitError
from reconciler.sources.git import GitSource

from .conftest import MODEL, Make
from .git_server import GitServer, Repository

B = "name: b\nsource: {repo: org/b}\n"


@dataclass(frozen=True)
class Keys:
    """Two ssh keys, of which the first is allowed."""

    folder: Path

    @property
    def allowed(self) -> Path:
        return self.folder / "allowed"

    def allow(self, key: str, options: str = "") -> None:
        public = (self.folder / f"{key}.pub").read_text()
        self.allowed.write_text(f"ada@example.com {options} {public}")

    def path(self, key: str) -> str:
        return str(self.folder / key)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("good", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", str(folder / name)], check=True
        )
    keys = Keys(folder)
    keys.allow("good")
    return keys


async def _started(make: Make, repo: Repository, keys: Keys, **options: Any) -> GitSource:
    """A source that has taken over one signed commit."""
    repo.git("config", "user.signingkey", keys.path("good"))
    repo.commit({"models.d/a.yaml": MODEL}, "-S")
    source = make(verify="head", allowed_signers=keys.allowed, **options)
    assert await source.fetch()
    return source


async def _refuses(source: GitSource, reason: str, events: list[Any]) -> None:
    before = await source.read()
    assert not await source.fetch()
    after = await source.read()
    assert after == before
    assert after.files
    assert after.provenance is not None
    assert reason in after.provenance.problem
    assert events[-1]["event"] == "source.refused"
    assert reason in events[-1]["reason"]


async def test_a_signed_commit_is_taken_over_and_names_its_signer(
    make: Make, repo: Repository, keys: Keys
) -> None:
    source = await _started(make, repo, keys)
    provenance = (await source.read()).provenance
    assert provenance is not None
    assert provenance.signed_by.startswith("ada@example.com SHA256:")


async def test_an_unsigned_commit_is_refused(make: Make, repo: Repository, keys: Keys, events: list[Any]) -> None:
    source = await _started(make, repo, keys)
    repo.commit({"models.d/b.yaml": MODEL})
    await _refuses(source, "it is not signed", events)
    signed = repo.commit({"models.d/b.yaml": MODEL}, "-S")
    assert await source.fetch()
    assert (await source.read()).revision == signed


async def test_a_commit_that_is_refused_is_fetched_once(
    make: Make, repo: Repository, keys: Keys, server: GitServer
) -> None:
    source = await _started(make, repo, keys)
    server.requests.clear()
    repo.commit({"models.d/b.yaml": MODEL}, "-S")
    assert await source.fetch()
    good = server.requests.count("/models.git/git-upload-pack")
    server.requests.clear()
    repo.commit({"models.d/b.yaml": B})
    assert not await source.fetch()
    assert server.requests.count("/models.git/git-upload-pack") == good


async def test_once_the_program_is_there_the_same_commit_is_taken_over(
    make: Make, repo: Repository, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await _started(make, repo, keys)
    signed = repo.commit({"models.d/b.yaml": MODEL}, "-S")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").symlink_to(str(shutil.which("git")))
    with monkeypatch.context() as without:
        without.setenv("PATH", str(programs))
        assert not await source.fetch()
    provenance = (await source.read()).provenance
    assert provenance is not None
    assert "could not be checked" in provenance.problem
    assert await source.fetch()
    assert (await source.read()).revision == signed


async def test_a_commit_by_an_unknown_key_is_refused(
    make: Make, repo: Repository, keys: Keys, events: list[Any]
) -> None:
    source = await _started(make, repo, keys)
    repo.git("config", "user.signingkey", keys.path("other"))
    repo.commit({"models.d/b.yaml": MODEL}, "-S")
    await _refuses(source, "not one of the allowed signers'", events)


async def test_a_commit_by_an_expired_key_is_refused(
    make: Make, repo: Repository, keys: Keys, events: list[Any]
) -> None:
    source = await _started(make, repo, keys)
    keys.allow("good", 'valid-before="20200101"')
    repo.commit({"models.d/b.yaml": MODEL}, "-S")
    await _refuses(source, "its key has expired", events)


async def test_a_commit_that_was_changed_after_signing_is_refused(
    make: Make, repo: Repository, keys: Keys, events: list[Any]
) -> None:
    source = await _started(make, repo, keys)
    repo.commit({"models.d/b.yaml": MODEL}, "-S", message="honest")
    _tamper(repo)
    await _refuses(source, "the signature does not fit the content", events)


async def test_a_signer_who_is_trusted_no_more_is_not_after_a_restart_either(
    make: Make, repo: Repository, keys: Keys
) -> None:
    await _started(make, repo, keys)
    keys.allow("other")
    source = make(verify="head", allowed_signers=keys.allowed)
    assert (await source.read()).unreadable == "the commit is refused: its key is not one of the allowed signers'"
    assert not await source.fetch()


async def test_one_more_trusted_signer_needs_no_network(
    make: Make, repo: Repository, keys: Keys, server: Any
) -> None:
    source = await _started(make, repo, keys)
    before = await source.read()
    server.stop()
    other = (keys.folder / "other.pub").read_text()
    keys.allowed.write_text(f"{keys.allowed.read_text()}eve@example.com {other}")
    assert await make(verify="head", allowed_signers=keys.allowed).read() == before


async def test_what_was_taken_over_unverified_is_not_trusted_later(
    make: Make, repo: Repository, keys: Keys
) -> None:
    repo.commit({"models.d/a.yaml": MODEL})
    assert await make().fetch()
    source = make(verify="head", allowed_signers=keys.allowed)
    assert (await source.read()).unreadable == "the commit is refused: it is not signed"
    assert not await source.fetch()
    assert not (await source.read()).files


async def test_without_the_file_of_signers_nothing_is_trusted(
    make: Make, repo: Repository, keys: Keys, events: list[Any]
) -> None:
    source = await _started(make, repo, keys)
    keys.allowed.unlink()
    repo.commit({"models.d/b.yaml": MODEL}, "-S")
    await _refuses(source, "No such file", events)


async def test_another_revision_is_verified_when_asked_for(make: Make, repo: Repository, keys: Keys) -> None:
    source = await _started(make, repo, keys)
    signed = repo.head()
    unsigned = repo.commit({"models.d/b.yaml": MODEL})
    assert (await source.look_at(unsigned)).revision == unsigned
    with pytest.raises(GitError, match="it is not signed"):
        await source.look_at(unsigned, verified=True)
    assert (await source.look_at(signed, verified=True)).revision == signed


async def test_a_signed_tag_is_taken_over(make: Make, repo: Repository, keys: Keys, events: list[Any]) -> None:
    repo.git("config", "user.signingkey", keys.path("good"))
    first = repo.commit({"models.d/a.yaml": MODEL})
    repo.git("tag", "-s", "-m", "x", "live")
    repo.push("live")
    source = make(ref="live", verify="tag", allowed_signers=keys.allowed)
    assert await source.fetch()
    snapshot = await source.read()
    assert snapshot.revision == first
    assert snapshot.provenance is not None
    assert snapshot.provenance.signed_by.startswith("ada@example.com SHA256:")
    repo.commit({"models.d/b.yaml": MODEL})
    repo.git("tag", "-f", "-a", "-m", "x", "live")
    repo.push("live")
    await _refuses(source, "the tag is refused: it is not signed", events)
    repo.git("tag", "-f", "live")
    repo.push("live")
    await _refuses(source, "not an annotated one", events)


async def test_a_signed_tag_of_another_name_is_refused(make: Make, repo: Repository, keys: Keys) -> None:
    repo.git("config", "user.signingkey", keys.path("good"))
    repo.commit({"models.d/a.yaml": MODEL})
    repo.git("tag", "-s", "-m", "x", "old")
    repo.push("refs/tags/old:refs/tags/live")
    source = make(ref="live", verify="tag", allowed_signers=keys.allowed)
    assert not await source.fetch()
    assert "made under another name" in (await source.read()).unreadable


async def test_a_branch_is_no_signed_tag(make: Make, repo: Repository, keys: Keys) -> None:
    repo.git("config", "user.signingkey", keys.path("good"))
    repo.commit({"models.d/a.yaml": MODEL}, "-S")
    source = make(verify="tag", allowed_signers=keys.allowed)
    assert not await source.fetch()
    assert "only a signed tag" in (await source.read()).unreadable


class Gpg:
    """A person's GPG, and the public keys that the operator trusts."""

    def __init__(self, home: Path, public: Path) -> None:
        self.home, self.public = home, public

    def run(self, *args: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["gpg", "--batch", "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *args],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={"GNUPGHOME": str(self.home), "PATH": os.environ["PATH"]},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def key(self, name: str, expires: str = "0") -> str:
        self.run("--quick-gen-key", f"{name} <{name}@example.com>", "ed25519", "sign", expires)
        listed = self.run("--list-keys", "--with-colons", f"{name}@example.com")
        return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))

    def trust(self, *keys: str) -> None:
        self.public.write_text(self.run("--armor", "--export", *keys))


@pytest.fixture
def gpg(tmp_path: Path) -> Iterator[Gpg]:
    # Sockets of its agent need a short path.
    home = Path(tempfile.mkdtemp())
    try:
        yield Gpg(home, tmp_path / "keys.asc")
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def _commit_by(repo: Repository, gpg: Gpg, key: str, content: str) -> str:
    repo.git("config", "gpg.format", "openpgp")
    repo.write("models.d/a.yaml", content)
    repo.git("add", "--all")
    repo.git("commit", "-q", "-m", "honest", f"-S{key}", GNUPGHOME=str(gpg.home))
    return repo.push()


async def test_gpg_commits_of_trusted_keys_only_are_taken_over(
    make: Make, repo: Repository, gpg: Gpg, events: list[Any]
) -> None:
    good, other = gpg.key("good"), gpg.key("other")
    gpg.trust(good)
    source = make(verify="head", gpg_keys=gpg.public)
    first = _commit_by(repo, gpg, good, MODEL)
    assert await source.fetch()
    snapshot = await source.read()
    assert snapshot.revision == first
    assert snapshot.provenance is not None
    assert snapshot.provenance.signed_by == f"good <good@example.com> {good}"
    _commit_by(repo, gpg, other, MODEL + "# other\n")
    await _refuses(source, "not one of the allowed signers'", events)
    _commit_by(repo, gpg, good, MODEL + "# good\n")
    _tamper(repo)
    await _refuses(source, "the signature does not fit the content", events)


async def test_gpg_keys_that_expired_or_were_revoked_do_not_count(
    make: Make, repo: Repository, gpg: Gpg, events: list[Any]
) -> None:
    good, short = gpg.key("good"), gpg.key("short", "seconds=3")
    _commit_by(repo, gpg, good, MODEL)
    gpg.trust(good, short)
    source = make(verify="head", gpg_keys=gpg.public)
    assert await source.fetch()
    _commit_by(repo, gpg, short, MODEL + "# short\n")
    await asyncio.sleep(4)
    await _refuses(source, "its key has expired", events)
    _commit_by(repo, gpg, good, MODEL + "# good\n")
    revocation = (gpg.home / "openpgp-revocs.d" / f"{good}.rev").read_text().replace(":-----BEGIN", "-----BEGIN")
    gpg.run("--import", stdin=revocation)
    gpg.trust(good, short)
    await _refuses(source, "its key was revoked", events)


async def test_gpg_tags_are_verified(make: Make, repo: Repository, gpg: Gpg) -> None:
    good, other = gpg.key("good"), gpg.key("other")
    gpg.trust(good)
    repo.commit({"models.d/a.yaml": MODEL})
    repo.git("config", "gpg.format", "openpgp")
    for tag, key in (("live", good), ("bad", other)):
        repo.git("tag", "-m", "x", "-u", key, tag, GNUPGHOME=str(gpg.home))
        repo.push(tag)
    assert await make(ref="live", verify="tag", gpg_keys=gpg.public).fetch()
    source = make(ref="bad", verify="tag", gpg_keys=gpg.public)
    assert not await source.fetch()
    assert "not one of the allowed signers'" in (await source.read()).unreadable


async def test_an_ssh_signature_does_not_count_where_only_gpg_keys_are_given(
    make: Make, repo: Repository, gpg: Gpg, keys: Keys
) -> None:
    gpg.trust(gpg.key("good"))
    repo.git("config", "user.signingkey", keys.path("good"))
    repo.commit({"models.d/a.yaml": MODEL}, "-S")
    source = make(verify="head", gpg_keys=gpg.public)
    assert not await source.fetch()
    assert "no allowed signers are given" in (await source.read()).unreadable


async def test_keys_that_are_none_are_said(make: Make, repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "keys.asc").write_text("no keys")
    repo.commit({"models.d/a.yaml": MODEL})
    source = make(verify="head", gpg_keys=tmp_path / "keys.asc")
    assert not await source.fetch()
    assert "gpg cannot read these public keys" in (await source.read()).unreadable


def _tamper(repo: Repository) -> None:
    """Replace the pushed commit by one of another message under the same signature."""
    raw = repo.git("cat-file", "commit", "HEAD") + "\n"
    changed = repo.git(
        "hash-object", "-t", "commit", "-w", "--stdin", stdin=raw.replace("honest", "evil").encode()
    )
    repo.git("push", "--quiet", "--force", "origin", f"{changed}:refs/heads/main")
