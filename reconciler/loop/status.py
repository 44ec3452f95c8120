"""Where each model stands after a turn, in one place: `reconcile status`, the API and the page show the same.

Look (files, cluster, plan) -> `statuses` -> rows of the command line, or what `reconciler.api` answers
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from reconciler.activator.directory import Entry, ModelState
from reconciler.core.overrides import in_words, is_drift
from reconciler.core.plan import Change, Held, HeldKind
from reconciler.core.state import Application, Json, Replica
from reconciler.core.suspension import in_words as suspension_in_words
from reconciler.core.suspension import suspension_of
from reconciler.core.target import Target
from reconciler.core.weights import CopyState, Phase
from reconciler.core.weights_json import states_to_json
from reconciler.loop.directory import build_directory
from reconciler.loop.loop import Look


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model.

    Attributes:
        entry: As `/v1/models` shows it; None where it is not listed there.
        target: What its file wants; None where no valid file declares it.
        routed: The application that has its traffic.
        app: The same as Serve describes it, where it is there.
        change: The change that is pending.
        held: Why it is left as it is.
    """

    look: Look
    model: str
    entry: Entry | None
    target: Target | None
    routed: str
    app: Application | None
    change: Change | None
    held: Held | None

    @property
    def state(self) -> ModelState:
        """What is up."""
        return self.entry.state if self.entry is not None else ModelState.UNLOADED

    @property
    def sync(self) -> str:
        """`in sync`, `held`, or the action that is pending."""
        if self.held is not None:
            return "held"
        return self.change.action.value if self.change is not None else "in sync"

    @property
    def invalid(self) -> bool:
        """What speaks for it is a file with mistakes."""
        if self.held is not None:
            return self.held.kind is HeldKind.INVALID
        return self.target is None and any(self.model in (file.claims or ()) for file in self.look.desired.invalid)

    @property
    def reason(self) -> str:
        """Why it is held, or what it waits for that is not up."""
        if self.held is not None:
            return self.held.reason
        return self.entry.reason if self.entry is not None and self.entry.state is not ModelState.LOADED else ""

    @property
    def file(self) -> str | None:
        """The file that declares it, or did last."""
        if self.target is not None:
            return self.target.file
        record = self.look.observed.records.get(self.model)
        return record.file if record is not None else None

    @property
    def in_flight(self) -> int | None:
        """Its requests; None where nobody can tell."""
        in_flight = self.look.observed.in_flight
        return in_flight.get(self.routed, 0) if in_flight is not None else None

    @property
    def suspended(self) -> str | None:
        """Its suspension in words."""
        observed = self.look.observed
        suspension = suspension_of(observed.suspensions, self.model, observed.now)
        return None if suspension is None else suspension_in_words(suspension, observed.now)

    @property
    def override(self) -> Json | None:
        """What holds by hand; `drift` where the file wants something else."""
        override = self.look.observed.overrides.get(self.model)
        if override is None or self.target is None:
            return None
        policy = self.target.spec.lifecycle.policy
        text = in_words(override, policy, self.look.observed.now)
        return {
            "kind": override.kind.value,
            "until": override.until,
            "drift": is_drift(override, policy),
            "text": text,
        }

    @property
    def changed_by(self) -> Json | None:
        """The commit that changed its file last, where that is known."""
        commit = self.look.desired.changed_last(self.target.file) if self.target is not None else None
        return asdict(commit) if commit is not None else None

    @property
    def weights(self) -> list[Json]:
        """The repositories that it is made of: which commit, and how far the copy is."""
        if self.target is None:
            return []
        live = self.target.application in self.look.observed.applications
        there = CopyState(Phase.READY)
        observed = self.look.observed.weights
        states = {copy: observed.get(copy, there if live else CopyState()) for copy in self.target.copies}
        rows = states_to_json(states)
        return [{**row, "revision": self.target.copies[copy]} for row, copy in zip(rows, states, strict=True)]

    def row(self) -> Json:
        """For `reconcile status`."""
        app = self.app
        return {
            "model": self.model,
            "state": self.state.value,
            "sync": self.sync,
            "reason": self.reason,
            "policy": self.target.spec.lifecycle.policy.value if self.target is not None else None,
            "override": self.override,
            "suspended": self.suspended,
            "expected_wait": self.entry.expected_wait if self.entry is not None else None,
            "application": app.name if app is not None else None,
            "health": app.status.value if app is not None else None,
            "replicas": _replicas(app.replicas if app is not None else ()),
            "in_flight": self.in_flight,
            "idle_seconds": self.look.observed.idle_seconds.get(self.routed),
            "file": self.file,
            "revision": self.look.desired.revision_of(self.file or ""),
            "changed_by": self.changed_by,
            "weights": self.weights,
            "pids": [replica.pid for replica in app.replicas] if app is not None else [],
        }


def statuses(look: Look, *, invalid: bool = False) -> list[ModelStatus]:
    """Every model that is declared or runs, by name.

    Args:
        look: Of one turn.
        invalid: Those too that do not run and of which there are only invalid files.
    """
    desired, observed = look.desired, look.observed
    directory = build_directory(desired, observed, look.plan, created=0)
    changes = {change.model: change for change in look.plan.changes}
    held = {held.model: held for held in look.plan.held}
    names = {*desired.targets, *observed.routes}
    names |= {app.model for app in observed.applications.values() if app.model is not None}
    if invalid:
        names |= {name for file in desired.invalid for name in file.claims or ()}
    found: list[ModelStatus] = []
    for model in sorted(names):
        routed = observed.routes.get(model, "")
        app = observed.applications.get(routed)
        entry, target = directory.find(model), desired.targets.get(model)
        found.append(ModelStatus(look, model, entry, target, routed, app, changes.get(model), held.get(model)))
    return found


def source_of(look: Look) -> Json | None:
    """Where the files come from, where the source can tell."""
    provenance = look.desired.provenance
    if provenance is None:
        return None
    return {
        "url": provenance.url,
        "ref": provenance.ref,
        **asdict(provenance.commit),
        "signed_by": provenance.signed_by,
        "checked_at": provenance.checked_at,
        "age_seconds": max(0.0, look.observed.now - provenance.checked_at),
        "problem": provenance.problem,
    }


def _replicas(replicas: Iterable[Replica]) -> str:
    states = [replica.state for replica in replicas]
    return f"{states.count('RUNNING')}/{len(states)}" if states else "-"
