"""Lengths of time as a person says them."""

import math

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def in_time(seconds: float) -> str:
    """A length of time in its two largest units: `42 s`, `59 min`, `1 h 59 min`, `3 d 4 h`."""
    # Up to a whole second, so that two hours are `2 h` also a moment after they began.
    whole = max(0, math.ceil(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    large, small, size, unit = whole // _MINUTE, 0, "min", ""
    if whole >= _DAY:
        large, small, size, unit = whole // _DAY, whole % _DAY // _HOUR, "d", "h"
    elif whole >= _HOUR:
        large, small, size, unit = whole // _HOUR, whole % _HOUR // _MINUTE, "h", "min"
    return f"{large} {size} {small} {unit}" if small else f"{large} {size}"
