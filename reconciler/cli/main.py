"""The `reconcile` command. Imports nothing heavy: each command fetches what it needs when it runs.

Exit codes: 0 nothing to do, or done; 1 error; 2 changes pending (`--detailed-exitcode`); 3 done in part; 4 refused
by a safety rule, or a stale plan.
"""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler import __version__
from reconciler.cli.by_hand_commands import load, pin, unload, unpin
from reconciler.cli.doctor_commands import doctor
from reconciler.cli.edge_commands import edge
from reconciler.cli.history_commands import history, rollback
from reconciler.cli.install_service_commands import install_service, uninstall_service
from reconciler.cli.keys_commands import keys
from reconciler.cli.lock_commands import lock, unlock
from reconciler.cli.logs_commands import logs
from reconciler.cli.options import CONTEXT, merged, shared_options
from reconciler.cli.plan_commands import apply, plan
from reconciler.cli.remove_commands import remove
from reconciler.cli.suspend_commands import resume, suspend
from reconciler.cli.sync_commands import sync
from reconciler.host.errors import UserError

_EPILOG = """\b
Exit codes:
  0  nothing to do, or done
  1  error
  2  changes are pending (only with --detailed-exitcode)
  3  done in part: some model failed, is held, or its file is invalid
  4  refused by a safety rule, or a saved plan is stale

\b
Examples:
  reconcile validate                 check the model files, every mistake at once
  reconcile --dry-run                what would happen, and why; changes nothing
  reconcile                          make the cluster match the files, once
  reconcile --watch                  stay, and keep it so
  reconcile plan --against REV       what a proposed change would do
  reconcile status                   what is up, and what is not and why
  reconcile sync                     look at the git repository now
  reconcile catalogue qwen           well-known models
  reconcile fit qwen3-0.6b --gpu l4  how much memory it takes, and whether it fits
  reconcile add Qwen/Qwen3-0.6B      write a model file
  reconcile remove qwen3-0.6b        remove its file, or propose that to the git repository
  reconcile pull                     fetch weights without serving
  reconcile load qwen3-0.6b          bring a model up now, and wait until it answers
  reconcile pin qwen3-0.6b --for 2h  keep it up for a time, whatever its file says
  reconcile history qwen3-0.6b       what became of a model, and which commit did it
  reconcile rollback qwen3-0.6b      back to the version before
  reconcile suspend --all --for 1h   leave everything exactly as it is
  reconcile logs qwen3-0.6b -f       what it, Serve and vLLM log, by time
  reconcile keys add alice           a key for the models; --scope admin: for the page
  reconcile doctor                   what is wrong with this machine, and what to do

Settings come from options, RECONCILE_* variables or reconcile.toml; see docs/settings.md.
"""


@click.group(invoke_without_command=True, context_settings=CONTEXT, epilog=_EPILOG)
@shared_options
@click.option("--watch", is_flag=True, help="Stay and keep the cluster as the files want it.")
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@click.option("--detailed-exitcode", is_flag=True, help="With --dry-run: exit 2 where changes are pending.")
@click.option(
    "--dangerous-allow-removals",
    is_flag=True,
    help="Carry out removals that a safety rule refuses (more than half of what runs, or all of it).",
)
@click.option("--retry-failed", is_flag=True, help="Try versions that failed again now, whatever their backoff.")
@click.option("--force", is_flag=True, help="Try also what does not fit by the estimate of its memory.")
@click.version_option(__version__, prog_name="reconcile")
@click.pass_context
def cli(
    context: click.Context,
    *,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
    watch: bool,
    dry_run: bool,
    detailed_exitcode: bool,
    dangerous_allow_removals: bool,
    retry_failed: bool,
    force: bool,
) -> None:
    """Make a Ray Serve cluster serve the models that a folder of YAML files declares.

    Without a command it converges once: it starts, replaces and removes what the files in models.d ask for, waits
    until every model answers, and exits.
    """
    context.obj = {"state_dir": state_dir, "models_dir": models_dir, "output": output}
    if context.invoked_subcommand is not None:
        return
    if detailed_exitcode and not dry_run:
        raise click.UsageError("--detailed-exitcode goes with --dry-run")
    if watch and dry_run:
        raise click.UsageError("--watch and --dry-run exclude each other")
    from reconciler.cli import common, run  # noqa: PLC0415
    from reconciler.core.turn import Wishes  # noqa: PLC0415

    settings = common.settings_of(state_dir, models_dir)
    wishes = Wishes(dangerous_allow_removals, retry_failed, force)
    if dry_run:
        code = run.dry_run(settings, wishes, output=output, detailed_exitcode=detailed_exitcode)
    elif watch:
        code = run.watch(settings, wishes)
    else:
        code = run.converge(settings, wishes, output=output)
    context.exit(code)


