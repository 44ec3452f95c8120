"""Beside the loop: takes the cluster's lease, renews it, and says before each effect whether this process has it.

    ray_serve.lease_store <-> `Keeper` <- `holds()` <- loop.act, before each effect
                                 `- wakes the loop when it got the lease, or lost it

Without the lease the loop goes on looking, and what serves goes on serving; only nothing is changed.
`lock_by_hand` and `unlock_by_hand` are the commands of a person.
"""

import asyncio
import contextlib
import getpass
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from reconciler.core.lease import (
    HOLDS_SECONDS,
    LASTS_SECONDS,
    Kept,
    Lease,
    LeaseStore,
    LeaseStoreError,
    Seen,
    free_in,
    printable,
    read_lease,
    seen_after,
    to_text,
)
from reconciler.host.files import write_atomic
from reconciler.host.log import get_logger
from reconciler.host.settings import Settings
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.engine_calls import gcs_address
from reconciler.ray_serve.lease_store import GcsLeaseStore, available

log = get_logger()
T = TypeVar("T")

RENEW_SECONDS = 10.0
_LOOK_SECONDS = 2.0
"""Between two looks while somebody else has it, or after one that failed."""
_TRY_SECONDS, _GIVE_BACK_SECONDS = 8.0, 5.0
_HOME_FILE = "lease-home"
_BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
_HOME_LENGTH = 32
_TRIES = 20
"""How often a person's lock is tried again that a renewal came before."""


_NAMESAKE = (
    "that is this state directory before the machine was started anew, or a copy of the machine: it is free once "
    f"nothing was heard of that one for {LASTS_SECONDS:.0f} s"
)


class NoLeaseError(Exception):
    """The lease is somebody else's, or was lost; the text says whose it is."""


def boot_clock() -> float:
    """Seconds that only grow, also while the machine is suspended: a lease does not wait for a laptop's lid."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def owner_of(folder: Path) -> str:
    """How a state directory's owner is called: `user@host:folder`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container need not know who it runs as.
        user = str(os.getuid())
    return printable(f"{user}@{socket.gethostname()}:{folder.absolute()}")


