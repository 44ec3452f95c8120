"""The command that fetches weights: pull."""

import asyncio
from typing import Any

import click

from reconciler.cli.common import OK, PARTIAL, configure_log, fail, open_weights
from reconciler.cli.files import read_desired
from reconciler.cli.progress import download_bars
from reconciler.cli.show import print_json, show_problems
from reconciler.core.desired import Desired
from reconciler.core.weights import Copy, CopyState, Phase, in_words
from reconciler.core.weights_json import states_to_json
from reconciler.host.settings import Settings


def pull(settings: Settings, names: tuple[str, ...], *, output: str) -> int:
    """Fetch what models need, and serve nothing; exit 3 where something could not be had."""
    with download_bars() as show:
        configure_log(settings)
        desired, states = asyncio.run(_pull(settings, names, show))
    chosen = {name: target for name, target in desired.targets.items() if not names or name in names}
    problems = {
        name: resolution.problem or "the hub did not say in time which commit it is"
        for name, target in chosen.items()
        for resolution in target.unresolved.values()
    }
    failed = [state for state in states.values() if state.phase is not Phase.READY]
    if output == "json":
        print_json({"copies": states_to_json(states), "unresolved": problems})
    else:
        show_problems(desired.problems)
        for copy, state in states.items():
            size = in_words(state.total or 0)
            ready = state.phase is Phase.READY
            click.echo(
                f"{copy}: {'on disk and verified, ' + size if ready else f'{state.phase.value}: {state.reason}'}"
            )
        for name, problem in problems.items():
            click.echo(f"{name}: {problem}")
        if not (states or problems):
            click.echo("Nothing to fetch: these models are local folders." if chosen else "No models.")
    return PARTIAL if failed or problems or desired.problems else OK


async def _pull(settings: Settings, names: tuple[str, ...], show: Any) -> tuple[Desired, dict[Copy, CopyState]]:  # noqa: ANN401
    weights = open_weights(settings)
    try:
        desired = await read_desired(settings, weights, patience=60.0)
        unknown = sorted(set(names) - set(desired.targets))
        if unknown:
            fail(f"no valid model file declares {', '.join(unknown)}")
        wanted = {
            copy: revision
            for name, target in desired.targets.items()
            if not names or name in names
            for copy, revision in target.copies.items()
        }
        there = await weights.states(wanted)
        missing = {copy: wanted[copy] for copy, state in there.items() if state.phase is not Phase.READY}
        # Whatever runs is not looked at here, so nothing is removed to make room.
        weights.fetch(missing, still_wanted=None, keep=None)
        watcher = asyncio.create_task(_watch(weights.subscribe(), show))
        try:
            return desired, await weights.finished(wanted)
        finally:
            watcher.cancel()
    finally:
        await weights.close()


async def _watch(changes: Any, show: Any) -> None:  # noqa: ANN401 -- an iterator of states, and what shows them
    async for states in changes:
        show(states)
