"""What two trees of model files differ in, for those who cannot look at the cluster: a CI runner without access.

It says nothing about what runs, whether there is room, or what would be held: for that there is the plan.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum

from reconciler.core.desired import Desired
from reconciler.core.diff import Effect, FieldChange, field_changes
from reconciler.core.local_paths import only_content
from reconciler.core.parse import InvalidFile, Problem
from reconciler.core.plan import Refusal
from reconciler.core.safety import refuse_removals
from reconciler.core.state import Json
from reconciler.core.target import Target

FORMAT_VERSION = 1
_COST = tuple(Effect)


class Kind(StrEnum):
    """What happens to a model's declaration."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class TreeChange:
    """One model that two trees declare differently.

    Attributes:
        effect: The most costly effect of its fields; None where it is added or removed.
        cause: Why, in words.
    """

    model: str
    kind: Kind
    cause: str
    file: str
    fields: tuple[FieldChange, ...] = ()
    effect: Effect | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that is invalid in the proposed tree, and the models that would stay as they are for it.

    Attributes:
        models: Their names; empty where the file does not say for certain.
    """

    file: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs.

    Attributes:
        base: Revision of the tree that it is held against.
        proposed: Revision of the tree that is proposed.
        kept: Files of the proposed tree that are invalid, by path.
        unchanged: How many models both trees declare alike.
        problems: Every mistake of every file of the proposed tree.
        refused: What the safety rule would say if all of the base ran; None where it would let it pass.
    """

    base: str
    proposed: str
    changes: tuple[TreeChange, ...]
    kept: tuple[Kept, ...]
    unchanged: int
    problems: tuple[Problem, ...]
    refused: Refusal | None = None


def difference(base: Desired, proposed: Desired) -> Difference:
    """What the proposed tree changes of the base. Both must be readable."""
    changes: list[TreeChange] = []
    kept = {file.path: set(file.claims or ()) for file in proposed.invalid}
    removed: list[str] = []
    for model in sorted(base.targets.keys() | proposed.targets.keys()):
        old, new = base.targets.get(model), proposed.targets.get(model)
        if old is not None and new is not None:
            changes += [change] if (change := _changed(old, new)) is not None else []
        elif new is not None:
            changes.append(TreeChange(model, Kind.ADDED, _cause_of_add(base, new), new.file))
        elif old is not None:
            file = _invalid_file_of(proposed, old)
            if file is not None:
                kept[file.path].add(model)
            else:
                removed.append(model)
                changes.append(TreeChange(model, Kind.REMOVED, f"{old.file} is gone", old.file))
    return Difference(
        base.revision,
        proposed.revision,
        tuple(changes),
        tuple(Kept(path, tuple(sorted(kept[path]))) for path in sorted(kept)),
        len(base.targets.keys() & proposed.targets.keys()) - sum(c.kind is Kind.CHANGED for c in changes),
        proposed.problems,
        _refusal(removed, base, proposed),
    )


def counts(found: Difference) -> dict[str, int]:
    """How many models each kind of change concerns."""
    number = Counter(change.kind for change in found.changes)
    effects = Counter(change.effect for change in found.changes)
    return {
        **{kind.value: number[kind] for kind in Kind},
        **{effect.value: effects[effect] for effect in Effect},
        "invalid": len(found.kept),
        "unchanged": found.unchanged,
    }


def difference_to_json(found: Difference) -> Json:
    """The difference as a JSON-able dict."""
    return {
        "format_version": FORMAT_VERSION,
        "base": found.base,
        "proposed": found.proposed,
        "changes": [asdict(change) for change in found.changes],
        "kept": [asdict(kept) for kept in found.kept],
        "refused": asdict(found.refused) if found.refused is not None else None,
        "summary": counts(found),
    }


def _changed(old: Target, new: Target) -> TreeChange | None:
    fields = field_changes(old.fields, new.fields)
    if fields:
        effect = max((field.effect for field in fields), key=_COST.index)
        content = only_content([field.path for field in fields])
        what = f"the content of a folder that {new.file} names" if content else new.file
        return TreeChange(new.model, Kind.CHANGED, f"{what} changed", new.file, fields, effect)
    if old.file != new.file:
        cause = f"declared in {new.file}, no longer in {old.file}"
        return TreeChange(new.model, Kind.CHANGED, cause, new.file, effect=Effect.FRONT_DOOR)
    return None


def _cause_of_add(base: Desired, new: Target) -> str:
    was_invalid = any(new.model in (file.claims or ()) or file.path == new.file for file in base.invalid)
    return f"{new.file} declares it" + (", and was invalid before" if was_invalid else "")


def _invalid_file_of(proposed: Desired, old: Target) -> InvalidFile | None:
    """The invalid file that a model of the base may come from."""
    for file in proposed.invalid:
        if file.path == old.file or old.model in (file.claims or ()):
            return file
    return None


def _refusal(removed: list[str], base: Desired, proposed: Desired) -> Refusal | None:
    if not removed:
        return None
    running = set(base.targets)
    return refuse_removals(removed, running, declared=proposed.declared, unreadable="", allowed=False)