@cli.command(context_settings=CONTEXT)
@shared_options
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.pass_obj
def validate(
    shared: dict[str, Any],
    *,
    paths: tuple[Path, ...],
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Check model files: all of models.d, or the files and folders named.

    Every mistake of every file is printed as file:line:column with what is allowed. Needs no cluster.
    """
    from reconciler.cli import files  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(files.validate(settings, paths, output=output))


@cli.command(context_settings=CONTEXT)
@shared_options
@click.pass_obj
def status(shared: dict[str, Any], *, state_dir: Path | None, models_dir: Path | None, output: str) -> None:
    """Show every model: what its file wants, what is up, and the reason where the two differ."""
    from reconciler.cli import inspect  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(inspect.status(settings, output=output))


@cli.command(context_settings=CONTEXT)
@shared_options
@click.argument("names", nargs=-1)
@click.pass_obj
def render(
    shared: dict[str, Any], *, names: tuple[str, ...], state_dir: Path | None, models_dir: Path | None, output: str
) -> None:
    """Print the Serve config that would be applied, for all models or those named.

    It is an ordinary config: `serve deploy` takes it. It has passed Ray Serve's own schema where Ray is installed.
    Needs no cluster.
    """
    from reconciler.cli import files  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(files.render(settings, names, output=output))


@cli.command(
    context_settings=CONTEXT,
    help="""Print the JSON Schema of model files, for editors.

    Save it, and put this line on top of each model file:

    \b
        # yaml-language-server: $schema=../schema/model.schema.json
    """,
)
def schema() -> None:
    """Print the JSON Schema."""
    from reconciler.cli import files  # noqa: PLC0415

    files.schema()


@cli.command(context_settings=CONTEXT)
@shared_options
@click.argument("repo")
@click.option("--revision", help="Branch, tag or commit (main).")
@click.option("--name", help="The model's name; the default is made of the repository's.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Print the file instead of writing it.")
@click.option("--force", is_flag=True, help="Replace a file that is there; write one also for what is refused.")
@click.pass_obj
def add(
    shared: dict[str, Any],
    *,
    repo: str,
    revision: str | None,
    name: str | None,
    to_stdout: bool,
    force: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Write a commented model file for a repository of the hub, or for a name in `reconcile catalogue`.

    Task and context length come from the repository's own metadata. Nothing is downloaded or served yet.
    """
    from reconciler.cli import add as adding  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    code = adding.add(settings, repo, revision=revision, name=name, stdout=to_stdout, force=force, output=output)
    sys.exit(code)


@cli.command(context_settings=CONTEXT)
@shared_options
@click.argument("words", nargs=-1)
@click.pass_obj
def catalogue(
    shared: dict[str, Any], *, words: tuple[str, ...], state_dir: Path | None, models_dir: Path | None, output: str
) -> None:
    """List well-known models, all or those that match, offline; `reconcile add NAME` writes a file for one."""
    from reconciler.cli import add as adding  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(adding.catalogue(settings, " ".join(words), output=output))


@cli.command(context_settings=CONTEXT)
@shared_options
@click.argument("names", nargs=-1)
@click.pass_obj
def pull(
    shared: dict[str, Any], *, names: tuple[str, ...], state_dir: Path | None, models_dir: Path | None, output: str
) -> None:
    """Fetch and verify the weights of models, all or those named, without serving them.

    What is on disk already is not fetched again, and a download that was interrupted goes on where it stopped.
    Needs no cluster.
    """
    from reconciler.cli import pull as pulling  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(pulling.pull(settings, names, output=output))


@cli.command(context_settings=CONTEXT)
@shared_options
@click.option("--dry-run", is_flag=True, help="Say what would go, and how much that frees; remove nothing.")
@click.option("--all", "everything", is_flag=True, help="Also revisions that others fetched into the cache.")
@click.option("--without-cluster", is_flag=True, help="No Ray runs: do not look at what is in use.")
@click.option("--dangerous-allow-removals", is_flag=True, help="Go on although no model file is there.")
@click.pass_obj
def gc(
    shared: dict[str, Any],
    *,
    dry_run: bool,
    everything: bool,
    without_cluster: bool,
    dangerous_allow_removals: bool,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Remove weights that no model file needs from the hub's cache.

    What a model reads, or may come back to, stays; so does what others fetched, unless --all is given.
    """
    from reconciler.cli import gc as collecting  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    code = collecting.gc(
        settings,
        dry_run=dry_run,
        everything=everything,
        without_cluster=without_cluster,
        allow_removals=dangerous_allow_removals,
        output=output,
    )
    sys.exit(code)


@cli.command(context_settings=CONTEXT)
@shared_options
@click.argument("name", required=False)
@click.option("--model-config", type=click.Path(path_type=Path), help="A config.json, for bare facts.")
@click.option("--weights-gib", type=float, help="GiB of all weights together, once loaded.")
@click.option("--parameters", type=int, help="Parameters of the whole model.")
@click.option("--quantization", help="Where config.json does not say it: awq, gptq, fp8, nvfp4, w4a16, ...")
@click.option("--tensor-parallel", type=int, help="The default is the fewest ranks on which it fits.")
@click.option("--pipeline-parallel", type=int, help="Stages that the layers are dealt out to.")
@click.option("--expert-parallel", is_flag=True, help="Whole experts on each rank.")
@click.option("--max-model-len", type=int, help="Context length in tokens.")
@click.option("--max-num-seqs", type=int, help="Sequences that run at once.")
@click.option("--max-num-batched-tokens", type=int, help="Tokens that one step computes at most.")
@click.option("--dtype", help="Type of weights and activations.")
@click.option("--kv-cache-dtype", help="Type of the KV cache: auto, fp8, bfloat16, ...")
@click.option("--enforce-eager", is_flag=True, help="Without CUDA graphs.")
@click.option("--gpu", help="h100-80g, a100-40g, l4, rtx-4090, ...")
@click.option("--gpu-memory-gib", type=float, help="Memory of one GPU, as CUDA reports it.")
@click.option("--gpus", type=int, help="How many alike there are.")
@click.option("--gpu-memory-utilization", type=float, help="Share of each GPU, 0 to 1.")
@click.option("--kv-cache-memory-gib", type=float, help="Size of the KV cache, instead of what is left over.")
@click.option("--pooling", is_flag=True, help="The model embeds, scores or classifies.")
@click.option("--language-model-only", is_flag=True, help="A vision model without its tower.")
@click.pass_obj
def fit(
    shared: dict[str, Any],
    /,
    *,
    name: str | None,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
    **options: Any,  # noqa: ANN401 -- the fields of FitOptions, by name
) -> None:
    """Say how much memory a model takes on each GPU, whether it fits, and what to change if it does not.

    Of a declared model (NAME), on the GPUs that are there or on --gpu; or of bare facts (--model-config), which
    need neither a GPU nor a cluster, and neither torch nor vLLM. Nothing is downloaded but the model's config.json
    and the headers of its tensors. Exit 0: it fits; 3: it does not.
    """
    from reconciler.cli import fit as fitting  # noqa: PLC0415
    from reconciler.cli.fit_options import FitOptions  # noqa: PLC0415

    settings, output = merged(shared, state_dir, models_dir, output)
    sys.exit(fitting.fit(settings, name, options=FitOptions(**options), output=output))


for command in (
    plan, apply, load, unload, pin, unpin, suspend, resume, history, rollback, remove, sync, lock, unlock, logs,
    keys, edge, doctor, install_service, uninstall_service,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """The entry point. A wrong use of the command is one line and exit 1."""
    try:
        sys.exit(cli.main(prog_name="reconcile", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        # Not click's 2, which here means that changes are pending.
        sys.exit(1)
    except UserError as error:
        click.echo(f"reconcile: {error}", err=True)
        sys.exit(1)
    except click.exceptions.Abort:
        sys.exit(130)
