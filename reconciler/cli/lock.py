"""The commands about who may write to the cluster. They ask the cluster itself; no reconciler need run."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from reconciler.cli.common import OK, REFUSED, fail, ray_hint
from reconciler.cli.show import print_json
from reconciler.core.lease import (
    HOLDS_SECONDS,
    LONGEST_LOCK_SECONDS,
    Lease,
    LeaseStore,
    LeaseStoreError,
    read_lease,
)
from reconciler.core.spec import parse_duration
from reconciler.core.words import in_time
from reconciler.host.settings import Settings
from reconciler.loop.lease import NoLeaseError, lease_store, lock_by_hand, owner_of, unlock_by_hand
from reconciler.ray_serve.client import ServeClient, ServeUnreachableError

_DEFAULT_SECONDS = 3600.0
_INTERRUPTED = 130
T = TypeVar("T")


def show(settings: Settings, *, output: str) -> int:
    """Print who holds the cluster's lease."""

    async def look(store: LeaseStore) -> Lease | None:
        return read_lease((await store.read()).text)

    lease = _run(settings, look)
    if output == "json":
        print_json({"lease": _as_json(lease)})
    else:
        click.echo(
            _sentence(lease.in_words(time.time())) if lease is not None else "Nobody writes to this cluster."
        )
    return OK


def lock(
    settings: Settings, reason: str, *, duration: str | None, wait: bool, dangerous_take: bool, output: str
) -> int:
    """Lock the cluster for a time, and wait until nothing else writes any more."""
    try:
        seconds = _DEFAULT_SECONDS if duration is None else parse_duration(duration)
    except ValueError as error:
        fail(f"--for: {error}")
    if not 0 < seconds <= LONGEST_LOCK_SECONDS:
        fail(f"--for: more than nothing, and at most {in_time(LONGEST_LOCK_SECONDS)}")
    if not reason.strip():
        fail("--reason: others read it; say what the lock is for")
    owner = owner_of(settings.state_dir)

    async def take(store: LeaseStore) -> tuple[Lease, Lease | None]:
        return await lock_by_hand(store, owner, reason.strip(), seconds, take=dangerous_take)

    made, before = _run(settings, take)
    # What a lock has replaced may have been taken from a reconciler a moment ago.
    if wait and before is not None:
        if output == "text":
            click.echo(f"Locked. Whatever reconciler wrote stops within {HOLDS_SECONDS:.0f} s ...", err=True)
        try:
            time.sleep(HOLDS_SECONDS)
        except KeyboardInterrupt:
            click.echo("The lock stays; `reconcile unlock` ends it.", err=True)
            return _INTERRUPTED
    if output == "json":
        print_json({"lease": _as_json(made), "previous": _as_json(before)})
    else:
        click.echo(_sentence(made.in_words(time.time())))
    return OK


def unlock(settings: Settings, *, dangerous_take: bool, output: str) -> int:
    """End a lock."""

    async def give_back(store: LeaseStore) -> Lease | None:
        return await unlock_by_hand(store, owner_of(settings.state_dir), take=dangerous_take)

    ended = _run(settings, give_back)
    if output == "json":
        print_json({"lease": None, "previous": _as_json(ended)})
    elif ended is None:
        click.echo("The cluster was not locked.")
    else:
        click.echo(f"The lock of {ended.owner} is over ({ended.reason}).")
    return OK


def _run(settings: Settings, work: Callable[[LeaseStore], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with ServeClient(settings.ray_dashboard, settings.ray_token_path) as client:
            store = lease_store(settings, client)
            if store is None:
                fail("gRPC, which comes with Ray, is not installed here, so the cluster's lease cannot be reached")
            return await work(store)

    try:
        return asyncio.run(ask())
    except NoLeaseError as error:
        click.echo(f"reconcile: {error}; --dangerous-take takes it all the same", err=True)
        sys.exit(REFUSED)
    except (LeaseStoreError, ServeUnreachableError) as error:
        fail(f"{error}\n  {ray_hint(settings)}")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _as_json(lease: Lease | None) -> dict[str, Any] | None:
    if lease is None:
        return None
    return {
        "owner": lease.owner,
        "reason": lease.reason,
        "since": lease.since,
        "until": lease.until,
        "by_hand": lease.by_hand,
        "text": lease.in_words(time.time()),
    }


def _sentence(words: str) -> str:
    return f"{words}."
