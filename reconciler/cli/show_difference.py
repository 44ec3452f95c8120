"""The difference of two trees of model files as a person reads it."""

import json
from typing import Any

from rich.markup import escape

from reconciler.cli.show import console
from reconciler.core.tree_difference import Difference, Kind, counts

_SYMBOLS = {Kind.ADDED: ("+", "green"), Kind.CHANGED: ("±", "yellow"), Kind.REMOVED: ("-", "red")}
_LONGEST_VALUE = 60


def show_difference(found: Difference, *, base: str, proposed: str) -> None:
    """What is added, changed and removed, and that nobody looked at the cluster.

    Args:
        found: What differs.
        base: What names the base.
        proposed: What names the proposed tree.
    """
    out = console()
    for change in found.changes:
        symbol, style = _SYMBOLS[change.kind]
        effect = f": {change.effect.value}" if change.effect is not None else ""
        out.print(f"[{style}]{symbol} {escape(change.model)}[/] {change.kind.value}{effect}")
        out.print(f"      [dim]because[/] {escape(change.cause)}")
        for field in change.fields:
            values = f"{_value(field.old)} -> {_value(field.new)}"
            out.print(f"      {escape(field.path)}: {escape(values)}  ({field.effect.value})")
    for kept in found.kept:
        who = ", ".join(kept.models) or "what it served"
        out.print(f"[red]! {escape(kept.file)}[/] is invalid; {escape(who)} stays as it is")
    if found.refused is not None:
        reason = f"if all that the base declares runs: {found.refused.reason}"
        out.print(f"[bold red]x would be refused[/] {escape(', '.join(found.refused.models))}: {escape(reason)}")
    number = counts(found)
    parts = ", ".join(f"{number[kind.value]} {kind.value}" for kind in Kind)
    out.print(
        f"[bold]Files of {escape(proposed)} against {escape(base)}:[/] {parts}; {number['invalid']} invalid, "
        f"{number['unchanged']} unchanged. Nobody looked at the cluster."
    )


def _value(value: Any) -> str:  # noqa: ANN401 -- any JSON value
    text = "(absent)" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
