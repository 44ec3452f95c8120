"""The commands of plans: plan, apply."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


# Not the shared options: only a plan can be Markdown.
@click.command(context_settings=CONTEXT)
@click.option("--state-dir", type=click.Path(path_type=Path), help="The reconciler's own files (.reconcile).")
@click.option("--models-dir", type=click.Path(path_type=Path), help="Folder of the model files (models.d).")
@click.option(
    "--output",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    help="For people, machines, or the comment of a pull request.",
)
@click.option("--against", metavar="REV|FOLDER", help="The proposed tree, instead of the model files.")
@click.option("--out", type=click.Path(path_type=Path), help="Save the plan in a file for `reconcile apply`.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit 2 where changes are pending.")
@click.option("--without-cluster", is_flag=True, help="Only compare the files of two trees.")
@click.option(
    "--base", metavar="REV|FOLDER", help="With --without-cluster: the other tree; the model files if left out."
)
@click.pass_obj
def plan(
    shared: dict[str, Any],
    *,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
    against: str | None,
    out: Path | None,
    detailed_exitcode: bool,
    without_cluster: bool,
    base: str | None,
) -> None:
    """Print what would change between what runs and the model files, or a tree that is proposed. Changes nothing.

    The proposed tree is a folder of model files, or a revision of the repository that the models folder lies in. A
    plan of the model files as they are can be saved, and applied later as it is.
    """
    if base is not None and not without_cluster:
        raise click.UsageError("--base goes with --without-cluster; without it, the base is what runs")
    if without_cluster and base is None and against is None:
        raise click.UsageError("--without-cluster compares two trees: name one with --against or --base")
    if out is not None and against is not None:
        raise click.UsageError("a plan of a proposed tree is a preview: merge it, then plan and apply")
    if out is not None and without_cluster:
        raise click.UsageError("--out saves a plan, and that takes a look at the cluster")
    from reconciler.cli import plan as planning  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    if without_cluster:
        code = planning.compare(settings, base, against, output=output, detailed_exitcode=detailed_exitcode)
    else:
        code = planning.plan(
            settings, against=against, out=out, output=output, detailed_exitcode=detailed_exitcode
        )
    sys.exit(code)


@click.command(context_settings=CONTEXT)
@shared_options
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def apply(
    shared: dict[str, Any], *, file: Path, state_dir: Path | None, models_dir: Path | None, output: str
) -> None:
    """Carry out a plan that `reconcile plan --out FILE` saved, as it is, or refuse it as stale.

    It looks again first. Where the model files, the applications in Serve or the changes differ by now, nothing is
    done and the exit code is 4.
    """
    from reconciler.cli import plan as planning  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(planning.apply(settings, file, output=output))
