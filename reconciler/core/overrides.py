"""What was asked for by hand: one override a model, with an end, beside the policy in its file.

`loop.overrides` keeps them, `core.residency` reads them when it decides who should be up. Nothing here is ever
written into a model file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from reconciler.core.spec import Policy
from reconciler.core.words import in_time

DEFAULT_SECONDS = 3600.0
"""How long a `pin` or an `unpin` holds where nothing is said."""
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 366 * 86400.0
"""How long an override with an end may hold."""
_LAST_MOMENT = 1e11
"""Seconds since the epoch, some 3000 years on: no later time was ever meant."""


class Kind(StrEnum):
    """What was asked for."""

    LOAD = "load"
    UNLOAD = "unload"
    PIN = "pin"
    UNPIN = "unpin"


class OverrideError(ValueError):
    """The override makes no sense for this model; the message says why, and what would."""


@dataclass(frozen=True, slots=True)
class Override:
    """What holds for one model by hand.

    Attributes:
        since: Seconds since the epoch, when it was given.
        until: Seconds since the epoch at which it ends. None: it ends when it is done; a `load` when the model has
            the traffic or could not be loaded, an `unload` when nothing of it is there any more. The `load` of a
            manual model is never done: it ends with the next `unload`.
        leaves: At its end the model is unloaded: a manual one, which nothing else would take down.
    """

    model: str
    kind: Kind
    since: float
    until: float | None = None
    leaves: bool = False

    def ended(self, now: float) -> bool:
        """Its time is over."""
        return self.until is not None and self.until <= now


def is_sound(override: Override) -> bool:
    """Its times are such as `give` makes them: for one that was read from a file."""
    since, until = override.since, override.until
    # In this form also what is no number is refused.
    return 0 <= since <= _LAST_MOMENT and (until is None or since < until <= since + LONGEST_SECONDS)


def give(
    kind: Kind, model: str, policy: Policy, current: Override | None, *, now: float, for_seconds: float | None
) -> Override | None:
    """What holds after a command.

    A new override replaces the one before it. Only a `load` or `unload` without an end does not shorten what was
    promised for longer: a user interface that loads a model which is pinned by hand takes no pin away.

    Args:
        kind: The command.
        model: The model's name.
        policy: The policy in its file.
        current: What held before it.
        now: Seconds since the epoch.
        for_seconds: How long it is to hold; None where nothing was said.

    Returns:
        The override that holds from now on; None where the command only ends the current one.

    Raises:
        OverrideError: It makes no sense for this model as things are.
    """
    if current is not None and current.ended(now):
        current = None
    if for_seconds is not None and not SHORTEST_SECONDS <= for_seconds <= LONGEST_SECONDS:
        span = f"from {in_time(SHORTEST_SECONDS)} to {in_time(LONGEST_SECONDS)}"
        raise OverrideError(f"what is asked for by hand holds {span}; the model's file is for what is to last")
    if current is not None and _only_ends(kind, policy, current.kind):
        return None
    if current is not None and for_seconds is None and _promises_more(current, kind, policy):
        return current
    if reason := _why_not(kind, model, policy, current, has_end=for_seconds is not None):
        raise OverrideError(reason)
    if for_seconds is None and kind in (Kind.PIN, Kind.UNPIN):
        for_seconds = DEFAULT_SECONDS
    until = None if for_seconds is None else now + for_seconds
    loaded = current is not None and current.kind is Kind.LOAD and current.until is None
    leaves = until is not None and policy is Policy.MANUAL and kind is not Kind.UNLOAD and not loaded
    return Override(model, kind, now, until, leaves)


def active(overrides: Mapping[str, Override], now: float) -> dict[str, Override]:
    """Those that hold at `now`, in seconds since the epoch, and what follows on those that have ended."""
    found = {model: next_of(override, now) for model, override in overrides.items()}
    return {model: override for model, override in found.items() if override is not None}


def next_of(override: Override, now: float) -> Override | None:
    """What holds of an override at `now`: itself, what follows on it, or nothing."""
    if not override.ended(now):
        return override
    return Override(override.model, Kind.UNLOAD, override.until or now) if override.leaves else None


def in_words(override: Override, policy: Policy, now: float) -> str:
    """What holds and for how long, and what the file says: for status, plan and log.

    Args:
        override: What was asked for by hand.
        policy: The policy in the model's file.
        now: Seconds since the epoch.
    """
    if override.until is not None:
        verb = {Kind.LOAD: "kept up", Kind.UNLOAD: "kept away", Kind.PIN: "pinned", Kind.UNPIN: "unpinned"}
        what = f"{verb[override.kind]} by hand for another {in_time(override.until - now)}"
    elif override.kind is Kind.LOAD and policy is Policy.MANUAL:
        what = "kept up by hand until it is unloaded"
    else:
        what = f"{override.kind} asked for by hand"
    return f"{what}; its file says {policy}"


def is_drift(override: Override, policy: Policy) -> bool:
    """It holds the model elsewhere than its file would have it: what the file allows at any time is no drift."""
    if override.kind is Kind.PIN:
        return policy is not Policy.PINNED
    if policy is Policy.PINNED:
        return override.kind is not Kind.LOAD
    return policy is Policy.ON_DEMAND and override.kind is not Kind.UNPIN and override.until is not None


def _only_ends(kind: Kind, policy: Policy, current: Kind) -> bool:
    """The command asks for what the file says, once the current override is gone."""
    if policy is Policy.PINNED:
        return kind is Kind.PIN and current in (Kind.UNPIN, Kind.UNLOAD)
    return kind is Kind.UNPIN and current is Kind.PIN


def _promises_more(current: Override, kind: Kind, policy: Policy) -> bool:
    """What holds now does what the command asks for, and for longer."""
    if current.until is None:
        return False
    if kind is Kind.LOAD:
        # That of a manual model has no end at all.
        return policy is not Policy.MANUAL and current.kind in (Kind.LOAD, Kind.PIN)
    return kind is Kind.UNLOAD and current.kind is Kind.UNLOAD


def _why_not(kind: Kind, model: str, policy: Policy, current: Override | None, *, has_end: bool) -> str:
    """Why a command makes no sense; empty where it does."""
    pinned = policy is Policy.PINNED
    if kind is Kind.UNLOAD and pinned and not has_end:
        away = f"unload {model} --for 2h keeps it away for a time"
        if current is not None and current.kind is Kind.UNPIN:
            return f"{model} is pinned by its file and unpinned by hand, so it goes when it is idle; {away}"
        return f"{model} is pinned by its file: {away}, unpin {model} lets it go when it is idle"
    if kind is Kind.PIN and pinned:
        return f"{model} is pinned by its file"
    if kind is Kind.UNPIN and not pinned:
        return f"{model} is not pinned: its file says {policy}"
    return ""
