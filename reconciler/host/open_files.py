"""How many files this process may have open: raised at the start of the reconciler that stays, shown by doctor."""

import contextlib
import resource

_MOST = 2**20
"""What the services' units give Ray. Some containers allow a thousand times as many, and a program that closes
every number there might be takes minutes over those."""


def raised(soft: int, hard: int) -> int:
    """The limit that `raise_limit` makes of these two; `resource.RLIM_INFINITY`, -1, is no limit.

    Args:
        soft: How many may be open now.
        hard: How many this process may allow itself.
    """
    if soft < 0:
        return soft
    return max(soft, _MOST if hard < 0 else min(hard, _MOST))


def raise_limit() -> int:
    """Allow this process, and what it starts from now on, as many open files as it may. Returns how many.

    A request that waited and goes on needs two, and a shell's usual limit is 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = raised(soft, hard)
    if wanted != soft:
        # Some sandboxes refuse what a kernel allows; the limit is then what it was.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
