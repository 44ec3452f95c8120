#!/usr/bin/env python3
"""Keeps one comment of a pull request, or merge request, up to date: the plan that its own pipeline made.

    comment.py github|gitlab FILE...

It runs where the secret is, and trusts nothing but its environment and, on GitHub, the event: which pull request
is meant comes from there. The plan (the first FILE that is there) was made by a run of the pull request, whose
author can have changed it. So it is read up to a limit, and whatever could mention, refer, link or hide is taken
out of it.

Exit codes: 0 the comment is up to date, or there is no pull request any more that it belongs to; 1 it is not.
"""

import http.client
import json
import os
import re
import stat
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MARK = "<!-- reconcile-plan -->"
MAX_BYTES = 256 * 1024
MAX_CHARACTERS = 60_000
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_OPEN = 10
MAX_PAGES = 50
PER_PAGE = 100
TIMEOUT_SECONDS = 30
NOTICE = (
    "<sub>Made by the run of this proposal itself, without access to secrets. Its author can change what the run "
    "prints, so look at the files, too.</sub>"
)
# What `reconcile plan` writes, and nothing with attributes.
_TAG = re.compile(r"<(?!/?(?:details|summary|code|sub)>|br>)")
_SPECIAL = re.compile(r"[@#!%~$](?=\w)|:(?=//)|GH-(?=\d)|www(?=\.)", re.IGNORECASE)
# Entities that `reconcile plan` writes; others could hide a sign.
_OTHER_ENTITY = re.compile(r"&(?!(?:amp|lt|gt|quot|#(?:8203|36|42|91|92|93|95|96|124|126));)")
_ENTITY = re.compile(r"&#(?=\d+;)")
_SIGN = re.compile(r"(&(?:amp|#36|#126);)(?=\w)")
_COMMAND = re.compile(r"^(\s*(?:[>*+-]\s*)*)/", re.MULTILINE)
_GAP = "&#8203;"


class CommentError(Exception):
    """The comment is not up to date; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where the comments of one pull request are.

    Attributes:
        comments: URL that lists comments, and takes new ones.
        one: URL of one comment, without its number.
        change: The method that replaces a comment.
        headers: Who we are.
        own: Whether a comment was written by us.
    """

    comments: str
    one: str
    change: str
    headers: dict[str, str]
    own: Callable[[dict[str, Any]], bool]


def main(arguments: list[str]) -> int:
    """Keep the comment up to date."""
    places = {"github": github, "gitlab": gitlab}
    if len(arguments) < 2 or arguments[0] not in places:  # noqa: PLR2004 -- the forge and a file
        sys.stderr.write(f"{__doc__}\n")
        return 1
    try:
        body = page(arguments[1:])
        place = places[arguments[0]]()
        if place is None:
            sys.stdout.write("No open pull request has this commit any more; a newer run speaks for it.\n")
            return 0
        sys.stdout.write(f"{keep(place, body)}\n")
    except CommentError as error:
        sys.stderr.write(f"comment.py: {error}\n")
        return 1
    return 0


