"""The commands that say by hand where a model should be, for a time: load, unload, pin, unpin.

The reconciler that runs keeps what is asked for and carries it out. These ask it, and watch.
"""

import asyncio
import contextlib
import re
import sys
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from reconciler.activator.directory import ModelState
from reconciler.cli.common import OK, PARTIAL, fail, with_near
from reconciler.cli.show import console, print_json
from reconciler.core.overrides import Kind
from reconciler.core.spec import parse_duration
from reconciler.host.lock import holder
from reconciler.host.settings import Settings
from reconciler.loop.running import Given, NoReconcilerError, RefusedError, Standing, give_override, states

_POLL_SECONDS = 0.5
_INTERRUPTED = 130
_ENDS_EARLIER = {Kind.LOAD: "unload", Kind.UNLOAD: "load", Kind.PIN: "unpin", Kind.UNPIN: "pin"}
T = TypeVar("T")


def load(settings: Settings, name: str, *, duration: str | None, wait: bool, output: str) -> int:
    """Bring a model up now; exit 3 where that does not work."""
    return _command(settings, Kind.LOAD, name, duration, wait=wait, output=output)


def unload(settings: Settings, name: str, *, duration: str | None, wait: bool, output: str) -> int:
    """Take a model down now."""
    return _command(settings, Kind.UNLOAD, name, duration, wait=wait, output=output)


def pin(settings: Settings, name: str, *, duration: str | None, output: str) -> int:
    """Keep a model up for a time."""
    return _command(settings, Kind.PIN, name, duration, wait=False, output=output)


def unpin(settings: Settings, name: str, *, duration: str | None, output: str) -> int:
    """End a pin, or let a model that its file pins go when it is idle, for a time."""
    return _command(settings, Kind.UNPIN, name, duration, wait=False, output=output)


def _command(settings: Settings, kind: Kind, name: str, duration: str | None, *, wait: bool, output: str) -> int:
    try:
        seconds = None if duration is None else parse_duration(duration)
    except ValueError as error:
        fail(f"--for: {error}")
    try:
        given = _run(settings, give_override(settings.state_dir, kind, name, seconds))
    except KeyboardInterrupt:
        return _INTERRUPTED
    standing: Standing | None = None
    if wait:
        try:
            with _phases(given.model, shown=output == "text") as say:
                standing = _run(settings, _settled(settings.state_dir, given, say))
        except KeyboardInterrupt:
            click.echo(f"The {kind} of {given.model} goes on; `reconcile status` shows how far it is.", err=True)
            return _INTERRUPTED
    code = OK if standing is None or _is_done(given, standing) else PARTIAL
    if output == "json":
        print_json(
            {
                "model": given.model,
                "kind": kind.value,
                "until": given.until,
                "text": given.text,
                "state": standing.state if standing is not None else None,
                "reason": standing.reason if standing is not None else None,
            }
        )
    else:
        _show(given, standing, code)
    return code


def _run(settings: Settings, work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except RefusedError as error:
        fail(with_near(error))
    except NoReconcilerError as error:
        pid = holder(settings.state_dir)
        if pid is None:
            fail(
                f"no reconciler runs here (state dir {settings.state_dir}); "
                "start one with ./start.sh or `reconcile --watch`"
            )
        fail(
            f"the reconciler that runs here (process {pid}) does not answer: {error}. It may be a `reconcile` "
            "that converges once, or one that waits for Ray: try again when it is done"
        )


async def _settled(state_dir: Path, given: Given, say: Callable[[str], None]) -> Standing:
    """Where the model stands once there is nothing left to wait for."""
    while True:
        looked_at, standings = await states(state_dir)
        # What was seen before the command was given says nothing about it.
        if given.since is None or looked_at > given.since:
            standing = standings.get(given.model)
            if standing is None:
                raise RefusedError(f"{given.model} is not declared any more")
            if _is_done(given, standing) or _has_failed(given, standing):
                return standing
            comes = standing.state == ModelState.LOADING and standing.expected_wait is not None
            left = f", about {standing.expected_wait:.0f} s left" if comes else ""
            say(f"{standing.state}: {standing.reason}{left}" if standing.reason else f"{standing.state}{left}")
        await asyncio.sleep(_POLL_SECONDS)


def _is_done(given: Given, standing: Standing) -> bool:
    if given.kind is Kind.LOAD:
        return standing.state == ModelState.LOADED
    if given.until is None:
        # It holds until nothing of the model is there any more, however its state is called before.
        return standing.by_hand is None
    return _holds(given, standing) and standing.state in (ModelState.UNLOADED, ModelState.FAILED)


def _has_failed(given: Given, standing: Standing) -> bool:
    return not _holds(given, standing) or (given.kind is Kind.LOAD and standing.state == ModelState.FAILED)


def _holds(given: Given, standing: Standing) -> bool:
    """What was asked for was neither ended nor replaced."""
    return standing.by_hand is not None and standing.by_hand[1] == given.since


@contextlib.contextmanager
def _phases(model: str, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows what is waited for: on a terminal one line that changes, else a line a phase."""
    last = ""

    def line(text: str) -> None:
        nonlocal last
        # A download that goes on is no new phase.
        phase = re.sub(r"[0-9.]+", "", text)
        if phase != last:
            click.echo(f"{model} {text}", err=True)
        last = phase

    if not shown:
        yield lambda _: None
    elif not sys.stderr.isatty():
        yield line
    else:
        from rich.markup import escape  # noqa: PLC0415 -- a pipe has no use for it

        with console(stderr=True).status(f"{escape(model)} …") as status:
            yield lambda text: status.update(f"{escape(model)} {escape(text)}")


def _show(given: Given, standing: Standing | None, code: int) -> None:
    model = given.model
    reached = "loaded" if given.kind is Kind.LOAD else "unloaded"
    if standing is not None and code == OK:
        click.echo(f"{model} is {reached}.")
    elif standing is not None:
        reason = standing.reason.rstrip(".") or f"it is {standing.state}"
        click.echo(f"{model} is not {reached}: {reason}.")
    if standing is not None and standing.by_hand is not None and not _holds(given, standing):
        click.echo(f"Another command has taken the place of this one: {standing.by_hand[0]}.")
        return
    if standing is None or _holds(given, standing):
        click.echo(f"{model}: {given.text}.")
    if given.until is not None:
        end = datetime.fromtimestamp(given.until).astimezone()
        earlier = f"reconcile {_ENDS_EARLIER[given.kind]} {model}"
        click.echo(f"Until {end:%Y-%m-%d %H:%M:%S %Z}; `{earlier}` ends it earlier.")
