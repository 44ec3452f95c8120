"""The commands that have models left alone: suspend, resume."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="All models, those declared later too.")
@click.option("--for", "duration", help="For that long: 90s, 15m, 1h30m, 2d. The default is until `resume`.")
@click.option("--reason", default="", help="Why, for status, plan and log.")
@click.pass_obj
def suspend(
    shared: dict[str, Any],
    *,
    name: str | None,
    everything: bool,
    duration: str | None,
    reason: str,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Leave a model exactly as it is, whatever its file or the traffic says.

    One that is up goes on serving; one that is not is not brought up, not for a request either. The plan shows
    what would happen else. Where no reconciler runs, it holds for the next one.
    """
    from reconciler.cli import suspend as suspending  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    model = suspending.one_of(name, everything=everything)
    sys.exit(suspending.suspend(settings, model, duration=duration, reason=reason, output=output))


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Everything that is suspended.")
@click.pass_obj
def resume(
    shared: dict[str, Any],
    *,
    name: str | None,
    everything: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """End a suspension: the model goes where its file and the traffic want it."""
    from reconciler.cli import suspend as suspending  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(suspending.resume(settings, suspending.one_of(name, everything=everything), output=output))
