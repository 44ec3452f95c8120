"""How much each key is used, from counters that only grow until they begin anew. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What is known of one key's use.

    Attributes:
        requests: How many there were, ever.
        last_used: When the last one was noticed, in seconds since the epoch; None where there was none.
        seen: What the counter stood at when it was last read.
    """

    requests: Annotated[int, Field(ge=0)] = 0
    last_used: Annotated[float, Field(ge=0, le=1e11)] | None = None
    seen: Annotated[int, Field(ge=0)] = 0


def add_up(before: Mapping[str, KeyUse], counters: Mapping[str, int], now: float) -> dict[str, KeyUse]:
    """The use after another look at the counters.

    A counter that stands lower than before has begun anew, so all of it is new. One that is missing says nothing.

    Args:
        before: By fingerprint.
        counters: Requests since each counter began, by fingerprint.
        now: Seconds since the epoch.
    """
    after = dict(before)
    for fingerprint, count in counters.items():
        old = before.get(fingerprint, KeyUse())
        more = count - old.seen if count >= old.seen else max(0, count)
        if more or count != old.seen:
            after[fingerprint] = KeyUse(old.requests + more, now if more else old.last_used, max(0, count))
    return after


def kept(usage: Mapping[str, KeyUse], fingerprints: Collection[str]) -> dict[str, KeyUse]:
    """Only that of keys which there are."""
    return {fingerprint: use for fingerprint, use in usage.items() if fingerprint in fingerprints}
