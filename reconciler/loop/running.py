"""Speaking to the reconciler that runs in the same state directory, over its control socket."""

import contextlib
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from reconciler.core.overrides import Kind
from reconciler.core.provenance import Provenance
from reconciler.core.turn import Wishes
from reconciler.core.weights_json import states_from_json
from reconciler.loop.told import Freshness, Told, freshness_from_json, told_from_json
from reconciler.weights.revisions import Problem
from reconciler.weights.store import WeightStore

CONTROL_SOCKET = "control.sock"
_ANSWER_SECONDS = 30.0
"""A command is answered at once, but the loop may be in the middle of weighing a hundred models."""
_SYNC_SECONDS = 600.0
"""A look fetches; what it fetches is capped in time by the source itself."""
_QUICK_SECONDS = 2.0
"""Whoever only wants to show what is known goes without rather than wait."""
ANOTHER_VERSION = "the reconciler that runs here is of another version; restart it"


class NoReconcilerError(RuntimeError):
    """No reconciler answers in the state directory; the message says what was met instead."""


class RefusedError(RuntimeError):
    """The reconciler that runs says no, and why.

    Attributes:
        near: Names of models that were perhaps meant, where the one that was given is not declared.
        lease: It may not write to the cluster, because another one does.
    """

    def __init__(self, reason: str, near: tuple[str, ...] = (), *, lease: bool = False) -> None:
        super().__init__(reason)
        self.near = near
        self.lease = lease


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a model stands, as the reconciler that runs sees it.

    Attributes:
        state: As `/v1/models` shows it.
        reason: Why it is in that state.
        expected_wait: Seconds until it answers, as far as earlier loads tell.
        by_hand: The command that holds for it, and when it was given, in seconds since the epoch.
    """

    state: str
    reason: str
    expected_wait: float | None
    by_hand: tuple[Kind, float] | None


@dataclass(frozen=True, slots=True)
class Given:
    """A command by hand that was carried out.

    Attributes:
        model: The model's own name.
        since: Seconds since the epoch at which what holds now was given; None where something was only ended.
        until: Seconds since the epoch at which it ends; None where it has no end of its own.
        text: What holds now, in words.
    """

    model: str
    kind: Kind
    since: float | None
    until: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Suspended:
    """What was suspended.

    Attributes:
        model: Its name, or `*` for all.
        until: Seconds since the epoch at which it ends; None until `resume`.
        text: What holds now, in words.
    """

    model: str
    until: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """Models whose suspension was ended; `*` is that of all."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """What a look at the source found.

    Attributes:
        source: `git` or `folder`; of a folder nothing else is known.
        new: A new revision was taken over.
        ref: Branch or tag that is followed.
        commit: What is taken over now; empty where nothing ever was.
        author: Of the commit.
        subject: Of the commit.
        problem: Why nothing newer is taken over; empty while all is well.
    """

    source: str
    new: bool = False
    ref: str = ""
    commit: str = ""
    author: str = ""
    subject: str = ""
    problem: str = ""


def nothing_newer(provenance: Provenance | None) -> str:
    """Why the files are not the newest that there are, in words; empty where they are, or nobody can tell."""
    if provenance is None or not provenance.problem:
        return ""
    return f"nothing newer than {provenance.commit.short}: {provenance.problem}"


def opened(state_dir: Path, seconds: float | None) -> aiohttp.ClientSession:
    """A connection to the reconciler that runs here, to be closed again; paths are its addresses.

    Args:
        state_dir: Its state directory.
        seconds: How long one answer may take; None for as long as it takes.
    """
    return aiohttp.ClientSession(
        "http://reconciler",
        connector=aiohttp.UnixConnector(str(state_dir / CONTROL_SOCKET)),
        timeout=aiohttp.ClientTimeout(total=seconds),
    )


async def ask_running(state_dir: Path, wishes: Wishes) -> dict[str, object]:
    """Have the reconciler that runs here take its turns now; gives its plan's outcome once it is settled.

    Raises:
        aiohttp.ClientError: It does not answer.
        RefusedError: It says no; `lease` where another one may write to the cluster.
    """
    async with opened(state_dir, None) as session, session.post("/reconcile", json=asdict(wishes)) as answer:
        if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            refused = await answer.json()
            raise RefusedError(str(refused.get("error")), lease=refused.get("lease") is True)
        answer.raise_for_status()
        outcome: dict[str, object] = await answer.json()
        return outcome


async def learn_from_running(state_dir: Path, weights: WeightStore) -> tuple[Told, Freshness] | None:
    """Take over what the reconciler that runs here knows: of downloads, of the traffic, and of its source.

    Returns:
        None where none runs or none answers.
    """
    if not (state_dir / CONTROL_SOCKET).exists():
        return None
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError):
        async with opened(state_dir, _QUICK_SECONDS) as session:
            async with session.get("/downloads") as answer:
                answer.raise_for_status()
                known = await answer.json()
            weights.learn(states_from_json(known["copies"]))
            weights.revisions.learn(
                {
                    (row["repo"], row["revision"]): Problem(row["reason"], row["attempts"], row["retry_at"])
                    for row in known["revisions"]
                }
            )
            async with session.get("/traffic") as answer:
                answer.raise_for_status()
                found = await answer.json()
            return told_from_json(found["traffic"]), freshness_from_json(found["source"])
    return None


async def give_override(state_dir: Path, kind: Kind, model: str, seconds: float | None) -> Given:
    """Give the reconciler that runs here a command about one model.

    Args:
        state_dir: Its state directory.
        kind: The command.
        model: The model, or an alias or adapter of it.
        seconds: How long it is to hold; None where nothing was said.

    Raises:
        NoReconcilerError: None answers.
        RefusedError: It says no.
    """
    answer = await ask(state_dir, "POST", "/override", {"model": model, "kind": kind.value, "seconds": seconds})
    try:
        return Given(**{**answer, "kind": Kind(answer["kind"])})
    except (KeyError, TypeError, ValueError) as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error


async def suspend(state_dir: Path, model: str | None, seconds: float | None, reason: str) -> Suspended:
    """Have the reconciler that runs here leave a model, or with None all of them, as they are.

    Raises:
        NoReconcilerError: None answers.
        RefusedError: It says no.
    """
    body: dict[str, object] = {"model": model, "seconds": seconds, "reason": reason}
    answer = await ask(state_dir, "POST", "/suspend", body)
    try:
        return Suspended(**answer)
    except TypeError as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error


async def resume(state_dir: Path, model: str | None) -> Resumed:
    """End the suspension of a model, or with None every one.

    Raises:
        NoReconcilerError: None answers.
        RefusedError: It says no.
    """
    answer = await ask(state_dir, "POST", "/resume", {"model": model})
    try:
        return Resumed(tuple(str(name) for name in answer["models"]))
    except (KeyError, TypeError) as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error


async def sync_source(state_dir: Path) -> Synced:
    """Have the reconciler that runs here look at its source now.

    Raises:
        NoReconcilerError: None answers.
        RefusedError: It says no.
    """
    answer = await ask(state_dir, "POST", "/sync", None, seconds=_SYNC_SECONDS)
    try:
        return Synced(**answer)
    except TypeError as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error


async def states(state_dir: Path) -> tuple[float, dict[str, Standing]]:
    """Where each model stands, and when the reconciler looked, in seconds since the epoch.

    Raises:
        NoReconcilerError: None answers.
        RefusedError: It has not looked yet.
    """
    answer = await ask(state_dir, "GET", "/models", None)
    try:
        return float(answer["looked_at"]), {row["model"]: _standing(row) for row in answer["models"]}
    except (KeyError, TypeError, ValueError) as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error


def _standing(row: dict[str, Any]) -> Standing:
    given = row["override"]
    by_hand = (Kind(given["kind"]), float(given["since"])) if given is not None else None
    return Standing(row["state"], row["reason"], row["expected_wait"], by_hand)


async def ask(
    state_dir: Path,
    method: str,
    path: str,
    body: dict[str, object] | None,
    *,
    seconds: float = _ANSWER_SECONDS,
) -> dict[str, Any]:
    """The answer of the reconciler that runs here to one question.

    Args:
        state_dir: Its state directory.
        method: Of the request.
        path: Of the request.
        body: A JSON document, or None.
        seconds: How long it may take.

    Raises:
        NoReconcilerError: None answers, or not in time, or one of another version.
        RefusedError: It says no.
    """
    try:
        async with opened(state_dir, seconds) as session, session.request(method, path, json=body) as answer:
            found = await answer.json()
    except TimeoutError as error:
        raise NoReconcilerError(f"no answer within {seconds:.0f} s") from error
    except (aiohttp.ContentTypeError, ValueError) as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error
    except (aiohttp.ClientError, OSError) as error:
        raise NoReconcilerError(str(error)) from error
    if not isinstance(found, dict):
        raise NoReconcilerError(ANOTHER_VERSION)
    if not answer.ok:
        raise RefusedError(str(found.get("error")), tuple(str(name) for name in found.get("near", ())))
    return found
