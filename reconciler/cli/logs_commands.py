"""The command that reads logs: logs."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Stay, and print each line as it is written.")
@click.option(
    "-n", "--lines", type=click.IntRange(0, 10_000), default=100, show_default=True, help="How many at most."
)
@click.option("--since", help="Only lines of that time: 90s, 15m, 2h, 7d.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    type=click.Choice(["reconciler", "edge", "serve", "vllm"]),
    help="Only lines of that origin; may be given several times.",
)
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="debug",
    help="Nothing less severe.",
)
@click.pass_obj
def logs(
    shared: dict[str, Any],
    *,
    name: str | None,
    follow: bool,
    lines: int,
    since: str | None,
    origins: tuple[str, ...],
    level: str,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Show what the reconciler, the edge, Ray Serve and vLLM logged, by time: of all models, or of NAME.

    Reads the files of this machine, and asks Ray's dashboard for those of other nodes. Works whether a
    reconciler or Ray runs or not. With --output json each line is one JSON object.
    """  # fmt: skip
    from reconciler.cli import logs as reading  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    code = reading.logs(
        settings, name, follow=follow, lines=lines, since=since, origins=origins, level=level, output=output
    )
    sys.exit(code)
