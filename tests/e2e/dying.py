"""`reconcile --watch` that dies, as by `kill -9`, right before or after the first time it does one thing.

`python dying.py STEP before|after`: STEP is one of those below.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from reconciler.cli.main import main
from reconciler.loop.act import Actor
from reconciler.loop.edges import Edges
from reconciler.loop.memory import Memory
from reconciler.ray_serve.client import ServeClient

STEPS: dict[str, tuple[type, str]] = {
    "put": (ServeClient, "put"),
    "probe": (Actor, "_start_probe"),
    "answered": (Memory, "answered"),
    "route": (Edges, "set_routes"),
    "record": (Memory, "record"),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _deadly(original: Callable[..., Any], when: str) -> Callable[..., Any]:
    def now(*args: Any, **options: Any) -> Any:
        if when == "before":
            _die()
        found = original(*args, **options)
        _die()
        return found

    async def later(*args: Any, **options: Any) -> Any:
        if when == "before":
            _die()
        found = await original(*args, **options)
        _die()
        return found

    return later if original.__code__.co_flags & 0x80 else now


if __name__ == "__main__":
    owner, name = STEPS[sys.argv[1]]
    setattr(owner, name, _deadly(getattr(owner, name), sys.argv[2]))
    sys.argv = ["reconcile", "--watch"]
    main()
