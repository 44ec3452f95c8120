"""Say what a turn means, once: the loop sees the same plan many times while a change is under way."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from reconciler.core.desired import Desired
from reconciler.core.plan import WAITING, Plan
from reconciler.host.log import get_logger

log = get_logger()

T = TypeVar("T")


class Reporter:
    """Turns plans into events, each when it is new."""

    def __init__(self) -> None:
        self._said: dict[str, frozenset[Hashable]] = {}
        self._busy = True

    def report(self, plan: Plan, desired: Desired) -> None:
        """Log what is new in this plan against the plan before."""
        revision = plan.revision
        for problem in self._new("problem", desired.problems, str):
            log.error(
                "source.problem",
                at=f"{problem.path}:{problem.line}:{problem.column}",
                problem=problem.message,
                hint=problem.hint,
                revision=revision,
            )
        # Not by its cause: while a change goes on, what is left of it reads differently.
        for change in self._new("change", plan.changes, lambda change: (change.model, change.action, change.new)):
            log.info(
                "plan.change",
                model=change.model,
                action=change.action.value,
                cause=change.cause,
                new=change.new,
                old=change.old,
                revision=revision,
            )
        for drift in self._new("drift", plan.drift, lambda drift: drift):
            log.warning(
                "drift.found",
                model=drift.model,
                application=drift.application,
                deed=drift.deed.value,
                healed=drift.healed,
                revision=revision,
            )
        for held in self._new("held", plan.held, lambda held: (held.model, held.kind, held.reason)):
            log.warning(
                "model.held", model=held.model, kind=held.kind.value, reason=held.reason, revision=revision
            )
        for refusal in self._new("refused", plan.refused, lambda refusal: refusal):
            log.error(
                "plan.refused",
                models=list(refusal.models),
                reason=refusal.reason,
                allowed_by=refusal.flag,
                revision=revision,
            )
        waiting = [step for step in plan.steps if step.do in WAITING]
        for step in self._new("waiting", waiting, lambda step: step):
            log.info("model.waiting", model=step.model, application=step.application, why=step.why)
        if plan.settled and self._busy:
            log.info(
                "reconcile.settled",
                revision=revision,
                up=len(plan.unchanged),
                resting=len(plan.resting),
                held=len(plan.held),
                refused=len(plan.refused),
            )
        self._busy = not plan.settled

    def _new(self, kind: str, items: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
        """Those items that were not there in the turn before."""
        keyed = {key(item): item for item in items}
        before = self._said.get(kind, frozenset())
        self._said[kind] = frozenset(keyed)
        return [item for item_key, item in keyed.items() if item_key not in before]
