"""How the status of a commit is set on its forge: whose API it is, where that is, and what it is sent. Pure."""

import contextlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from reconciler.core.outcome import Outcome, State

Kind = Literal["github", "gitlab", "gitea"]
_KNOWN: Mapping[str, Kind] = {
    "github.com": "github",
    "gitlab.com": "gitlab",
    "gitea.com": "gitea",
    "codeberg.org": "gitea",
}
_STATES: Mapping[Kind, Mapping[State, str]] = {
    "github": {State.SUCCESS: "success", State.FAILURE: "failure", State.SUPERSEDED: "error"},
    "gitlab": {State.SUCCESS: "success", State.FAILURE: "failed", State.SUPERSEDED: "canceled"},
    "gitea": {State.SUCCESS: "success", State.FAILURE: "failure", State.SUPERSEDED: "error"},
}
_API_PATHS: Mapping[Kind, str] = {"github": "/api/v3", "gitlab": "/api/v4", "gitea": "/api/v1"}
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SCP_FORM = re.compile(r"(?:[^@/:]+@)?(\[[^\]]+\]|[^/:]+):(?!//)(.+)")


@dataclass(frozen=True, slots=True)
class Call:
    """One POST of a JSON document."""

    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Forge:
    """A repository on its forge.

    Attributes:
        kind: Whose API it is.
        api: Its base URL.
        repository: Path of the repository: owner and name, at GitLab with all groups.
    """

    kind: Kind
    api: str
    repository: str

    def status(self, outcome: Outcome, context: str, token: str) -> Call:
        """The call that sets the status of the commit that `outcome` is about.

        Args:
            outcome: What is told.
            context: What the status is called beside those of others.
            token: That lets us.
        """
        body = {
            "state": _STATES[self.kind].get(outcome.state, "pending"),
            "description": outcome.text,
            "context": context,
        }
        if self.kind == "gitlab":
            path = f"/projects/{quote(self.repository, safe='')}/statuses/{outcome.revision}"
        else:
            path = f"/repos/{quote(self.repository)}/statuses/{outcome.revision}"
        return Call(f"{self.api}{path}", self._headers(token), json.dumps(body).encode())

    def _headers(self, token: str) -> dict[str, str]:
        if self.kind == "github":
            return {
                "Authorization": f"Bearer {token}",
                "Accept": "application/vnd.github+json",
                "X-GitHub-Api-Version": "2022-11-28",
            }
        return {"PRIVATE-TOKEN": token} if self.kind == "gitlab" else {"Authorization": f"token {token}"}


def is_commit(revision: str) -> bool:
    """A revision that a forge can have a status of."""
    return _COMMIT.fullmatch(revision) is not None


def forge_of(repository_url: str, kind: Kind | Literal["auto"], api: str = "") -> Forge:
    """Where the status of a repository's commits is set.

    Args:
        repository_url: The repository, as git is given it: https, ssh, or `git@host:path`.
        kind: Whose API it is; `auto` knows github.com, gitlab.com, gitea.com and codeberg.org.
        api: Base URL of the API; empty for the usual one of the repository's host.

    Raises:
        ValueError: It cannot be derived, or the API is not reached by https.
    """
    scheme, host, path = _parts(repository_url)
    if kind == "auto":
        known = _KNOWN.get(host)
        if known is None:
            raise ValueError(f"nobody can tell whose API {host} has; say github, gitlab or gitea")
        kind = known
    path = path.strip("/").removesuffix(".git")
    segments = path.split("/")
    if len(segments) < 2 or not all(segments) or {".", ".."} & set(segments):  # noqa: PLR2004 -- owner and name
        raise ValueError("the repository's URL has no owner and name")
    prefix = ""
    if kind != "gitlab":
        prefix = "".join(f"/{segment}" for segment in segments[:-2])
        path = "/".join(segments[-2:])
    if not api:
        usual = f"{scheme}://{host}{prefix}{_API_PATHS[kind]}"
        api = "https://api.github.com" if host == "github.com" else usual
    return Forge(kind, checked_url(api).rstrip("/"), path)


def checked_url(url: str) -> str:
    """A URL that a secret may be sent to.

    Raises:
        ValueError: It is neither https nor on loopback, or it has a user or a fragment. The message does
            not repeat it.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("needs a host, and neither a user nor a fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError("must begin with https://, or with http:// on loopback")
    _ = parts.port  # raises ValueError where it is none
    return url


def _parts(repository_url: str) -> tuple[str, str, str]:
    """Scheme of the API, host with its port, and path of a repository's URL."""
    short = _SCP_FORM.fullmatch(repository_url)
    if short is not None and "://" not in repository_url:
        return "https", short[1].lower(), short[2]
    parts = urlsplit(repository_url)
    host = (parts.hostname or "").lower()
    if not host or parts.scheme not in ("https", "http", "ssh"):
        raise ValueError("the repository's URL names no host; set the address of the API")
    host = f"[{host}]" if ":" in host else host
    if parts.scheme == "ssh":
        # Its port is that of ssh.
        return "https", host, parts.path
    return parts.scheme, f"{host}:{parts.port}" if parts.port is not None else host, parts.path


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
