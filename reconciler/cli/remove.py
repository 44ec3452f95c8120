"""`reconcile remove`: removes the file of a model, or proposes that where the files come from git.

The same operation as over the API and on the page. It needs no reconciler that runs; one that does sees the change
as any other.
"""

import asyncio
import difflib
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from reconciler.cli.changes import plain, say_branch, say_patch, user
from reconciler.cli.common import OK, fail, quiet
from reconciler.cli.show import print_json
from reconciler.core.edit import Edit, EditError, File
from reconciler.core.parse import parse_all
from reconciler.core.render import RenderError
from reconciler.host.settings import Settings
from reconciler.loop.edits import Edits, make_edits
from reconciler.loop.rendering import make_renderer
from reconciler.loop.source import make_source


def remove(settings: Settings, name: str, *, yes: bool, message: str, output: str) -> int:
    """Remove a model's file, after showing what that is.

    Args:
        settings: Where the files come from.
        name: The model's, or its file's.
        yes: Do not ask.
        message: Why, for the commit.
        output: `text` or `json`.
    """
    quiet(settings)
    try:
        edits = make_edits(settings, make_source(settings), make_renderer(settings))
        file = _file_of(asyncio.run(edits.files()), name)
        edit = asyncio.run(edits.preview(file.path, None, file.digest))
        if edits.writes and not edit.problems and not yes:
            _ask(edit, output=output)
        if not edit.problems:
            edit = asyncio.run(
                edits.apply(file.path, None, file.digest, message=message or f"Remove {name}", author=user())
            )
    except (EditError, RenderError, FileNotFoundError) as error:
        fail(str(error))
    if edit.problems:
        for problem in edit.problems:
            click.echo(plain(problem), err=True)
        fail(f"nothing was removed: without {edit.path} the files above would be invalid")
    if output == "json":
        print_json(asdict(edit))
    else:
        _report(settings, edits, edit)
    return OK


def _file_of(files: Sequence[File], name: str) -> File:
    """The file that declares a model, or has this name; invalid ones only where none else is meant."""
    by_path = {each.path: each for each in files}
    parsed = parse_all({path: each.text.encode() for path, each in by_path.items()})
    if name in parsed.valid:
        return by_path[parsed.valid[name].path]
    claimed = [each.path for each in parsed.invalid if each.claims and name in each.claims]
    named = [path for path in by_path if name in (path, path.rpartition("/")[2])]
    found = claimed or named
    if not found:
        near = difflib.get_close_matches(name, parsed.valid, n=3)
        fail(f"no model file declares {name}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    if len(found) > 1:
        fail(f"{' and '.join(found)} declare {name}: give the name of the file")
    return by_path[found[0]]


def _ask(edit: Edit, *, output: str) -> None:
    if output == "json" or not sys.stdin.isatty():
        fail(f"{edit.path} would be removed: say --yes")
    click.echo(plain(edit.diff), nl=False)
    click.confirm(f"Remove {edit.path}?", abort=True)


def _report(settings: Settings, edits: Edits, edit: Edit) -> None:
    if not edits.writes:
        say_patch(edit)
    elif edit.branch is not None:
        say_branch(edit, "removes")
    else:
        click.echo(f"Removed {edit.path}; it is kept as {settings.state_dir / (edit.backup or '')}.")
