"""Say what a turn means, once: the loop sees the same plan many times while a change is under way."""

from reconciler.core.desired import Desired
from reconciler.core.plan import WAITING, Plan
from reconciler.host.log import get_logger

log = get_logger()


class Reporter:
    """Turns plans into events, each when it is new."""

    def __init__(self) -> None:
        self._said: dict[str, frozenset[tuple[str, ...]]] = {}
        self._busy = True

    def report(self, plan: Plan, desired: Desired) -> None:
        """Log what is new in this plan against the plan before."""
        revision = plan.revision
        for path, line, column, text in self._new(
            "problem",
            {(p.path, str(p.line), str(p.column), f"{p.message} {p.hint}".strip()) for p in desired.problems},
        ):
            log.error("source.problem", at=f"{path}:{line}:{column}", problem=text, revision=revision)
        changes = {(c.model, c.action.value, c.cause, c.new or "", c.old or "") for c in plan.changes}
        for model, action, cause, new, old in self._new("change", changes):
            log.info("plan.change", model=model, action=action, cause=cause, new=new, old=old, revision=revision)
        held = {(h.model, h.kind.value, h.reason) for h in plan.held}
        for model, kind, reason in self._new("held", held):
            log.warning("model.held", model=model, kind=kind, reason=reason, revision=revision)
        refused = {(", ".join(r.models), r.reason, r.flag) for r in plan.refused}
        for models, reason, flag in self._new("refused", refused):
            log.error("plan.refused", models=models, reason=reason, allowed_by=flag, revision=revision)
        waiting = {(s.model, s.application, s.why) for s in plan.steps if s.do in WAITING}
        for model, application, why in self._new("waiting", waiting):
            log.info("model.waiting", model=model, application=application, why=why)
        if plan.settled and self._busy:
            log.info(
                "reconcile.settled",
                revision=revision,
                up=len(plan.unchanged),
                held=len(plan.held),
                refused=len(plan.refused),
            )
        self._busy = not plan.settled

    def _new(self, kind: str, items: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
        fresh = sorted(items - self._said.get(kind, frozenset()))
        self._said[kind] = frozenset(items)
        return fresh
