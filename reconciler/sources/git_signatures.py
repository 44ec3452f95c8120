"""Whether a commit or a tag carries a signature that the operator trusts, for the git source.

Trust comes from two files of the operator's and from nothing else: keys of the machine's own users do not count.
A signature by a key that has expired, was revoked or is unknown is none. Of ssh keys the time that counts is the
one in the commit, which its author chose: a key that is no longer trusted has to be taken out of the file.
"""

import asyncio
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reconciler.core.git_names import GitError, printable
from reconciler.host import children
from reconciler.sources.git_command import CommandError, Output, run

Verify = Literal["no", "head", "tag"]
_SSH_GOOD = re.compile(r'^Good "git" signature for (?P<who>.+) with \S+ key (?P<key>SHA256:\S+)$', re.MULTILINE)
_GPG_GOOD = re.compile(r"^\[GNUPG:\] GOODSIG \S+ (?P<who>.*)$", re.MULTILINE)
_GPG_VALID = re.compile(r"^\[GNUPG:\] VALIDSIG (?P<key>[0-9A-F]{40})", re.MULTILINE)
_GPG_BAD = re.compile(r"^\[GNUPG:\] (?:BADSIG|ERRSIG|EXPSIG|EXPKEYSIG|REVKEYSIG|NO_PUBKEY)\b", re.MULTILINE)
_REASONS = (
    ("EXPKEYSIG", "its key has expired"),
    ("REVKEYSIG", "its key was revoked"),
    ("EXPSIG", "the signature has expired"),
    ("BADSIG", "the signature does not fit the content"),
    ("key has expired", "its key has expired"),
    ("Signature verification failed", "the signature does not fit the content"),
    ("incorrect signature", "the signature does not fit the content"),
    ("NO_PUBKEY", "its key is not one of the allowed signers'"),
    ("No principal matched", "its key is not one of the allowed signers'"),
    ("allowedSignersFile", "it is signed by ssh, and no allowed signers are given"),
)
_NOT_CHECKED = ("cannot run ", "could not create temporary file", "failed writing detached signature")
"""What git says where it could not ask ssh-keygen or gpg."""
_MOST_KEYS = 1 << 20


class UnverifiedError(GitError):
    """No signature that is trusted."""


class UncheckedError(UnverifiedError):
    """Whether there is one could not be checked: for want of a program, of a file, or of time."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count, and on what.

    Attributes:
        verify: "no", or what must be signed: the "head" commit, or the annotated "tag" that is followed.
        allowed_signers: ssh keys by principal, as `ssh-keygen` reads them.
        gpg_keys: Armored public keys.
    """

    verify: Verify = "no"
    allowed_signers: Path | None = None
    gpg_keys: Path | None = None

    def digest(self) -> str:
        """Names what is trusted now; another one makes what was verified before worth nothing.

        Raises:
            UncheckedError: One of the files cannot be read.
        """
        if self.verify == "no":
            return "no"
        hasher = hashlib.sha256(self.verify.encode())
        for file in (self.allowed_signers, self.gpg_keys):
            content = b"" if file is None else _read(file)
            hasher.update(f"\0{len(content)}\0".encode() + content)
        return hasher.hexdigest()[:16]


async def signer_of(trust: Trust, object_id: str, *, tag: str, repo: Path, home: Path) -> str:
    """Who signed it: the principal or user, and the key's fingerprint.

    Args:
        trust: Whose signatures count.
        object_id: The commit, or the tag object.
        tag: Name of the tag, where it is one: a tag signed under another name does not count. "" for a commit.
        repo: The bare repository that has it.
        home: An empty folder.

    Raises:
        UnverifiedError: No trusted signature is on it.
        UncheckedError: That cannot be told.
        GitError: git does not work.
    """
    what = "the tag" if tag else "the commit"
    await asyncio.to_thread(trust.digest)  # Says which file cannot be read.
    if tag:
        await _check_tag_name(object_id, tag, repo=repo, home=home)
    settings = {} if trust.allowed_signers is None else {"gpg.ssh.allowedSignersFile": str(trust.allowed_signers)}
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="gpg."))
    try:
        environment = {"GNUPGHOME": str(folder)}
        if trust.gpg_keys is not None:
            await _import(trust.gpg_keys, folder)
        result = await run(
            ["verify-tag" if tag else "verify-commit", "--raw", object_id],
            home=home,
            repo=repo,
            settings=settings,
            environment=environment,
            accept=range(-64, 256),
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return _judge(result, what)


def _judge(result: Output, what: str) -> str:
    said = result.stderr
    if result.code < 0 or any(text in said for text in _NOT_CHECKED):
        raise UncheckedError(f"{what} is refused: its signature could not be checked: {_first_line(said)}")
    if result.code == 0 and not _GPG_BAD.search(said):
        if match := _SSH_GOOD.search(said):
            return printable(f"{match['who']} {match['key']}")
        good, valid = _GPG_GOOD.search(said), _GPG_VALID.search(said)
        if good and valid:
            return printable(f"{good['who']} {valid['key']}")
    reason = next((reason for text, reason in _REASONS if text in said), "")
    if not reason:
        reason = (
            "it is not signed" if not said.strip() or "no signature" in said else "its signature is not accepted"
        )
    raise UnverifiedError(f"{what} is refused: {reason}")


def _first_line(said: str) -> str:
    return printable(said.strip().partition("\n")[0]) or "git was killed"


async def _check_tag_name(object_id: str, tag: str, *, repo: Path, home: Path) -> None:
    try:
        found = await run(["cat-file", "tag", object_id], home=home, repo=repo, most_output=1 << 20)
    except CommandError:
        raise UnverifiedError("the tag is refused: it is not an annotated one, so it is not signed") from None
    headers: Mapping[bytes, bytes] = {
        name: value
        for name, _, value in (line.partition(b" ") for line in found.stdout.partition(b"\n\n")[0].split(b"\n"))
    }
    if headers.get(b"tag") != tag.encode():
        raise UnverifiedError("the tag is refused: it was made under another name")


async def _import(keys: Path, folder: Path) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            "gpg",
            *("--batch", "--no-tty", "--quiet", "--no-autostart", "--homedir", str(folder), "--import"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise UncheckedError("signatures by GPG cannot be checked: there is no gpg command") from None
    try:
        async with asyncio.timeout(30):
            await process.communicate(await asyncio.to_thread(_read, keys))
    except TimeoutError:
        raise UncheckedError("gpg did not read the public keys within 30 s") from None
    finally:
        await children.end(process)
    if process.returncode:
        raise UncheckedError(f"{keys}: gpg cannot read these public keys")


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_KEYS + 1)
    except OSError as error:
        raise UncheckedError(f"{file}: {error.strerror or error}") from None
    if len(content) > _MOST_KEYS:
        raise UncheckedError(f"{file}: larger than {_MOST_KEYS >> 20} MiB")
    return content
