"""What a git source may be told: URLs, refs and paths are checked here before any of them reaches the command.

The rules are narrower than git's own. What is refused is never repeated in the message, since a URL may carry a
password. Pure.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

_SCHEMES = ("https", "ssh", "http", "file")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
# With the user: without, `ext::sh` would look like a host and its path.
_SCP = re.compile(r"(?P<user>[^@/:]+)@(?P<host>[^@/:]+):(?P<path>[^:-].*)")
_LONGEST_URL = 2048
_LONGEST_REF = 250
_LONGEST_PATH = 1024
_LONGEST_NAME = 255
_REF_FORBIDDEN = frozenset(" ~^:?*[\\")
_ODD_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class GitError(Exception):
    """Something about a git source is not as it must be. The message is for people and holds no credentials."""


def check_url(url: str, protocols: Collection[str]) -> str:
    """The protocol of a repository's URL: `https`, `ssh`, `http` or `file`.

    Args:
        url: `https://host/path`, `ssh://user@host/path` or `user@host:path`.
        protocols: Those that are allowed. `http` to this very machine always is.

    Raises:
        GitError: It is none of these, holds credentials, or its protocol is not allowed.
    """
    if not url or len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise GitError(f"the URL must be 1 to {_LONGEST_URL} printable ASCII characters without spaces")
    if "://" not in url and (match := _SCP.fullmatch(url)) is not None:
        if not _USER.fullmatch(match["user"]) or not _HOST.fullmatch(match["host"]):
            raise GitError("the URL's user or host is not one: write user@host:path")
        return _allowed("ssh", protocols)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise GitError("the URL cannot be read: write https://host/path or ssh://user@host/path") from None
    if parts.scheme not in _SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise GitError("the URL must start with https:// or ssh://, or be user@host:path")
    if "?" in url or "#" in url:
        raise GitError("the URL must have no query and no fragment; a token belongs into a token file")
    _check_place(parts, port)
    if parts.scheme == "http" and _is_this_machine(parts.hostname or ""):
        return "http"
    return _allowed(parts.scheme, protocols)


def check_ref(ref: str) -> str:
    """A branch, a tag, a full ref or a commit's 40 digits; "" stands for the remote's own branch.

    Raises:
        GitError: It is none, by git's rules (git-check-ref-format) and some more.
    """
    if not ref:
        return ref
    parts = ref.split("/")
    if (
        len(ref.encode(errors="replace")) > _LONGEST_REF
        or ref.startswith("-")
        or ref in ("@", ".")
        or ".." in ref
        or "@{" in ref
        or ref.endswith(".")
        or any(not part or part.startswith((".", "-")) or part.endswith(".lock") for part in parts)
        or any(character in _REF_FORBIDDEN or _is_odd(character) for character in ref)
    ):
        raise GitError("the ref is not the name of a branch or tag")
    return ref


def check_path(path: str) -> str:
    """The folder of model files within the repository, without a slash at its end; "" is the repository's root.

    Raises:
        GitError: It leads out of the repository, into `.git`, or is no path.
    """
    path = path.removesuffix("/")
    if path in ("", "."):
        return ""
    if len(path) > _LONGEST_PATH or path.startswith("/"):
        raise GitError("the path must be relative to the repository's root")
    for name in path.split("/"):
        if why := odd_name(name):
            raise GitError(f"the path is not one within the repository: a part of it {why}")
    return path


def odd_name(name: str) -> str:
    """Why a file or folder of a commit is left out because of its name; "" where it is not.

    Args:
        name: One part of a path, as `os.fsdecode` gives it: what is no UTF-8 holds surrogates.
    """
    if not name or name in (".", ".."):
        return "is empty, '.' or '..'"
    if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    if any("\udc80" <= character <= "\udcff" for character in name):
        return "is not UTF-8"
    if any(character in "/\\" or _is_odd(character) for character in name):
        return "has a slash, a backslash or a character that cannot be seen"
    if name.casefold() in (".git", "git~1"):
        return "is git's own"
    return ""


def is_commit(text: str) -> bool:
    """Whether this is the whole id of a commit."""
    return _COMMIT.fullmatch(text) is not None


def is_short_commit(text: str) -> bool:
    """Whether this may be the beginning of a commit's id: 7 digits or more."""
    return _SHORT_COMMIT.fullmatch(text) is not None


def printable(text: str, limit: int = 200) -> str:
    """Text from a commit or a server in one bounded line: what cannot be seen is replaced."""
    flat = "".join("\N{REPLACEMENT CHARACTER}" if _is_odd(character) else character for character in text[:limit])
    return flat if len(text) <= limit else f"{flat}..."


def folder_name(url: str, path: str) -> str:
    """What problems call the folder of model files: its own name, or the repository's where it is the root."""
    if path:
        return path.rpartition("/")[2]
    name = url.rstrip("/").removesuffix(".git").replace(":", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".") or "repository"


def _check_place(parts: SplitResult, port: int | None) -> None:
    """User, host and path of a URL."""
    user, at, host = parts.netloc.rpartition("@")
    if at and (parts.scheme != "ssh" or ":" in user):
        raise GitError("the URL holds credentials: take them out and give the token by a token file instead")
    if at and not _USER.fullmatch(user):
        raise GitError("the URL's user is not one: letters, digits, dots, dashes and underscores")
    if parts.scheme == "file":
        if parts.netloc:
            raise GitError("a file URL has no host: write file:///path")
    elif not _HOST.fullmatch(re.sub(r":\d*$", "", host)) or port == 0:
        raise GitError("the URL's host or port is not one")
    if len(parts.path) <= 1 or ".." in parts.path.split("/"):
        raise GitError("the URL must name a repository, by a path without '..'")


def _allowed(scheme: str, protocols: Collection[str]) -> str:
    if scheme not in protocols:
        raise GitError(f"{scheme} is not allowed here; allowed are {', '.join(sorted(protocols))}")
    return scheme


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_odd(character: str) -> bool:
    return unicodedata.category(character) in _ODD_CATEGORIES
