"""The command that has a git source look at its repository now."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.option("--wait", is_flag=True, help="Wait until the revision is settled, and exit as `reconcile` does.")
@click.pass_obj
def sync(
    shared: dict[str, Any],
    *,
    wait: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Look at the git repository now, and take over what is new.

    Needs a reconciler that runs. Where the source is a folder there is nothing to do: it is watched. Exit 3: the
    repository cannot be reached, or what it has is refused; the last good revision goes on being served.
    """
    from reconciler.cli import sync as command  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(command.sync(settings, wait=wait, output=output))
