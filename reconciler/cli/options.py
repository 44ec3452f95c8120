"""What every command takes. Imports nothing heavy, as all modules that define commands."""

from pathlib import Path
from typing import Any

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def shared_options(function: Any) -> Any:  # noqa: ANN401 -- click's decorators are untyped in effect
    """The options that every command has."""
    for option in (
        click.option(
            "--state-dir", type=click.Path(path_type=Path), help="The reconciler's own files (.reconcile)."
        ),
        click.option(
            "--models-dir", type=click.Path(path_type=Path), help="Folder of the model files (models.d)."
        ),
        click.option(
            "--output", type=click.Choice(["text", "json"]), default="text", help="For people or machines."
        ),
    ):
        function = option(function)
    return function


def merged(
    shared: dict[str, Any], state_dir: Path | None, models_dir: Path | None, output: str
) -> tuple[Any, str]:
    """Options may stand before or after the command's name."""
    from reconciler.cli import common  # noqa: PLC0415

    settings = common.settings_of(state_dir or shared["state_dir"], models_dir or shared["models_dir"])
    return settings, output if output != "text" else shared["output"]