def page(files: list[str]) -> str:
    """The text of the comment, of the first of these files that is there.

    Raises:
        CommentError: None is, or it is no regular file.
    """
    for file in files:
        try:
            # A link, which an artifact may hold, could lead to any file of this machine; a pipe would never end.
            handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CommentError(f"{file}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise CommentError(f"{file}: not a regular file")
        with os.fdopen(handle, "rb") as opened:
            text = opened.read(MAX_BYTES).decode("utf-8", errors="replace")
        text = harmless(text.removeprefix(MARK)).strip()
        if not text:
            raise CommentError(f"{file} is empty: the run made no plan, and its log says why")
        # The notice comes first: a section that is not closed hides what is behind it.
        return f"{MARK}\n{NOTICE}\n\n{bounded(text)}\n"
    raise CommentError(f"none of {', '.join(files)} is there")


def harmless(text: str) -> str:
    """Markdown without mentions, references, links, images, commands, comments and tags of others.

    What `reconcile plan` writes stays exactly as it is.
    """
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    text = _TAG.sub("&lt;", _OTHER_ENTITY.sub("&amp;", text))
    text = text.replace("[", "&#91;").replace("]", "&#93;")
    # The sign of an entity is no reference.
    text = "&\0".join(_ENTITY.split(text))
    text = _SPECIAL.sub(lambda found: found[0] + _GAP, text).replace("&\0", "&#")
    text = _SIGN.sub(rf"\1{_GAP}", text)
    return _COMMAND.sub(rf"\1{_GAP}/", text)


def bounded(text: str) -> str:
    """At most so many characters, cut at the end of a line."""
    if len(text) <= MAX_CHARACTERS:
        return text
    text = text[: text.rfind("\n", 0, MAX_CHARACTERS) if "\n" in text[:MAX_CHARACTERS] else MAX_CHARACTERS]
    left_open = "\n</details>" * min(MAX_OPEN, max(0, text.count("<details>") - text.count("</details>")))
    return f"{text}\n{left_open}\n\n**Cut here: it was longer.**"


def keep(place: Place, body: str) -> str:
    """Make the comment, or replace its text; never leave two.

    Raises:
        CommentError: The forge does not do it.
    """
    mine = [each for each in _comments(place) if place.own(each) and str(each.get("body")).startswith(MARK)]
    if not mine:
        _call("POST", place.comments, place.headers, {"body": body})
        return "The comment was made."
    first, *others = mine
    for each in others:
        _call("DELETE", f"{place.one}/{int(each['id'])}", place.headers)
    if str(first["body"]).replace("\r\n", "\n").strip() == body.strip():
        return "The comment is up to date."
    _call(place.change, f"{place.one}/{int(first['id'])}", place.headers, {"body": body})
    return "The comment was replaced."


def github() -> Place | None:
    """The pull request that the event's run was for; None where it has moved on, or is closed.

    Raises:
        CommentError: It cannot be told which one that is.
    """
    api, repository = _variable("GITHUB_API_URL"), _variable("GITHUB_REPOSITORY")
    headers = {
        "Authorization": f"Bearer {_variable('GITHUB_TOKEN')}",
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    try:
        with open(_variable("GITHUB_EVENT_PATH"), encoding="utf-8") as file:  # noqa: PTH123 -- as the rest here
            run = json.load(file)["workflow_run"]
        sha, branch = run["head_sha"], run["head_branch"]
        source, owner = run["head_repository"]["full_name"], run["head_repository"]["owner"]["login"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommentError(f"the event is not that of a workflow_run: {error!r}") from error
    # The event lists no pull requests of forks, so it is looked up by what the event says of the run's commit.
    query = urllib.parse.urlencode({"state": "open", "head": f"{owner}:{branch}", "per_page": PER_PAGE})
    found = _call("GET", f"{api}/repos/{repository}/pulls?{query}", headers)
    try:
        numbers = [
            int(each["number"])
            for each in found
            if each["head"]["sha"] == sha and (each["head"]["repo"] or {}).get("full_name") == source
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CommentError(f"the list of pull requests is not as expected: {error!r}") from error
    if len(numbers) > 1:
        raise CommentError(f"{len(numbers)} pull requests are of this commit, and nothing says which one is meant")
    if not numbers:
        return None
    login = os.environ.get("COMMENT_LOGIN") or "github-actions[bot]"
    issues = f"{api}/repos/{repository}/issues"
    # Somebody else's comment with our mark is not ours to replace.
    return Place(
        f"{issues}/{numbers[0]}/comments",
        f"{issues}/comments",
        "PATCH",
        headers,
        lambda comment: (comment.get("user") or {}).get("login") == login,
    )


def gitlab() -> Place:
    """The merge request of this pipeline.

    Raises:
        CommentError: The token is not accepted.
    """
    api, headers = _variable("CI_API_V4_URL"), {"PRIVATE-TOKEN": _variable("PLAN_COMMENT_TOKEN")}
    who = _call("GET", f"{api}/user", headers)
    if not isinstance(who, dict) or "id" not in who:
        raise CommentError("GitLab does not say whose token this is")
    project, number = int(_variable("CI_MERGE_REQUEST_PROJECT_ID")), int(_variable("CI_MERGE_REQUEST_IID"))
    notes = f"{api}/projects/{project}/merge_requests/{number}/notes"
    return Place(
        notes, notes, "PUT", headers, lambda comment: (comment.get("author") or {}).get("id") == who["id"]
    )


def _comments(place: Place) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(1, MAX_PAGES + 1):
        part = _call("GET", f"{place.comments}?per_page={PER_PAGE}&page={number}", place.headers)
        if not isinstance(part, list) or not all(isinstance(each, dict) for each in part):
            raise CommentError("the list of comments is not as expected")
        found += part
        if len(part) < PER_PAGE:
            return found
    raise CommentError(f"there are more than {MAX_PAGES * PER_PAGE} comments: ours may be among the others")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes where it was meant to go, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 -- of no interest
        """None: no redirect is followed."""


_opener = urllib.request.build_opener(_NoRedirect)


def _call(method: str, url: str, headers: dict[str, str], body: dict[str, str] | None = None) -> Any:  # noqa: ANN401 -- any JSON value
    data = json.dumps(body).encode() if body is not None else None
    headers = {**headers, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 -- the forge's own URL
    try:
        with _opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read(MAX_ANSWER_BYTES)
        return json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        reason = error.read(300).decode(errors="replace")
        raise CommentError(f"{method} {url}: HTTP {error.code}: {reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CommentError(f"{method} {url}: {error}") from error


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise CommentError(f"the variable {name} is not set")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
