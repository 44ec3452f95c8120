"""`reconcile sync`: asks the reconciler that runs to look at its git repository now, and says what it found."""

import asyncio
from dataclasses import asdict

import click

from reconciler.cli import run
from reconciler.cli.common import OK, PARTIAL, fail
from reconciler.cli.show import print_json
from reconciler.core.turn import Wishes
from reconciler.host.lock import holder
from reconciler.host.settings import Settings
from reconciler.loop.running import NoReconcilerError, RefusedError, Synced, sync_source

_INTERRUPTED = 130
_SHORT = 12


def sync(settings: Settings, *, wait: bool, output: str) -> int:
    """Look now; exit 3 where nothing can be taken over, with `wait` also where a model is held."""
    try:
        found = asyncio.run(sync_source(settings.state_dir))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except RefusedError as error:
        fail(str(error))
    except NoReconcilerError as error:
        if holder(settings.state_dir) is None:
            fail(
                f"no reconciler runs here (state dir {settings.state_dir}); "
                "`reconcile --watch` starts one, and looks as it does"
            )
        fail(f"the reconciler that runs here does not answer: {error}")
    code = PARTIAL if found.problem else OK
    wait = wait and found.source == "git" and code == OK
    # With --wait there is one document: the plan's.
    if output == "json" and not wait:
        print_json(asdict(found))
    elif output != "json":
        click.echo(_in_words(found), err=bool(found.problem))
    if wait:
        return run.converge(settings, Wishes(), output=output)
    return code


def _in_words(found: Synced) -> str:
    if found.source != "git":
        return "nothing to do: the source is a folder, which is watched"
    at = f"{found.commit[:_SHORT]} ({_plain(found.ref)})" if found.commit else "no revision"
    if found.problem:
        return f"nothing taken over, still at {at}: {_plain(found.problem)}"
    if not found.new:
        return f"nothing new: still at {at}"
    return f"taken over {at} by {_plain(found.author)}: {_plain(found.subject)}"


def _plain(text: str) -> str:
    """What others wrote, without what would steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
