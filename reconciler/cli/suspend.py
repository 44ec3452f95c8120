"""The commands that have models left alone, and end that: suspend, resume.

Through the reconciler that runs; where none does, what is asked for is written down for the next one.
"""

import asyncio
import difflib
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

import click

from reconciler.cli.common import OK, fail, no_answer, quiet, with_near
from reconciler.cli.show import print_json
from reconciler.core.parse import parse_all
from reconciler.core.spec import parse_duration
from reconciler.core.suspension import ALL
from reconciler.host.lock import AlreadyRunningError, exclusive, holder
from reconciler.host.settings import Settings
from reconciler.loop import running
from reconciler.loop.by_hand import suspended
from reconciler.loop.memory import Memory
from reconciler.loop.rollbacks import RollbackStore
from reconciler.loop.running import NoReconcilerError, RefusedError, Resumed, Suspended
from reconciler.loop.source import make_source
from reconciler.loop.suspensions import SuspensionError, SuspensionStore

T = TypeVar("T")

_LONGEST_NAME = 500


def suspend(settings: Settings, name: str | None, *, duration: str | None, reason: str, output: str) -> int:
    """Leave a model, or with None all of them, exactly as they are."""
    try:
        seconds = None if duration is None else parse_duration(duration)
    except ValueError as error:
        fail(f"--for: {error}")
    given = _do(
        settings,
        lambda: running.suspend(settings.state_dir, name, seconds, reason),
        lambda store: _suspend_here(settings, store, name, seconds=seconds, reason=reason),
    )
    if output == "json":
        print_json(asdict(given))
        return OK
    click.echo(given.text[0].upper() + given.text[1:] + "." if name is None else f"{given.model}: {given.text}.")
    ends = f"`reconcile resume {'--all' if name is None else given.model}`"
    if given.until is None:
        click.echo(f"{ends} ends it.")
    else:
        end = datetime.fromtimestamp(given.until).astimezone()
        click.echo(f"Until {end:%Y-%m-%d %H:%M:%S %Z}; {ends} ends it earlier.")
    return OK


def resume(settings: Settings, name: str | None, *, output: str) -> int:
    """End the suspension of a model, or with None every one."""
    ended = _do(
        settings,
        lambda: running.resume(settings.state_dir, name),
        lambda store: _resume_here(settings, store, name),
    )
    if output == "json":
        print_json(asdict(ended))
    elif not ended.models:
        click.echo("Nothing is suspended.")
    else:
        click.echo(f"{', '.join('all models' if each == ALL else each for each in ended.models)}: resumed.")
    return OK


def _suspend_here(
    settings: Settings, store: SuspensionStore, name: str | None, *, seconds: float | None, reason: str
) -> Suspended:
    model = ALL if name is None else _known(settings, name)
    return suspended(store.suspend(model, seconds=seconds, reason=reason))


def _resume_here(settings: Settings, store: SuspensionStore, name: str | None) -> Resumed:
    if name is None:
        return Resumed(tuple(each.model for each in store.resume_everything()))
    model = name if name in {each.model for each in store.active()} else _known(settings, name)
    if store.resume(model) is None:
        raise SuspensionError(f"{model} itself is not suspended")
    return Resumed((model,))


def _known(settings: Settings, name: str) -> str:
    """The model of that name, alias or adapter: one that is declared, or that the last reconciler had up.

    Raises:
        RefusedError: There is none.
    """
    source = asyncio.run(make_source(settings).read())
    valid = parse_all(RollbackStore(settings.state_dir, read_only=True).apply(source).files).valid
    records = Memory(settings.state_dir).records
    if name in valid or name in records:
        return name
    others = {other: model for model, file in valid.items() for other in file.spec.other_names}
    if name in others:
        return others[name]
    near = difflib.get_close_matches(name[:_LONGEST_NAME], sorted({*valid, *others, *records}), n=3)
    why = f" (the model files cannot be read: {source.unreadable})" if source.unreadable else ""
    raise RefusedError(f"no model {name[:_LONGEST_NAME]!r} is declared, and none runs{why}", tuple(near))


def _do(settings: Settings, ask: Callable[[], Coroutine[Any, Any, T]], here: Callable[[SuspensionStore], T]) -> T:
    """Have the reconciler that runs do it, or where none does, do it here."""
    quiet(settings)
    try:
        if holder(settings.state_dir) is None:
            with exclusive(settings.state_dir):
                return here(SuspensionStore(settings.state_dir))
        return asyncio.run(ask())
    except RefusedError as error:
        fail(with_near(error))
    except (SuspensionError, AlreadyRunningError) as error:
        fail(str(error))
    except NoReconcilerError as error:
        no_answer(error)
    except OSError as error:
        fail(f"it could not be written down: {error}")


def one_of(name: str | None, *, everything: bool) -> str | None:
    """The model that is meant, None for all.

    Raises:
        click.UsageError: Both are given, or neither.
    """
    if everything == (name is not None):
        raise click.UsageError("give the name of one model, or --all")
    return name
