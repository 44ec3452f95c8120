"""A model whose weights are not all there: what to fetch, what to wait for, what only somebody else can mend."""

from reconciler.core.plan import Do, Held, HeldKind
from reconciler.core.target import Target
from reconciler.core.turn import Turn
from reconciler.core.weights import Copy, CopyPlan, CopyState, Phase


def weights_problem(turn: Turn, target: Target) -> Held | None:
    """Why the weights cannot be had now; None where they are there or come by themselves."""
    for path in target.paths:
        missing = turn.observed.missing_paths.get(path)
        if missing is not None:
            return Held(target.model, HeldKind.MISSING, missing, target.file)
    for resolution in target.unresolved.values():
        if resolution.problem:
            return Held(target.model, HeldKind.MISSING, resolution.problem, target.file, resolution.retry_at)
    for state in _states(turn, target).values():
        if state.phase is Phase.FAILED:
            return Held(target.model, HeldKind.MISSING, state.reason, target.file, state.retry_at)
    return None


def fetch_weights(turn: Turn, target: Target) -> bool:
    """Take the steps that bring the weights; False where they are all there."""
    for wanted, resolution in target.unresolved.items():
        if not resolution.problem:
            why = f"asks the hub which commit {wanted.repo}@{wanted.revision} is"
            turn.step(Do.AWAIT, target.model, target.application, why)
    missing = _missing(turn, target)
    coming = [copy for copy, state in missing.items() if state.phase is not Phase.FAILED]
    if coming:
        what = ", ".join(str(copy) for copy in coming)
        turn.step(Do.FETCH, target.model, target.application, f"downloads {what}")
    return bool(missing or target.unresolved)


def lacks_weights(turn: Turn, target: Target) -> bool:
    """Something has to be fetched for it first."""
    return bool(target.unresolved or _missing(turn, target))


def downloads_of(turn: Turn, target: Target) -> tuple[CopyPlan, ...]:
    """What a plan says about the weights that are not there."""
    return tuple(
        CopyPlan(copy.repo, target.copies[copy], copy.commit, state.total, state.done, state.free, state.reason)
        for copy, state in _missing(turn, target).items()
    )


def _missing(turn: Turn, target: Target) -> dict[Copy, CopyState]:
    return {copy: state for copy, state in _states(turn, target).items() if state.phase is not Phase.READY}


def _states(turn: Turn, target: Target) -> dict[Copy, CopyState]:
    return {copy: turn.observed.weights.get(copy, CopyState()) for copy in target.copies}
