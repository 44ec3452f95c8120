"""The command that says what is wrong with a machine, and what to do."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.pass_obj
def doctor(shared: dict[str, Any], *, state_dir: Path | None, models_dir: Path | None, output: str) -> None:
    """Look at driver, GPUs, versions, disk, ports, exposure, secrets, certificate, hub, source, Serve, reconciler.

    Says of each finding why it matters and what to do. Changes nothing, and takes 10 seconds at most. Exit 1: an
    error was found; 3: a warning, and no error.
    """
    from reconciler.cli import doctor as looking  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(looking.doctor(settings, output=output))
