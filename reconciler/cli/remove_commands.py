"""The command that removes a model's file."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@click.option("--message", default="", help="Why, for the commit where the files come from git.")
@click.pass_obj
def remove(
    shared: dict[str, Any],
    *,
    name: str,
    yes: bool,
    message: str,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Remove the file of a model; NAME is the model's, or the file's.

    In a folder the file is removed, and kept in the state directory. Where the files come from git, the change is
    pushed to a branch (git_push_branch), or printed as a patch for `git am`; nothing else changes until somebody
    merges it. The weights stay: `reconcile gc` removes what no file asks for.
    """
    from reconciler.cli import remove as removing  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(removing.remove(settings, name, yes=yes, message=message, output=output))
