"""Applying a saved plan through the reconciler that runs here: what it does, and how another command asks it."""

from pathlib import Path
from typing import Any

import aiohttp

from reconciler.core.plan_json import plan_to_json
from reconciler.core.saved_plan import SavedPlan, saved_to_text, stale
from reconciler.core.turn import Options
from reconciler.loop.by_hand import CONFLICT
from reconciler.loop.lease import NoLeaseError
from reconciler.loop.loop import Look, Loop
from reconciler.loop.running import ANOTHER_VERSION, NoReconcilerError, opened


class StaleError(RuntimeError):
    """A saved plan is not what would be planned now; nothing was done.

    Attributes:
        reasons: What is different.
    """

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def check(saved: SavedPlan, look: Look) -> None:
    """Hold a saved plan against what would be planned now.

    Raises:
        StaleError: They differ.
    """
    reasons = stale(saved, plan_to_json(look.plan))
    if reasons:
        raise StaleError(reasons)


async def apply_now(loop: Loop, saved: SavedPlan, options: Options) -> Look:
    """For the control socket: carry a saved plan out, if it still is what would be planned.

    Raises:
        StaleError: It is not.
        ServeUnreachableError: The cluster could not be observed.
    """
    check(saved, await loop.look_apart())
    return await loop.reconcile_now(options)


async def ask_to_apply(state_dir: Path, saved: SavedPlan) -> dict[str, Any]:
    """Have the reconciler that runs here apply a plan; gives its plan's outcome once it is settled.

    Raises:
        NoReconcilerError: None answers.
        StaleError: The plan is not what it would plan now.
    """
    try:
        async with (
            # However long the models take to load.
            opened(state_dir, None) as session,
            session.post("/apply", data=saved_to_text(saved).encode()) as answer,
        ):
            found = await answer.json()
    except (aiohttp.ContentTypeError, ValueError) as error:
        raise NoReconcilerError(ANOTHER_VERSION) from error
    except (aiohttp.ClientError, OSError) as error:
        raise NoReconcilerError(str(error)) from error
    if not isinstance(found, dict):
        raise NoReconcilerError(ANOTHER_VERSION)
    if answer.status == CONFLICT and isinstance(found.get("stale"), list):
        raise StaleError(tuple(str(reason) for reason in found["stale"]))
    if found.get("lease") is True:
        raise NoLeaseError(str(found.get("error")))
    if not answer.ok:
        raise NoReconcilerError(str(found.get("error")))
    return found
