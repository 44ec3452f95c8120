"""What became of a revision, as a commit status has it: made of what a turn saw, told by `loop/write_back.py`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from reconciler.core.desired import Desired
from reconciler.core.parse import InvalidFile, Problem
from reconciler.core.plan import HeldKind, Plan

LONGEST_TEXT = 140
"""Of a description of GitHub's. GitLab and Gitea take more."""
_LONGEST_REASON = 500
_REFUSED = "refused"
_SHORT = 12


class State(StrEnum):
    """How far a revision is."""

    PENDING = "pending"
    """Something of it is still to be done, and may succeed."""
    SUCCESS = "success"
    """Every model is as its file wants it; one on demand may be at rest."""
    FAILURE = "failure"
    """A file is invalid, or a model is held, failed or refused. What served before goes on."""
    SUPERSEDED = "superseded"
    """Another revision came before it was settled."""


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """A model that is not as its file wants it.

    Attributes:
        model: Its name; empty where the file does not say whose it is.
        kind: Of `HeldKind`, `refused`, or the action that is under way.
        reason: In words, shortened.
        file: The model file.
    """

    model: str
    kind: str
    reason: str
    file: str = ""

    @property
    def label(self) -> str:
        """What it is called in one line: no reason, which may say more of this machine than all may read."""
        name = self.model or self.file
        return f"{name} ({self.kind})" if name else self.kind


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a revision.

    Attributes:
        revision: As the source names it.
        text: In one line of at most 140 characters.
        models: Those that are not as their files want them.
    """

    revision: str
    state: State
    text: str
    models: tuple[ModelOutcome, ...] = ()


def outcome_of(desired: Desired, plan: Plan) -> Outcome | None:
    """What one turn says of the revision that it looked at; None where the source could not be read.

    An invalid file is told at once, since only another revision can mend it. What is held otherwise is told when
    nothing is left to do: until then it may only wait for something.
    """
    if desired.unreadable or not desired.revision:
        return None
    if not plan.done and not desired.problems:
        return _pending(desired.revision, plan)
    invalid = tuple(_of_file(file) for file in desired.invalid)
    others = tuple(_held_in(plan, invalid=bool(invalid))) if plan.done else ()
    parts = [_mistakes(desired.problems)] if desired.problems else []
    if others:
        parts.append(f"{_counted(len(others))} not as wanted: {_names(others)}")
    if parts:
        return Outcome(
            desired.revision, State.FAILURE, _short("; ".join(parts), LONGEST_TEXT), (*invalid, *others)
        )
    text = f"{len(plan.unchanged)} up as wanted, {len(plan.resting)} at rest"
    return Outcome(desired.revision, State.SUCCESS, text)


def to_tell(told: Outcome | None, seen: Outcome) -> tuple[Outcome, ...]:
    """What of `seen` is news, for one who was last told `told`.

    A revision that was settled once is not pending again when one of its models is loaded anew.
    """
    if told is None:
        return (seen,)
    if told.revision != seen.revision:
        left = replace(told, state=State.SUPERSEDED, text=f"superseded by {seen.revision[:_SHORT]}", models=())
        return (left, seen) if told.state is State.PENDING else (seen,)
    if seen.state is State.PENDING or (seen.state, seen.text) == (told.state, told.text):
        return ()
    # How many are up and at rest changes with the traffic.
    return () if seen.state is told.state is State.SUCCESS else (seen,)


def _pending(revision: str, plan: Plan) -> Outcome:
    models = tuple(
        ModelOutcome(change.model, change.action.value, _short(change.cause, _LONGEST_REASON), change.file)
        for change in plan.changes
        if change.model not in plan.by_traffic
    )
    text = f"{_counted(len(models))} under way: {_names(models)}" if models else "under way"
    return Outcome(revision, State.PENDING, _short(text, LONGEST_TEXT), models)


def _held_in(plan: Plan, *, invalid: bool) -> Iterator[ModelOutcome]:
    for held in plan.held:
        # An invalid file holds its model too, which is the same once more.
        if not (invalid and held.kind is HeldKind.INVALID):
            yield ModelOutcome(held.model, held.kind.value, _short(held.reason, _LONGEST_REASON), held.file)
    for refusal in plan.refused:
        for model in refusal.models or ("",):
            yield ModelOutcome(model, _REFUSED, _short(refusal.reason, _LONGEST_REASON))


def _mistakes(problems: Sequence[Problem]) -> str:
    more = len(problems) - 1
    return f"{problems[0]}{f' (and {more} more)' if more else ''}"


def _of_file(file: InvalidFile) -> ModelOutcome:
    reason = str(file.problems[0]) if file.problems else "invalid"
    name = ", ".join(sorted(file.claims or ()))
    return ModelOutcome(name, HeldKind.INVALID.value, _short(reason, _LONGEST_REASON), _short(file.path, 300))


def _counted(number: int) -> str:
    return f"{number} model" if number == 1 else f"{number} models"


def _names(models: Iterable[ModelOutcome]) -> str:
    return ", ".join(each.label for each in models)


def _short(text: str, longest: int) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * longest]).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
