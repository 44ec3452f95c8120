"""What an operator has suspended: models, or all of them, that the reconciler leaves exactly as they are.

`loop.suspensions` keeps them, `core.planner` reads them. A suspended model that is up goes on serving; one that is
not is not brought up, not for a request either.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.core.words import in_time

ALL = "*"
"""In place of a model's name: all of them, those that are declared later too."""
LONGEST_REASON = 200
LONGEST_SECONDS = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Suspension:
    """One model, or all of them, are left as they are.

    Attributes:
        model: Its name, or `ALL`.
        since: Seconds since the epoch, when it was given.
        until: Seconds since the epoch at which it ends; None where only `resume` ends it.
        reason: Why, in the operator's words.
    """

    model: str
    since: float
    until: float | None = None
    reason: str = ""

    def ended(self, now: float) -> bool:
        """Its time is over."""
        return self.until is not None and self.until <= now


def suspension_of(suspensions: Iterable[Suspension], model: str, now: float) -> Suspension | None:
    """What suspends `model` at `now`, in seconds since the epoch: its own suspension, or that of all."""
    found = {each.model: each for each in suspensions if not each.ended(now)}
    return found.get(model) or found.get(ALL)


def in_words(suspension: Suspension, now: float) -> str:
    """What holds, for how long and why: for status, plan and log."""
    what = "all models are suspended" if suspension.model == ALL else "suspended"
    left = "" if suspension.until is None else f" for another {in_time(max(0.0, suspension.until - now))}"
    return f"{what} by hand{left}" + (f" ({suspension.reason})" if suspension.reason else "")
