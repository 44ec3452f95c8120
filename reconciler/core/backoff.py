"""When a version that failed is tried again: later each time, never for ever in a circle."""

FIRST_SECONDS = 30.0
LONGEST_SECONDS = 1800.0


def delay(attempts: int) -> float:
    """Seconds to wait after the `attempts`-th failure of one version: 30 s, doubled each time, at most 30 min."""
    return float(min(FIRST_SECONDS * 2.0 ** min(attempts - 1, 16), LONGEST_SECONDS))
