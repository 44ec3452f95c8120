"""A plan as Markdown, for the pull request that proposes it; and, where nobody looked at the cluster, two trees.

Everything that comes from files is escaped (`core.markdown`). The first line is a mark that nobody sees, by which
one comment is found again and kept up to date.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from reconciler.core.diff import FieldChange
from reconciler.core.markdown import MAX_CHARACTERS, Page, code, row, table, text
from reconciler.core.parse import Problem
from reconciler.core.plan import Action, Change, GpuUse, Held, Memory, Order, Plan, Refusal
from reconciler.core.plan_json import counts
from reconciler.core.tree_difference import Difference, Kept, Kind, TreeChange
from reconciler.core.tree_difference import counts as tree_counts
from reconciler.core.weights import CopyPlan, in_words

MARK: Final = "<!-- reconcile-plan -->"
"""Finds the comment again."""

_SYMBOLS: Final = {
    Action.ADD: "+",
    Action.REPLACE: "±",
    Action.UPDATE: "~",
    Action.FRONT_DOOR: "·",
    Action.RESTORE: "↺",
    Action.LOAD: "▲",
    Action.SLEEP: "◐",
    Action.UNLOAD: "▼",
    Action.REMOVE: "-",
}
_DONE: Final = {
    Action.ADD: "to add",
    Action.REPLACE: "to replace",
    Action.UPDATE: "to update in place",
    Action.FRONT_DOOR: "at the front door",
    Action.RESTORE: "to restore",
    Action.LOAD: "to load",
    Action.SLEEP: "to sleep",
    Action.UNLOAD: "to unload",
    Action.REMOVE: "to remove",
}
_TREE_SYMBOLS: Final = {Kind.ADDED: "+", Kind.CHANGED: "±", Kind.REMOVED: "-"}
_ORDERS: Final = {Order.BESIDE: "beside the old version", Order.IN_TURN: "in turn: no room for both"}
_LONGEST_VALUE: Final = 60
_LONGEST_REASON: Final = 1_000
_WIDTH: Final = 10


def plan_markdown(
    plan: Plan,
    problems: Sequence[Problem] = (),
    *,
    proposed: str = "",
    longest: int = MAX_CHARACTERS,
) -> str:
    """The plan as a page of Markdown, the most important first.

    Args:
        plan: The plan.
        problems: Every mistake of every file.
        proposed: What names the proposed tree, as it was asked for; empty for the plan of what is declared.
        longest: Characters that the page may have.
    """
    page = Page(longest)
    page.add(MARK, f"## Plan: {_summary(plan)}")
    what = f"the proposed tree {code(proposed)}" if proposed else "the model files"
    page.add(f"Between what runs now and {what}. Nothing was changed.")
    page.section("changes", table(("", "Model", "Action", "Why", "Memory")), plan.changes, _change)
    page.section(
        "refusals", ["### Refused by a safety rule", ""], plan.refused, lambda each: f"- {_refusal(each)}"
    )
    page.section("held models", ["### Held", ""], plan.held, _held)
    _add_problems(page, problems)
    for change in plan.changes:
        _add_fields(page, change.model, change.fields, _versions(change))
    _add_gpus(page, plan.gpus)
    downloads = [(change.model, each) for change in plan.changes for each in change.downloads]
    page.section("downloads", ["### Downloads", ""], downloads, lambda each: _download(*each))
    notes = [(each.model, each.text) for each in plan.drift] + [(each.model, each.text) for each in plan.notes]
    page.section("notes", ["### Notes", ""], notes, lambda each: f"- {code(each[0])}: {text(each[1])}")
    base = f"desired {code(plan.desired_digest)}, observed {code(plan.observed_digest)}"
    return page.end(f"<sub>Revision {code(plan.revision)}. Made from: {base}.</sub>")


def difference_markdown(
    found: Difference,
    *,
    base: str,
    proposed: str,
    longest: int = MAX_CHARACTERS,
) -> str:
    """The difference of two trees as a page of Markdown, which says that nobody looked at the cluster.

    Args:
        found: What differs.
        base: What names the base, as it was asked for.
        proposed: What names the proposed tree.
        longest: Characters that the page may have.
    """
    number = tree_counts(found)
    page = Page(longest)
    invalid = f"; {_files(number['invalid'])} invalid" if number["invalid"] else ""
    parts = ", ".join(f"{number[kind.value]} {kind.value}" for kind in Kind)
    page.add(MARK, f"## Model files: {parts}{invalid}")
    page.add(
        f"**Only the files of two trees were compared: {code(base)} and {code(proposed)}. Nobody looked at the "
        "cluster:** what runs, whether there is room, and what would be held is not known here. "
        "<code>reconcile plan --against</code>, run where the cluster can be reached, says that."
    )
    page.section("changes", table(("", "Model", "What", "Why")), found.changes, _tree_change)
    if found.refused is not None:
        reason = f"If all that the base declares runs, a safety rule refuses this: {_refusal(found.refused)}"
        page.add("### Would be refused by a safety rule", "", reason)
    page.section("held models", ["### Would be held", ""], found.kept, _kept)
    _add_problems(page, found.problems)
    for change in found.changes:
        _add_fields(page, change.model, change.fields, "")
    same = f"{found.unchanged} model{'s' if found.unchanged != 1 else ''} unchanged"
    return page.end(f"<sub>Base {code(found.base)}, proposed {code(found.proposed)}; {same}.</sub>")


def _summary(plan: Plan) -> str:
    number = counts(plan)
    parts = [f"{number[action.value]} {words}" for action, words in _DONE.items() if number[action.value]]
    left = [f"{number[key]} {key}" for key in ("held", "refused") if number[key]]
    return "; ".join(part for part in (", ".join(parts) or "no change", ", ".join(left)) if part)


def _change(change: Change) -> str:
    memory = _memory(change.memory) if change.memory is not None else ""
    symbol = text(_SYMBOLS[change.action])
    return row((symbol, code(change.model), _action(change), text(change.cause), memory))


def _action(change: Change) -> str:
    order = f", {_ORDERS[change.order]}" if change.action is Action.REPLACE and change.order is not None else ""
    phase = f" ({text(change.phase)})" if change.phase else ""
    return f"{change.action.value}{order}{phase}"


def _tree_change(change: TreeChange) -> str:
    effect = f": {change.effect.value}" if change.effect is not None else ""
    symbol = text(_TREE_SYMBOLS[change.kind])
    return row((symbol, code(change.model), f"{change.kind.value}{effect}", text(change.cause)))


def _kept(kept: Kept) -> str:
    models = code(", ".join(kept.models)) if kept.models else "what it served"
    return f"- {code(kept.file)} is invalid; {models} stays as it is"


def _memory(memory: Memory) -> str:
    """Shorter than in a terminal: how much, and of what."""
    each = " each" if memory.ranks > 1 else ""
    surely = "" if memory.fits_safely else f", up to {in_words(memory.needed_safe)}"
    if not memory.total:
        return text(f"{in_words(memory.needed)}{surely} of main memory")
    share = "whole" if memory.gpus >= 1 else f"{memory.gpus:.0%} of it"
    return text(f"{in_words(memory.needed)}{each}{surely} of {memory.ranks} x {memory.where}, {share}")


def _refusal(refusal: Refusal) -> str:
    allowed = f" (<code>{refusal.flag}</code> allows it)" if refusal.flag else ""
    models = ", ".join(refusal.models)
    return f"{code(models) if models else 'all'}: {text(refusal.reason, _LONGEST_REASON)}{allowed}"


def _held(held: Held) -> str:
    # One line, so that it is shown whole or not at all.
    advice = "".join(f"<br>it would with {text(each)}" for each in held.advice)
    return f"- {code(held.model)}: {held.kind.value}. {text(held.reason, _LONGEST_REASON)}{advice}"


def _add_problems(page: Page, problems: Sequence[Problem]) -> None:
    page.section("mistakes", ["### Mistakes in files", ""], problems, _problem)


def _problem(problem: Problem) -> str:
    hint = f" ({text(problem.hint)})" if problem.hint else ""
    where = code(f"{problem.path}:{problem.line}:{problem.column}")
    return f"- {where}: {text(problem.message, _LONGEST_REASON)}{hint}"


def _add_fields(page: Page, model: str, fields: Sequence[FieldChange], versions: str) -> None:
    head = [f"<details><summary>Fields of {code(model)}</summary>", "", *([versions, ""] if versions else [])]
    head += table(("Field", "Before", "After", "Takes"))
    page.section("fields", head, fields, _field, ["", "</details>"])


def _field(field: FieldChange) -> str:
    return row((code(field.path), code(_value(field.old)), code(_value(field.new)), field.effect.value))


def _versions(change: Change) -> str:
    versions = [code(name) for name in (change.old, change.new) if name]
    return f"Version {' → '.join(versions)}" if versions else ""


def _value(value: Any) -> str:  # noqa: ANN401 -- any JSON value
    shown = "(absent)" if value is None else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _LONGEST_VALUE else shown[: _LONGEST_VALUE - 1] + "…"


def _download(model: str, each: CopyPlan) -> str:
    what = f"- {code(model)}: {code(f'{each.repo}@{each.commit[:8]} ({each.revision})')}"
    if each.total is None:
        return f"{what}, size unknown" + (f"; {text(each.note)}" if each.note else "")
    return f"{what}, {in_words(max(0, each.total - each.done))} to fetch"


def _add_gpus(page: Page, gpus: Sequence[GpuUse]) -> None:
    changed = [gpu for gpu in gpus if gpu.before != gpu.after or gpu.failed]
    same = len(gpus) - len(changed)
    tail = ["", f"{same} more GPU{'s' if same > 1 else ''} unchanged."] if same else []
    page.section(
        "GPUs", ["### GPUs", "", *table(("GPU", "Memory", "Before", "After", "With"))], changed, _gpu, tail
    )


def _gpu(gpu: GpuUse) -> str:
    return row(
        (
            text(f"{gpu.node} {gpu.index}" + (f" {gpu.name}" if gpu.name else "")),
            in_words(gpu.total) if gpu.total else "?",
            "" if gpu.failed else _bar(gpu, gpu.before),
            f"failed: {text(gpu.failed)}" if gpu.failed else _bar(gpu, gpu.after),
            text(", ".join(gpu.applications)),
        )
    )


def _bar(gpu: GpuUse, taken: float) -> str:
    """`█████▒▒░░░ 70%`: what Ray reserves, then what others have, then what is free."""
    ours = round(min(1.0, taken) * _WIDTH)
    others = min(_WIDTH - ours, round(gpu.foreign * _WIDTH))
    return f"{'█' * ours}{'▒' * others}{'░' * (_WIDTH - ours - others)} {min(1.0, taken + gpu.foreign):.0%}"


def _files(number: int) -> str:
    return f"{number} file{'s' if number != 1 else ''}"
