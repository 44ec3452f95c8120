"""Plans, problems and status as a person reads them. Colours are off under NO_COLOR and in a pipe."""

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reconciler.cli.show_memory import memory_in_words, show_gpus
from reconciler.core.diff import Effect, FieldChange
from reconciler.core.parse import Problem
from reconciler.core.plan import Action, Change, Held, Order, Plan
from reconciler.core.plan_json import counts
from reconciler.core.weights import CopyPlan, in_words
from reconciler.core.words import in_time

_SYMBOLS = {
    Action.ADD: ("+", "green"),
    Action.REPLACE: ("±", "yellow"),
    Action.UPDATE: ("~", "yellow"),
    Action.FRONT_DOOR: ("·", "cyan"),
    Action.RESTORE: ("↺", "yellow"),
    Action.LOAD: ("▲", "green"),
    Action.SLEEP: ("◐", "yellow"),
    Action.UNLOAD: ("▼", "yellow"),
    Action.REMOVE: ("-", "red"),
}
_EFFECT_STYLE = {Effect.FRONT_DOOR: "cyan", Effect.IN_PLACE: "yellow", Effect.NEW_ENGINE: "magenta"}
_LONGEST_VALUE = 60


def console(*, stderr: bool = False) -> Console:
    """A console that wraps nothing in a pipe, so that lines can be searched."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=piped, width=200 if piped else None)


def print_json(value: Any) -> None:  # noqa: ANN401 -- any JSON value
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def show_problems(problems: Iterable[Problem]) -> None:
    """Every mistake, one a line."""
    out = console()
    for problem in problems:
        out.print(f"[red]error[/] {escape(str(problem))}")


def show_plan(plan: Plan, *, now: float, done: bool = False, out: Console | None = None) -> None:
    """The plan: what changes and why, what is held, what is refused, and one line of summary."""
    out = out or console()
    for change in plan.changes:
        _show_change(out, change)
    for held in plan.held:
        _show_held(out, held, now)
    for refusal in plan.refused:
        out.print(f"[bold red]x refused[/] {escape(', '.join(refusal.models))}: {escape(refusal.reason)}")
        if refusal.flag:
            out.print(f"      [dim]{refusal.flag} allows it[/]")
    leaving = {change.model for change in plan.changes}
    for resting in plan.resting:
        if resting.model not in leaving:
            out.print(f"[dim]z {escape(resting.model)} at rest: {escape(resting.reason)}[/]")
    for drift in plan.drift:
        out.print(f"[yellow]drift[/] {escape(drift.model)}: {escape(drift.text)}")
    for note in plan.notes:
        out.print(f"[yellow]note[/] {escape(note.model)}: {escape(note.text)}")
    show_gpus(out, plan.gpus)
    number = counts(plan)
    if not (plan.changes or plan.held or plan.refused):
        up, at_rest = number["unchanged"], number["resting"]
        text = f"{up} models are as their files want them" if up else "No models are up"
        text += f", {at_rest} at rest." if at_rest else "."
        out.print(f"[green]{'Done' if done else 'Nothing to do'}.[/] {text}")
        return
    head = "Outcome" if done else "Plan"
    out.print(
        f"[bold]{head}:[/] {number['add']} to add, {number['replace']} to replace, "
        f"{number['update']} to update in place, {number['front door']} at the front door, "
        f"{number['load']} to load, {number['sleep']} to sleep, {number['unload']} to unload, "
        f"{number['remove']} to remove, {number['restore']} to restore; {number['held']} held, "
        f"{number['refused']} refused, {number['unchanged']} unchanged, {number['resting']} at rest."
    )


def show_status(rows: list[dict[str, Any]], notes: list[str]) -> None:
    """One row a model."""
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    by = ("CHANGED BY",) if any(row["changed_by"] for row in rows) else ()
    for heading in (
        "MODEL",
        "STATE",
        "SYNC",
        "POLICY",
        "USED",
        "REPLICAS",
        "IN FLIGHT",
        "APPLICATION",
        "FILE",
        *by,
    ):
        table.add_column(heading, overflow="fold", no_wrap=heading != "FILE")
    styles = {"loaded": "green", "failed": "red", "loading": "yellow", "unloading": "yellow", "unloaded": "dim"}
    for row in rows:
        style = styles.get(row["state"], "")
        table.add_row(
            escape(row["model"]),
            f"[{style}]{row['state']}[/]" if style else row["state"],
            row["sync"],
            row["policy"] or "-",
            _used(row),
            row["replicas"],
            "?" if row["in_flight"] is None else str(row["in_flight"]),
            row["application"] or "-",
            escape(row["file"] or "-"),
            *([escape(_changed_by(row))] if by else ()),
        )
    if rows:
        out.print(table)
    else:
        out.print("No models are declared, and none run.")
    for row in rows:
        if row["reason"]:
            colour = {"failed": "red", "loading": "yellow"}.get(row["state"], "dim")
            out.print(f"[{colour}]{escape(row['model'])}[/]: {escape(row['reason'])}")
        if row["suspended"] and row["suspended"] not in (row["reason"] or ""):
            out.print(f"[yellow]{escape(row['model'])}[/]: {escape(row['suspended'])}")
        if row["override"]:
            out.print(f"[yellow]{escape(row['model'])}[/]: {escape(row['override']['text'])}")
    for note in notes:
        out.print(f"[yellow]note[/] {escape(note)}")


def _changed_by(row: dict[str, Any]) -> str:
    """Who changed the file of a model last, and with which commit."""
    commit = row["changed_by"]
    return f"{commit['author']} ({commit['id'][:8]})" if commit else "-"


def _used(row: dict[str, Any]) -> str:
    """How long ago a model that is up was last used."""
    if row["idle_seconds"] is None:
        return "-"
    return "now" if row["in_flight"] else f"{in_time(row['idle_seconds'])} ago"


def _show_change(out: Console, change: Change) -> None:
    symbol, style = _SYMBOLS[change.action]
    what = change.action.value
    if change.action is Action.REPLACE and change.order is not None:
        what += ", beside the old version" if change.order is Order.BESIDE else ", in turn: no room for both"
    phase = f" [dim]({escape(change.phase)})[/]" if change.phase else ""
    out.print(f"[{style}]{symbol} {escape(change.model)}[/] {what}{phase}")
    out.print(f"      [dim]because[/] {escape(change.cause)}")
    versions = [name for name in (change.old, change.new) if name]
    if versions:
        out.print(f"      [dim]version[/] {escape(' -> '.join(versions))}")
    for field in change.fields:
        out.print(f"      {_field(field)}")
    if change.memory is not None:
        out.print(f"      [dim]memory[/] {escape(memory_in_words(change.memory))}")
    for each in change.downloads:
        out.print(f"      [dim]download[/] {escape(_download(each))}")


def _download(each: CopyPlan) -> str:
    what = f"{each.repo}@{each.commit[:8]} ({each.revision})"
    free = f", {in_words(each.free)} free" if each.free is not None else ""
    if each.total is None:
        return f"{what}: size unknown{free}" + (f"; {each.note}" if each.note else "")
    missing = max(0, each.total - each.done)
    return f"{what}: {in_words(missing)} to fetch, {in_words(each.done)} on disk{free}"


def _field(change: FieldChange) -> str:
    style = _EFFECT_STYLE[change.effect]
    values = f"{_value(change.old)} -> {_value(change.new)}"
    return f"{escape(change.path)}: {escape(values)}  [{style}]({change.effect.value})[/]"


def _value(value: Any) -> str:  # noqa: ANN401 -- any JSON value
    text = "(absent)" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _show_held(out: Console, held: Held, now: float) -> None:
    out.print(f"[red]! {escape(held.model)}[/] held: {held.kind.value}")
    out.print(f"      {escape(held.reason)}")
    for advice in held.advice:
        out.print(f"      [dim]it would with[/] {escape(advice)}")
    if held.advice:
        out.print("      [dim]reconcile --force tries it as it is[/]")
    wait = max(0, round(held.retry_at - now)) if held.retry_at is not None else 0
    if held.on_request:
        out.print(f"      [dim]a request {f'in {wait} s ' if wait else ''}tries it again, or `reconcile load`[/]")
    elif held.retry_at is not None:
        out.print(f"      [dim]next try in {wait} s; reconcile --retry-failed tries now[/]")
