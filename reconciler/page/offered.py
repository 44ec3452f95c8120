"""Which buttons a model has: only commands that would be carried out as it stands, so that none is in vain.

What the API says of a model -> the same rules that the command meets in `loop.by_hand` -> the templates
"""

import time

from reconciler.api.schemas import ModelView
from reconciler.core.overrides import Kind, Override, OverrideError, give
from reconciler.core.spec import Policy
from reconciler.core.weights import Phase

_DOWN = frozenset({"unloaded", "sleeping", "failed", "unloading"})
_UP = frozenset({"loaded", "loading", "sleeping"})
_A_WHILE = 3600.0


def offered(model: ModelView) -> dict[str, str]:
    """The commands of one click, each with what its button says, in the order of the buttons."""
    buttons: dict[str, str] = {}
    override, state = _override(model), model.actual.state
    held = override.kind if override is not None else None
    if state in _DOWN and _is_accepted(model, Kind.LOAD):
        buttons["load"] = "Load"
    if state in _UP and _is_accepted(model, Kind.UNLOAD):
        buttons["unload"] = "Unload"
    if held is not Kind.PIN and _is_accepted(model, Kind.PIN):
        pinned = model.desired is not None and model.desired.policy == Policy.PINNED
        # Of a model that its file pins it only ends what was asked for before.
        buttons["pin"] = "End what holds by hand" if pinned else "Pin"
    if held is not Kind.UNPIN and _is_accepted(model, Kind.UNPIN):
        buttons["unpin"] = "Unpin"
    if model.desired is not None and any(copy.phase != Phase.READY for copy in model.weights):
        buttons["pull"] = "Pull"
    if model.suspended is None and is_there(model):
        buttons["suspend"] = "Suspend"
    if model.suspended is not None and not model.suspended_by_all:
        buttons["resume"] = "Resume"
    return buttons


def offered_for_a_time(model: ModelView) -> frozenset[str]:
    """Of `pin`, `unload` and `suspend` those that may be given with an end."""
    found = {kind.value for kind in (Kind.PIN, Kind.UNLOAD) if _is_accepted(model, kind, _A_WHILE)}
    if model.desired is not None and model.desired.policy == Policy.PINNED:
        found -= {Kind.PIN.value}
    return frozenset(found | ({"suspend"} if is_there(model) else set()))


def is_there(model: ModelView) -> bool:
    """A valid file declares it, or it runs: else there is nothing to hold or to take back."""
    return model.desired is not None or model.actual.application is not None or bool(model.actual.replicas)


def _is_accepted(model: ModelView, kind: Kind, seconds: float | None = None) -> bool:
    if model.desired is None or (model.suspended is not None and kind in (Kind.LOAD, Kind.UNLOAD)):
        return False
    stays = model.window_open and kind in (Kind.UNLOAD, Kind.UNPIN)
    policy = Policy.PINNED if stays else Policy(model.desired.policy)
    try:
        give(kind, model.name, policy, _override(model), now=time.time(), for_seconds=seconds)
    except OverrideError:
        return False
    return True


def _override(model: ModelView) -> Override | None:
    """What holds by hand, as the rules take it; when it began is nothing to them."""
    held = model.override
    return None if held is None else Override(model.name, Kind(held.kind), 0.0, held.until)
