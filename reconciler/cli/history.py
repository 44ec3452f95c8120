"""Looking back and going back: the journal as a person reads it, and the command that rolls back."""

import asyncio
import difflib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reconciler.cli.common import OK, fail, no_answer, quiet, with_near
from reconciler.cli.show import console, print_json
from reconciler.core.journal_entry import ACTIONS, By, Entry, Outcome, moment
from reconciler.core.rollback import ALL, RollbackError, short
from reconciler.core.spec import parse_duration
from reconciler.core.words import in_time
from reconciler.host.lock import AlreadyRunningError, exclusive, holder
from reconciler.host.settings import Settings
from reconciler.loop import journal
from reconciler.loop.rollbacks import (
    RollbackAsked,
    RollbackGiven,
    RollbackHand,
    RollbackStore,
    ask_rollback,
)
from reconciler.loop.running import NoReconcilerError, RefusedError
from reconciler.loop.source import at, make_source

_LONGEST_NAME = 64
_OPTIONS = {"model": "NAME", "to": "--to", "seconds": "--for", "reason": "--reason"}
_STYLES = {
    Outcome.DONE: "green",
    Outcome.FAILED: "red",
    Outcome.REFUSED: "red",
    Outcome.HELD: "red",
    Outcome.STARTED: "yellow",
    Outcome.INTERRUPTED: "yellow",
}


def history(
    settings: Settings, name: str | None, *, limit: int, since: str | None, diff: bool, output: str
) -> int:
    """Show the journal, newest first."""
    try:
        entries = journal.read(settings.state_dir)
    except OSError as error:
        fail(f"the journal cannot be read: {error}")
    if name is not None:
        entries = _about(name, entries)
    if since is not None:
        try:
            earliest = time.time() - parse_duration(since)
        except ValueError as error:
            fail(f"--since: {error}")
        entries = [entry for entry in entries if moment(entry.at) >= earliest]
    if output == "json":
        print_json({"entries": [asdict(entry) for entry in entries[: -limit - 1 : -1]]})
    elif rows := _joined(entries)[: -limit - 1 : -1]:
        _show(rows, diff=diff)
    else:
        click.echo(
            f"Nothing is recorded of the last {since}." if since is not None else "Nothing is recorded yet."
        )
    return OK


def _about(name: str, entries: Sequence[Entry]) -> list[Entry]:
    """What concerns one model."""
    found = [entry for entry in entries if name == entry.model or name in entry.models]
    if not found:
        known = sorted({model for entry in entries for model in (entry.model, *entry.models)} - {"", ALL})
        near = difflib.get_close_matches(name[:_LONGEST_NAME], known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        fail(f"the journal says nothing of {name[:_LONGEST_NAME]!r}{hint}")
    return [entry for entry in entries if entry.model in (name, ALL) or name in entry.models]


def _joined(entries: Iterable[Entry]) -> list[Entry]:
    """One row a change: where it ended, the end takes the beginning's fields along, in its place."""
    begun: dict[tuple[str, str, str], Entry] = {}
    rows: dict[int, Entry] = {}
    places: dict[tuple[str, str, str], int] = {}
    for number, entry in enumerate(entries):
        if entry.outcome is Outcome.STARTED:
            key = (entry.model, entry.what, entry.at)
            begun[key], places[key] = entry, number
            rows[number] = entry
            continue
        key = (entry.model, entry.what, entry.since)
        if key in begun:
            del rows[places.pop(key)]
            rows[number] = replace(entry, fields=begun.pop(key).fields)
        else:
            rows[number] = entry
    return list(rows.values())


def _show(entries: Sequence[Entry], *, diff: bool) -> None:
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("WHEN", "MODEL", "WHAT", "OUTCOME", "COMMIT", "BY", "WHY"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "WHY")
    for entry in entries:
        style = _STYLES.get(entry.outcome, "")
        outcome = _outcome(entry)
        table.add_row(
            _when(entry),
            escape(entry.model or _several(entry.models)),
            escape(entry.what),
            f"[{style}]{outcome}[/]" if style else outcome,
            escape(_commit(entry)),
            escape(f"{entry.by} ({entry.author})" if entry.author and entry.by == By.FILE else entry.by or "-"),
            escape(_why(entry)),
        )
    out.print(table)
    for entry in entries:
        if diff and entry.fields:
            _show_fields(out, entry)


def _show_fields(out: Console, entry: Entry) -> None:
    head = f"{_when(entry)} {entry.model} {entry.what} {_commit(entry)}"
    out.print(f"\n[bold]{escape(head)}[/] {escape(entry.subject)}")
    for field in entry.fields:
        values = f"{_value(field.old)} -> {_value(field.new)}"
        out.print(f"      {escape(field.path)}: {escape(values)}  [dim]({field.effect.value})[/]")


def _when(entry: Entry) -> str:
    return f"{datetime.fromtimestamp(moment(entry.at)).astimezone():%Y-%m-%d %H:%M:%S}"


def _commit(entry: Entry) -> str:
    return entry.commit or short(entry.revision) or "-"


def _value(value: Any) -> str:  # noqa: ANN401 -- any JSON value
    return "(absent)" if value is None else json.dumps(value, ensure_ascii=False)


def _several(models: Sequence[str]) -> str:
    return models[0] if len(models) == 1 else f"{len(models)} models" if models else "-"


def _outcome(entry: Entry) -> str:
    if entry.seconds is None or entry.what not in ACTIONS:
        return entry.outcome.value
    return f"{entry.outcome.value} in {in_time(entry.seconds)}"


def _why(entry: Entry) -> str:
    """Why it was to happen; and how it ended, where that is another story."""
    if not entry.reason or entry.reason == entry.cause:
        return entry.cause
    return f"{entry.cause}; {entry.reason}" if entry.cause else entry.reason


# --- going back -------------------------------------------------------------------------------------------


def rollback(
    settings: Settings,
    name: str | None,
    *,
    to: str | None,
    duration: str | None,
    reason: str,
    end: bool,
    output: str,
) -> int:
    """Take a model, or all of them, back; or end that."""
    quiet(settings)
    try:
        seconds = None if duration is None else parse_duration(duration)
    except ValueError as error:
        fail(f"--for: {error}")
    try:
        asked = RollbackAsked(model=name, to=to, end=end, seconds=seconds, reason=reason)
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        fail(f"{_OPTIONS[str(mistake['loc'][0])]}: {mistake['msg']}")
    given = _carry_out(settings, asked)
    if output == "json":
        print_json(asdict(given))
        return OK
    subject = "" if given.about == ALL else f"{given.about}: "
    click.echo(f"{subject}{given.text}.")
    if not end:
        ends = "--end" if given.about == ALL else f"{given.about} --end"
        click.echo(f"`reconcile rollback {ends}` ends it earlier; `reconcile status` shows how far it is.")
    return OK


def _carry_out(settings: Settings, asked: RollbackAsked) -> RollbackGiven:
    try:
        if holder(settings.state_dir) is not None:
            return asyncio.run(ask_rollback(settings.state_dir, asked))
        # Nobody runs: the next one that does finds it.
        with exclusive(settings.state_dir):
            store, versions = RollbackStore(settings.state_dir), journal.Versions(settings.state_dir)
            source = make_source(settings)
            hand = RollbackHand(store, versions, source.read, at(source))
            return asyncio.run(hand.carry_out(asked))
    except (RollbackError, RefusedError) as error:
        fail(with_near(error))
    except (NoReconcilerError, AlreadyRunningError) as error:
        no_answer(error)
    except OSError as error:
        fail(f"the command could not be written down: {error}")
