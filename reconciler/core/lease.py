"""Who may write to a cluster: the lease that one reconciler or one person holds there at a time. Pure.

    ray_serve.lease_store (a register in the cluster) -> `Kept` -> `seen_after` -> `free_in` -> loop.lease

A reconciler renews its lease again and again. Clocks of two machines may disagree, so nobody compares another's
with its own: whoever looks on counts, on its own clock, from when it first saw a renewal, and takes the lease once
`LASTS_SECONDS` have gone by without another (as Kubernetes elects leaders). The holder counts from before it sent
its last renewal that came through, which is earlier, and writes for `HOLDS_SECONDS` only, which are fewer. What is
left between the two is time for what it had begun.

A person's lock is not renewed, so its end is a time of day, and as exact as the two clocks are alike.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from reconciler.core.words import in_time

LASTS_SECONDS = 30.0
"""How long a reconciler's lease lives without a renewal."""
HOLDS_SECONDS = 20.0
"""How long after its last renewal a reconciler writes."""
LONGEST_LOCK_SECONDS = 30 * 86400.0
"""Of a person's lock. Also what a record may claim at most."""
_LARGEST = 2**16
_LONGEST_TEXT = 1000
_FREE = "{}"


class LeaseStoreError(Exception):
    """The register cannot be asked, or nobody can tell what became of a change."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the register holds.

    Attributes:
        cluster: Which cluster this is; a change is refused by any other.
        version: Grows with every change; 0 where there was none.
        text: As it was written; empty at version 0.
    """

    cluster: str
    version: int
    text: str


class LeaseStore(Protocol):
    """One register in the cluster, changed by one at a time."""

    async def read(self) -> Kept:
        """What is there now.

        Raises:
            LeaseStoreError: The cluster does not answer.
        """
        ...

    async def replace(self, kept: Kept, text: str) -> bool:
        """Put `text` in the place of what was read; False where somebody else came before, or straight after.

        Raises:
            LeaseStoreError: Nobody can tell whether it is changed, or will be in a moment.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim to be the only one who writes.

    Attributes:
        owner: Whose it is: `user@host:state_dir`.
        id: Of the process, made at random.
        home: Of the state directory, made at random once: tells a successor's own predecessor.
        reason: What for, in words.
        since: Seconds since the epoch when it was taken, by the owner's clock.
        until: Seconds since the epoch when it ends, by the owner's clock, unless it is renewed.
        lasts: Seconds that it lives from when it was written.
        by_hand: A person's: nobody writes, and nobody renews it.
        heir: Of a person's: the `house` of the reconciler it was taken from, which gets it back first.
        boot: Of the owner's machine, anew whenever that starts: tells a machine from a copy of it.
    """

    owner: str
    id: str
    home: str
    reason: str
    since: float
    until: float
    lasts: float
    by_hand: bool = False
    heir: str = ""
    boot: str = ""

    @property
    def house(self) -> str:
        """The one place where no second process can be, as the kernel, until it is started anew, locks a state
        directory.
        """
        return f"{self.home} {self.owner} {self.boot}"

    def is_namesake(self, other: "Lease") -> bool:
        """Whether the other one is of what is called the same state directory, and yet need not be it."""
        return (self.home, self.owner) == (other.home, other.owner) and self.boot != other.boot

    def holds_for(self, wall: float) -> float:
        """Seconds until it ends, by its owner's clock; 0 afterwards.

        Args:
            wall: Seconds since the epoch.
        """
        return max(0.0, self.until - wall)

    def in_words(self, wall: float) -> str:
        """Who holds it, for how long and what for. Not whether the holder is alive, which no record can say.

        Args:
            wall: Seconds since the epoch.
        """
        left = self.holds_for(wall)
        why = f" ({self.reason})" if self.reason else ""
        if self.by_hand:
            if not left:
                return f"{self.owner} had locked this cluster{why}, until {in_time(wall - self.until)} ago"
            return f"{self.owner} has locked this cluster for another {in_time(left)}{why}"
        if not left:
            return f"{self.owner} wrote to this cluster{why}, and has been silent for {in_time(wall - self.until)}"
        return f"{self.owner} writes to this cluster{why}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody read, and since when they know it.

    Attributes:
        kept: As the register holds it.
        lease: What it says; None where nobody holds the lease.
        first: When just this was first seen, in seconds of the onlooker's own clock.
    """

    kept: Kept
    lease: Lease | None
    first: float


def seen_after(before: Seen | None, kept: Kept, clock: float) -> Seen:
    """What somebody knows after another look.

    Args:
        before: What they knew.
        kept: What they read.
        clock: Seconds of their own clock, after the read.
    """
    if before is not None and before.kept == kept:
        return before
    return Seen(kept, read_lease(kept.text), clock)


def free_in(seen: Seen, me: Lease, *, clock: float, wall: float) -> float:
    """Seconds until a reconciler may take the lease, if it is not renewed meanwhile; 0: now.

    Args:
        seen: What it knows, after a look just now.
        me: What it would write.
        clock: Seconds of its own clock, as in `seen`.
        wall: Seconds since the epoch.
    """
    lease = seen.lease
    if lease is None or lease.id == me.id:
        return 0.0
    left = seen.first + lease.lasts - clock
    if not lease.by_hand:
        # The former process of this state directory is gone.
        return 0.0 if lease.house == me.house else max(0.0, left)
    # However wrong a clock is, it lasts no longer than was said.
    ends = min(lease.until - wall, left)
    if lease.heir in ("", me.house):
        return max(0.0, ends)
    # Its heir comes first, and may not even have noticed that it was locked out, if that was short.
    return max(0.0, ends + LASTS_SECONDS, seen.first + LASTS_SECONDS - clock)


def to_text(lease: Lease | None) -> str:
    """What the register holds for a lease, or for none."""
    return _FREE if lease is None else json.dumps(asdict(lease))


def read_lease(text: str) -> Lease | None:
    """The lease that the register holds; None where nobody has it.

    What makes no sense is somebody's lease as well: one that ends if it is not renewed.
    """
    if text in ("", _FREE):
        return None
    try:
        found: Any = json.loads(text) if len(text) <= _LARGEST else None
        return Lease(
            owner=_text(found["owner"]),
            id=_text(found["id"]),
            home=_text(found["home"]),
            reason=_text(found["reason"]),
            since=_number(found["since"]),
            until=_number(found["until"]),
            lasts=min(max(_number(found["lasts"]), 0.0), LONGEST_LOCK_SECONDS),
            by_hand=found.get("by_hand") is True,
            heir=_text(found.get("heir", "")),
            boot=_text(found.get("boot", "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return Lease("somebody unknown", "", "unknown", "its record cannot be read", 0.0, 0.0, LASTS_SECONDS)


def printable(text: str) -> str:
    """A text as the register takes it: it is printed on other people's terminals."""
    return "".join(each if each.isprintable() else "?" for each in text[:_LONGEST_TEXT])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return printable(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError("not a number")
    return float(value)
