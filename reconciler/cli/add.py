"""The commands that help to begin: add writes a model file, catalogue lists models to choose from."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from reconciler.cli.common import ERROR, OK, PARTIAL, fail
from reconciler.cli.show import console, print_json
from reconciler.core import catalogue as models
from reconciler.core.catalogue import Entry
from reconciler.core.edit import EditError
from reconciler.core.new_file import (
    one_line,
    task_of,
)
from reconciler.core.parse import parse_all
from reconciler.core.weights import in_words
from reconciler.host.settings import Settings
from reconciler.loop.new_models import LONGEST_LINE, NewModel, NewModelError, file_for, name_for, new_model
from reconciler.sources.edit_folder import FolderEdits
from reconciler.sources.folder import FolderSource
from reconciler.weights.hub import Hub


def add(
    settings: Settings,
    repo: str,
    *,
    revision: str | None,
    name: str | None,
    stdout: bool,
    force: bool,
    output: str,
    hub: Hub | None = None,
) -> int:
    """Write a model file for a repository or a model of the catalogue; exit 3 where it would not be fetched.

    Args:
        settings: Where the folder of model files is, and what may be fetched.
        repo: As `owner/name`, or a name of the catalogue.
        revision: Branch, tag or commit; the default is the main branch.
        name: The model's name; the default is made from the repository's.
        stdout: Print the file instead of writing it.
        force: Replace a file that is there, and write one though the repository is refused.
        output: `text` or `json`.
        hub: Where to ask; the default is the hub of the environment.
    """
    if settings.source == "git" and not stdout:
        fail("the model files come from git: --stdout prints the file, to be committed there")
    try:
        path = settings.models_dir / file_for(name_for(repo, name, revision)[1])
        if not (stdout or force) and (path.is_symlink() or path.exists()):
            fail(f"{path} exists; --force replaces it, --name chooses another name")
        found = new_model(settings, repo, name=name, revision=revision, hub=hub)
    except NewModelError as error:
        fail(str(error))
    if found.refusal and not force:
        _say(f"reconcile: {found.refusal}", err=True)
        click.echo("Nothing was written; --force writes the file all the same.", err=True)
        return PARTIAL
    text = found.text
    _check_file(settings.models_dir, path.name, text, alone=stdout)
    if not stdout:
        _write(FolderEdits(settings.models_dir, settings.state_dir), path.name, text)
    _report(found, None if stdout else path, text, output=output)
    return OK


def catalogue(settings: Settings, query: str, *, output: str) -> int:
    """List the catalogue's models that match; exit 1 with near names where none does."""
    del settings  # All commands are called alike.
    found = models.matches(query)
    near = () if found else models.near(query)
    if output == "json":
        print_json({"models": [asdict(each) for each in found], "near": [each.name for each in near]})
        return OK if found else ERROR
    if not found:
        names = ", ".join(each.name for each in near)
        click.echo(f"reconcile: no model of the catalogue matches {query!r}{_meant(names)}", err=True)
        return ERROR
    out = console()
    out.print(_table(found))
    out.print("[dim]reconcile add NAME writes a model file; any repository of the hub can be added as well.[/]")
    return OK


def _table(entries: tuple[Entry, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "TASK", "SIZE", "CONTEXT", "LICENCE", "REPO"):
        right = heading in ("SIZE", "CONTEXT")
        table.add_column(heading, overflow="fold", no_wrap=heading != "REPO", justify="right" if right else "left")
    for entry in entries:
        table.add_row(
            escape(entry.name),
            entry.task.value,
            f"{entry.size_gib:g} GiB",
            str(entry.context),
            escape(entry.licence) + (" [yellow](gated)[/]" if entry.gated else ""),
            escape(entry.repo),
        )
    return table


def _meant(names: str) -> str:
    return f" (did you mean {names}?)" if names else ""


def _check_file(folder: Path, file: str, text: str, *, alone: bool) -> None:
    """End with the reason where the file would be invalid, or claims a name that another file has."""
    files: dict[str, bytes] = {}
    if not alone and folder.exists():
        snapshot = asyncio.run(FolderSource(folder).read())
        if snapshot.unreadable:
            fail(snapshot.unreadable)
        files |= snapshot.files
    path = f"{folder.name}/{file}"
    parsed = parse_all({**files, path: text.encode()})
    for problem in parsed.problems:
        if problem.path == path:
            hint = f" ({problem.hint})" if problem.hint else ""
            fail(f"{problem.message}{hint}; --name chooses another name")


def _write(folder: FolderEdits, name: str, text: str) -> None:
    try:
        folder.write(name, text.encode(), before=folder.read(name))
    except EditError as error:
        fail(str(error))


def _report(found: NewModel, path: Path | None, text: str, *, output: str) -> None:
    facts = found.facts
    notes = [*([found.refusal] if found.refusal else []), *found.notes]
    if output == "json":
        print_json(
            {
                "path": None if path is None else str(path),
                "text": text,
                "facts": {**asdict(facts), "task": task_of(facts).value},
                "notes": notes,
            }
        )
        return
    if path is None:
        click.echo(text, nl=False)
    else:
        size = in_words(facts.weight_bytes) if facts.weight_bytes else "size unknown"
        _say(f"Wrote {path}: {facts.repo}, {task_of(facts).value}, {size}, licence {facts.licence or 'unknown'}.")
    for note in notes:
        _say(f"note: {note}", err=path is None)
    if path is not None:
        click.echo("Look it over; `reconcile --dry-run` shows what it would do.")


def _say(text: str, *, err: bool = False) -> None:
    # What the hub says is in it, and must not steer the terminal.
    click.echo(one_line(text, LONGEST_LINE), err=err)
