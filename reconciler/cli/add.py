"""The commands that help to begin: add writes a model file, catalogue lists models to choose from.

`add` is the same operation as over the API and on the page: where the files come from git, it pushes a branch or
prints the commit.
"""

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click
from rich.markup import escape
from rich.table import Table

from reconciler.cli.changes import plain, say_branch, say_patch, user
from reconciler.cli.common import ERROR, OK, PARTIAL, fail, quiet
from reconciler.cli.show import console, print_json
from reconciler.core import catalogue as models
from reconciler.core.catalogue import Entry
from reconciler.core.edit import Edit, EditError, File, NoFileError
from reconciler.core.new_file import one_line, task_of
from reconciler.core.parse import parse_all
from reconciler.core.render import RenderError
from reconciler.core.weights import in_words
from reconciler.host.settings import Settings
from reconciler.loop.edits import make_edits
from reconciler.loop.new_models import LONGEST_LINE, NewModel, NewModelError, file_for, name_for, new_model
from reconciler.loop.rendering import make_renderer
from reconciler.loop.source import make_source
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
    """Write or propose a model file for a repository or a model of the catalogue.

    Exit 3 where it would not be fetched.

    Args:
        settings: Where the model files come from, and what may be fetched.
        repo: As `owner/name`, or a name of the catalogue.
        revision: Branch, tag or commit; the default is the main branch.
        name: The model's name; the default is made from the repository's.
        stdout: Print the file, and change nothing.
        force: Replace a file that is there, and write one though the repository is refused.
        output: `text` or `json`.
        hub: Where to ask; the default is the hub of the environment.
    """
    quiet(settings)
    try:
        if not (stdout or force):
            _must_be_new(settings, file_for(name_for(repo, name, revision)[1]))
        found = new_model(settings, repo, name=name, revision=revision, hub=hub)
        if found.refusal and not force:
            _say(f"reconcile: {found.refusal}", err=True)
            click.echo("Nothing was written; --force writes the file all the same.", err=True)
            return PARTIAL
        edit = None if stdout else asyncio.run(_add(settings, found, force=force))
    except (NewModelError, EditError, RenderError, FileNotFoundError) as error:
        fail(str(error))
    for problem in edit.problems if edit is not None else _alone(found):
        fail(f"{plain(problem)}; --name chooses another name")
    _report(settings, found, edit, output=output)
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


def _must_be_new(settings: Settings, file: str) -> None:
    """End where the folder has a file of that name, before anybody is asked."""
    path = settings.models_dir / file
    if settings.source == "folder" and os.path.lexists(path):
        _exists(str(path))


def _exists(path: str) -> NoReturn:
    fail(f"{path} exists; --force replaces it, --name chooses another name")


async def _add(settings: Settings, found: NewModel, *, force: bool) -> Edit:
    if settings.source == "folder":
        # For everybody to read, as the files in it.
        settings.models_dir.mkdir(parents=True, exist_ok=True)
    edits = make_edits(settings, make_source(settings), make_renderer(settings))
    try:
        there: File | None = await edits.read(found.file)
    except NoFileError:
        there = None
    if there is not None and not force:
        _exists(there.path)
    seen = there.digest if there is not None else None
    return await edits.apply(found.file, found.text, seen, message=f"Add {found.name}", author=user())


def _alone(found: NewModel) -> list[str]:
    """What is wrong with the file, whatever other files there are."""
    return [str(problem) for problem in parse_all({found.file: found.text.encode()}).problems]


def _report(settings: Settings, found: NewModel, edit: Edit | None, *, output: str) -> None:
    facts = found.facts
    notes = [*([found.refusal] if found.refusal else []), *found.notes]
    path = None if edit is None else _where(settings, edit)
    if output == "json":
        print_json(
            {
                "path": path,
                "text": found.text,
                "facts": {**asdict(facts), "task": task_of(facts).value},
                "notes": notes,
                "branch": edit.branch if edit is not None else None,
                "commit": edit.commit if edit is not None else None,
                "patch": edit.patch if edit is not None else None,
            }
        )
        return
    if edit is None:
        click.echo(found.text, nl=False)
    elif edit.patch is not None:
        say_patch(edit)
    elif edit.branch is not None:
        say_branch(edit, "adds")
    elif not edit.written:
        _say(f"{path} says that already.")
    else:
        size = in_words(facts.weight_bytes) if facts.weight_bytes else "size unknown"
        _say(f"Wrote {path}: {facts.repo}, {task_of(facts).value}, {size}, licence {facts.licence or 'unknown'}.")
    printed = edit is None or edit.patch is not None
    for note in notes:
        _say(f"note: {note}", err=printed)
    if edit is not None and settings.source == "folder":
        click.echo("Look it over; `reconcile --dry-run` shows what it would do.")


def _where(settings: Settings, edit: Edit) -> str:
    """The file, for people: in a folder its own path, else as the source names it."""
    return str(settings.models_dir / Path(edit.path).name) if settings.source == "folder" else edit.path


def _say(text: str, *, err: bool = False) -> None:
    # What the hub says is in it, and must not steer the terminal.
    click.echo(one_line(text, LONGEST_LINE), err=err)
