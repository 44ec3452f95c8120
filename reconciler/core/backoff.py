"""When a version that failed is tried again: later each time, never for ever in a circle."""

FIRST_SECONDS = 30.0
LONGEST_SECONDS = 1800.0


def delay(attempts: int) -> float:
    """Seconds to wait after the `attempts`-th failure of one version: 30 s, doubled each time, at most 30 min."""
    return float(min(FIRST_SECONDS * 2.0 ** min(attempts - 1, 16), LONGEST_SECONDS))


def is_due(at: float, retry_at: float, now: float) -> bool:
    """It may be tried again: its time has come, or the clock was set back since, and nobody knows when it comes.

    Args:
        at: When it failed last, in seconds since the epoch.
        retry_at: When it was to be tried again by the clock of then.
        now: Seconds since the epoch.
    """
    return now >= retry_at or at > now
