"""A plan that was saved, to be applied later as it is, or to be refused because things are different now."""

import json
from dataclasses import dataclass
from typing import Any, Final

from reconciler.core.state import Json

FORMAT_VERSION: Final = 1
MAX_CHARACTERS: Final = 64 * 1024 * 1024
"""Of a saved plan; that of 10,000 models has 20 million."""

_MAX_NAMED: Final = 5
_IDENTITY: Final = ("action", "old", "new", "order", "file", "fields")
"""What a change is. Left out are its cause, its phase, what is on disk already and the estimate of its memory:
these move by themselves, while the same thing would be done."""
_BASES: Final = {
    "desired": "the model files, or the commits that their revisions stand for, changed",
    "observed": "the applications in Ray Serve changed",
}


class SavedPlanError(ValueError):
    """What should be a saved plan is none; the message says why."""


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan as it was printed, and what it was made from.

    Attributes:
        created_at: Seconds since the epoch.
        program: The version of the program that made it.
        commit: The commit of the model files, where their source has commits; else empty.
        plan: As `core.plan_json` writes it, with the revision and the digests of its base.
    """

    created_at: float
    program: str
    commit: str
    plan: Json


def saved_to_text(saved: SavedPlan) -> str:
    """The whole content of the file."""
    document = {
        "format_version": FORMAT_VERSION,
        "created_at": saved.created_at,
        "program": saved.program,
        "revision": saved.plan["revision"],
        "commit": saved.commit,
        "base": saved.plan["base"],
        "plan": saved.plan,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def saved_from_text(content: str) -> SavedPlan:
    """The plan in a file.

    Raises:
        SavedPlanError: It is no plan that this version can apply.
    """
    if len(content) > MAX_CHARACTERS:
        raise SavedPlanError(f"it is larger than {MAX_CHARACTERS // 1024**2} Mi characters")
    try:
        document = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise SavedPlanError(f"it is no JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict) or "format_version" not in document:
        raise SavedPlanError("it is no plan that `reconcile plan --out` wrote")
    version = document["format_version"]
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise SavedPlanError(
            f"its format is {repr(version)[:20]}, and this program knows {FORMAT_VERSION}: plan again"
        )
    try:
        saved = SavedPlan(
            _a(document["created_at"], int, float),
            _a(document["program"], str),
            _a(document["commit"], str),
            _a(document["plan"], dict),
        )
        whole = document["base"] == _base(saved.plan) and document["revision"] == _a(saved.plan["revision"], str)
        for change in _a(saved.plan["changes"], list):
            _check_change(change)
    except (KeyError, TypeError) as error:
        raise SavedPlanError(f"it is incomplete or damaged: {str(error)[:200]}") from error
    if not whole:
        raise SavedPlanError("its base is not that of its plan: it was edited")
    return saved


def stale(saved: SavedPlan, now: Json) -> tuple[str, ...]:
    """Why a saved plan must not be applied; nothing where it is what would be planned now.

    Args:
        saved: The plan that was saved.
        now: What would be planned now, as `core.plan_json` writes it.
    """
    before, after = _identities(saved.plan), _identities(now)
    different = sorted(model for model in before.keys() | after.keys() if before.get(model) != after.get(model))
    reasons = [words for key, words in _BASES.items() if saved.plan["base"][key] != now["base"][key]]
    if different:
        named = ", ".join(different[:_MAX_NAMED])
        more = f" and {len(different) - _MAX_NAMED} more" if len(different) > _MAX_NAMED else ""
        reasons.append(f"other changes would be made to {named}{more}: {_told(different[0], before, after)}")
    elif reasons:
        reasons.append("the changes would be the same")
    return tuple(reasons)


def _identities(plan: Json) -> dict[str, list[str]]:
    """What would be done to each model, in a form that can be compared."""
    found: dict[str, list[str]] = {}
    for change in plan["changes"]:
        identity = {key: change.get(key) for key in _IDENTITY}
        # As JSON, because tuples, enumerations and 1.0 for 1 come back from a file as something else.
        found.setdefault(change["model"], []).append(json.dumps(identity, sort_keys=True))
    return found


def _told(model: str, before: dict[str, list[str]], after: dict[str, list[str]]) -> str:
    planned, would = (_in_words(found.get(model)) for found in (before, after))
    return f"{model} was to {planned}, and now would {would}" if planned != would else f"{model} to something else"


def _in_words(identities: list[str] | None) -> str:
    if identities is None:
        return "stay as it is"
    parts = []
    for each in map(json.loads, identities):
        version = f" {each['new'] or each['old']}" if each["new"] or each["old"] else ""
        parts.append(f"{each['action']}{version}")
    return " and ".join(parts)


def _base(plan: Json) -> dict[str, str]:
    base = _a(plan["base"], dict)
    return {key: _a(base[key], str) for key in _BASES}


def _check_change(change: object) -> None:
    found = _a(change, dict)
    _a(found["model"], str)
    _a(found["action"], str)
    for key in ("old", "new"):
        _a(found[key], str, type(None))


def _a(value: Any, *kinds: type) -> Any:  # noqa: ANN401 -- any JSON value, of one of these kinds
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{repr(value)[:40]} is of the wrong kind")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
