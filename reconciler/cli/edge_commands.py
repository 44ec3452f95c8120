"""The commands about the edge."""

import sys
from pathlib import Path
from typing import Any

import click

from reconciler.cli.options import CONTEXT, merged, shared_options


@click.group(context_settings=CONTEXT)
def edge() -> None:
    """Start, stop or look at the edge (HAProxy), the part of the front door that outlives the reconciler.

    A reconciler that runs starts it again within a second. Further nodes may have edges of their own (follow).
    """


def _edge_command(verb: str, about: str) -> None:
    @edge.command(verb, context_settings=CONTEXT, help=about)
    @shared_options
    @click.pass_obj
    def command(shared: dict[str, Any], *, state_dir: Path | None, models_dir: Path | None, output: str) -> None:
        from reconciler.cli import edge as edges  # noqa: PLC0415

        settings, output = merged(shared, state_dir, models_dir, output)
        sys.exit(edges.edge(settings, verb, output=output))


_edge_command("start", "Start the edge, or reload it where its settings changed.")
_edge_command("stop", "Stop the edge: nothing is answered any more.")
_edge_command("status", "Say whether the edge runs, and where each model's requests go. Exit 1 where it does not.")


@edge.command(context_settings=CONTEXT)
@shared_options
@click.option("--of", "url", required=True, help="The reconciler's activator, such as http://127.0.0.1:4001.")
@click.option(
    "--token",
    type=click.Path(path_type=Path),
    required=True,
    help="A copy of edge-token from the reconciler's state directory.",
)
@click.option("--name", help="The edge's name, one of its own; the default is the host's.")
@click.option("--listen-port", type=int, help="Port of this edge (4000).")
@click.pass_obj
def follow(
    shared: dict[str, Any],
    *,
    url: str,
    token: Path,
    name: str | None,
    listen_port: int | None,
    state_dir: Path | None,
    models_dir: Path | None,
    output: str,
) -> None:
    """Run an edge on another node, which takes its routes from the reconciler and tells it what is in use.

    Stays until Ctrl-C; the edge itself goes on serving what is loaded. Serve is reached at RECONCILE_SERVE_HOST
    and RECONCILE_SERVE_PORT, as seen from here.
    """
    from reconciler.cli import edge as edges  # noqa: PLC0415

    settings, _ = merged(shared, state_dir, models_dir, output)
    sys.exit(edges.follow(settings, url, token, name=name, listen_port=listen_port))