def home_of(folder: Path) -> str:
    """What a state directory is known by, made at random once.

    Where that cannot be written, each process has one of its own, and waits until its predecessor's lease ends.
    """
    file = folder / _HOME_FILE
    with contextlib.suppress(OSError, ValueError):
        with file.open(encoding="ascii") as opened:
            known = opened.read(_HOME_LENGTH + 1).strip()
        if len(known) == _HOME_LENGTH and known.isalnum():
            return known
    made = secrets.token_hex(_HOME_LENGTH // 2)
    with contextlib.suppress(OSError):
        write_atomic(file, made + "\n")
    return made


def boot_id() -> str:
    """What the kernel made at random when this machine was started: a copy of the machine has another one.

    Where it cannot be read, each process has one of its own, and waits until its predecessor's lease ends.
    """
    with contextlib.suppress(OSError, ValueError):
        known = _BOOT_FILE.read_text(encoding="ascii").strip()
        if known:
            return known
    return secrets.token_hex(_HOME_LENGTH // 2)


class Keeper:
    """The lease of one process.

    Args:
        store: Where the lease is; None where there is none: then everybody may write.
        owner: Whose it is, as `owner_of` says.
        home: Of the state directory, as `home_of` says.
        reason: What it is wanted for.
        boot: Of this machine, as `boot_id` says.
        off: Why there is no store.
        clock: Seconds that only grow.
        wall_clock: Seconds since the epoch.
        wake_loop: Called when it got the lease, or lost it.
    """

    def __init__(
        self,
        store: LeaseStore | None,
        owner: str,
        home: str,
        reason: str,
        *,
        boot: str = "",
        off: str = "",
        clock: Callable[[], float] = boot_clock,
        wall_clock: Callable[[], float] = time.time,
        wake_loop: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._off = off
        self._clock = clock
        self._wall_clock = wall_clock
        self.wake_loop = wake_loop
        self._me = Lease(owner, secrets.token_hex(8), home, reason, 0.0, 0.0, LASTS_SECONDS, boot=boot)
        self._seen: Seen | None = None
        self._confirmed: float | None = None
        self._problem = ""
        self._previous: str | None = None
        self._held = False
        self._said_waiting: tuple[str, str] | None = None
        self._said_failed = ""
        self._change = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    # --- what the loop asks -------------------------------------------------------------------------------

    def holds(self) -> bool:
        """Whether this process may write now. To be asked before each effect."""
        if self._store is None:
            return True
        return self._confirmed is not None and self._clock() < self._confirmed + HOLDS_SECONDS

    def why_not(self) -> str:
        """Why it may not, in words; empty while it may."""
        if self.holds():
            return ""
        lease = self._seen.lease if self._seen is not None else None
        if lease is not None and lease.id != self._me.id:
            words = lease.in_words(self._wall_clock())
            return f"{words}; {_NAMESAKE}" if lease.is_namesake(self._me) else words
        return self._problem or "the lease of this cluster has not been taken yet"

    # --- for one who stays --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take the lease, and to renew it for as long as this process runs."""
        if self._store is None:
            log.warning("lease.skipped", reason=self._off)
        elif self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def wait(self) -> None:
        """Wait until this process may write."""
        async with self._change:
            await self._change.wait_for(self.holds)

    async def close(self) -> None:
        """Give the lease back; to be called when nothing writes any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._store is None or self._confirmed is None:
            return
        self._confirmed = None
        try:
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                kept = await self._store.read()
                lease = read_lease(kept.text)
                if (
                    lease is not None
                    and lease.id == self._me.id
                    and await self._store.replace(kept, to_text(None))
                ):
                    log.info("lease.given_back", owner=self._me.owner)
        except (LeaseStoreError, TimeoutError) as error:
            # It ends by itself.
            log.warning("lease.failed", reason=_in_words(error))

    # --- for one who converges once -----------------------------------------------------------------------

    async def take(self) -> None:
        """Take the lease now, and renew it from then on. Waits only for one who seems to be gone.

        Raises:
            NoLeaseError: Somebody else has it.
            LeaseStoreError: The cluster does not answer.
        """
        if self._store is not None:
            first: Kept | None = None
            while not self.holds():
                await self._try(self._store)
                seen, wall = self._seen, self._wall_clock()
                if self.holds() or seen is None or seen.lease is None:
                    continue
                first = first or seen.kept
                # By the holder's clock it may be over; whether it is, is seen from nobody renewing it.
                if seen.lease.holds_for(wall) > 0 or seen.kept != first:
                    raise NoLeaseError(self.why_not())
                await asyncio.sleep(_LOOK_SECONDS)
            await self._note()
        self.start()

    async def while_held(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work; it is broken off when the lease is lost.

        Raises:
            NoLeaseError: It was lost.
        """
        task, lost = asyncio.create_task(work), asyncio.create_task(self._lost())
        try:
            await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise NoLeaseError(self.why_not())
            return task.result()
        finally:
            for each in (task, lost):
                each.cancel()
            await asyncio.gather(task, lost, return_exceptions=True)

    # --- beside the loop ----------------------------------------------------------------------------------

    async def _keep(self) -> None:
        assert self._store is not None
        while True:
            pause = _LOOK_SECONDS
            try:
                await self._try(self._store)
                if self.holds():
                    pause = RENEW_SECONDS
                self._said_failed = ""
            except Exception as error:  # noqa: BLE001 -- whatever it is: without a renewal nothing is written
                self._problem = _in_words(error)
                if self._problem != self._said_failed:
                    log.warning("lease.failed", reason=self._problem)
                self._said_failed = self._problem
            await self._note()
            if self.holds() and self._confirmed is not None:
                # Not later than it ends: that is an event as well.
                pause = min(pause, max(0.0, self._confirmed + HOLDS_SECONDS - self._clock()))
            await asyncio.sleep(pause)

    async def _try(self, store: LeaseStore) -> None:
        """Look, and take or renew the lease where that may be done.

        Raises:
            LeaseStoreError: The cluster does not answer.
        """
        try:
            async with asyncio.timeout(_TRY_SECONDS):
                await self._look_and_take(store)
        except TimeoutError as error:
            raise LeaseStoreError(f"the cluster's lease cannot be read within {_TRY_SECONDS:.0f} s") from error
        self._problem = ""

    async def _look_and_take(self, store: LeaseStore) -> None:
        kept = await store.read()
        self._seen = seen_after(self._seen, kept, self._clock())
        lease, wall = self._seen.lease, self._wall_clock()
        if lease is None or lease.id != self._me.id:
            self._confirmed = None
            self._previous = lease.owner if lease is not None else None
            self._me = replace(self._me, since=wall)
        if free_in(self._seen, self._me, clock=self._clock(), wall=wall) > 0:
            return
        sent, mine = self._clock(), replace(self._me, until=wall + LASTS_SECONDS)
        if await store.replace(kept, to_text(mine)):
            self._confirmed = sent
            self._seen = seen_after(None, replace(kept, version=kept.version + 1, text=to_text(mine)), sent)
        else:
            self._confirmed = None

    async def _note(self) -> None:
        """Say what has changed, and tell those who wait for it."""
        held, lease = self.holds(), self._seen.lease if self._seen is not None else None
        others = lease if lease is not None and lease.id != self._me.id else None
        if held and not self._held:
            log.info("lease.taken", owner=self._me.owner, previous=self._previous)
            self._said_waiting = None
        elif self._held and not held:
            log.error("lease.lost", reason=self.why_not())
        elif not held and others is not None and self._said_waiting != (others.id, others.reason):
            self._said_waiting = (others.id, others.reason)
            log.warning("lease.waiting", owner=others.owner, reason=others.reason, until=others.until)
        if held != self._held:
            self._held = held
            async with self._change:
                self._change.notify_all()
            self.wake_loop()

    async def _lost(self) -> None:
        async with self._change:
            await self._change.wait_for(lambda: not self.holds())


def _in_words(error: BaseException) -> str:
    return str(error) or type(error).__name__


# --- put together ---------------------------------------------------------------------------------------------


def lease_store(settings: Settings, client: ServeClient) -> LeaseStore | None:
    """Where the lease of the settings' cluster is; None where gRPC, which comes with Ray, is not installed.

    Args:
        settings: The operator's.
        client: Open.
    """
    return GcsLeaseStore(lambda: gcs_address(client), settings.ray_token_path) if available() else None


def make_keeper(settings: Settings, client: ServeClient, reason: str) -> Keeper:
    """The keeper for these settings.

    Args:
        settings: The operator's.
        client: Open.
        reason: What the lease is wanted for.
    """
    if not settings.lease:
        off = "it is switched off (RECONCILE_LEASE): nothing keeps two reconcilers apart"
        return Keeper(None, "", "", reason, off=off)
    store, folder = lease_store(settings, client), settings.state_dir
    off = "gRPC, which comes with Ray, is not installed here: nothing keeps two reconcilers apart"
    return Keeper(store, owner_of(folder), home_of(folder), reason, boot=boot_id(), off=off)


# --- by hand --------------------------------------------------------------------------------------------------


async def lock_by_hand(
    store: LeaseStore,
    owner: str,
    reason: str,
    seconds: float,
    *,
    take: bool = False,
    wall_clock: Callable[[], float] = time.time,
) -> tuple[Lease, Lease | None]:
    """Lock the cluster for a person: no reconciler writes until that is over. Gives the lock, and whose it was.

    A reconciler that wrote stops within `HOLDS_SECONDS`, and gets the lease back first.

    Args:
        store: The cluster's.
        owner: Who locks; a lock of the same owner is replaced.
        reason: What for.
        seconds: For how long.
        take: Also from another person.
        wall_clock: Seconds since the epoch.

    Raises:
        NoLeaseError: Another person has locked it.
        LeaseStoreError: The cluster does not answer.
    """
    for _ in range(_TRIES):
        kept, wall = await store.read(), wall_clock()
        before = read_lease(kept.text)
        locked = before is not None and before.by_hand and before.holds_for(wall) > 0
        if before is not None and locked and before.owner != owner and not take:
            raise NoLeaseError(before.in_words(wall))
        heir = "" if before is None else before.heir if before.by_hand else before.house
        lock = Lease(
            owner,
            secrets.token_hex(8),
            "",
            printable(reason),
            wall,
            wall + seconds,
            seconds,
            by_hand=True,
            heir=heir,
        )
        if await store.replace(kept, to_text(lock)):
            return lock, before
    raise LeaseStoreError("the lease changes faster than it can be taken")


async def unlock_by_hand(
    store: LeaseStore, owner: str, *, take: bool = False, wall_clock: Callable[[], float] = time.time
) -> Lease | None:
    """End a person's lock, and give that lock; None where the cluster is not locked.

    Args:
        store: The cluster's.
        owner: Who unlocks.
        take: Also another person's.
        wall_clock: Seconds since the epoch.

    Raises:
        NoLeaseError: It is another person's.
        LeaseStoreError: The cluster does not answer.
    """
    for _ in range(_TRIES):
        kept, wall = await store.read(), wall_clock()
        lock = read_lease(kept.text)
        if lock is None or not lock.by_hand or not lock.holds_for(wall):
            return None
        if lock.owner != owner and not take:
            raise NoLeaseError(lock.in_words(wall))
        # Over, not gone: whom it was taken from comes before others.
        over = replace(lock, until=wall, lasts=0.0) if lock.heir else None
        if await store.replace(kept, to_text(over)):
            return lock
    raise LeaseStoreError("the lease changes faster than it can be given back")
