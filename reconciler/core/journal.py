"""The journal: what a turn adds to it. Pure; `loop.journal` keeps the file and asks once a turn.

A change is noted when it is new and when it ended, however many turns lie between. What comes and goes with every
turn, such as a hold for want of room, counts as going on until it has been away for a while.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from reconciler.core.desired import Desired
from reconciler.core.diff import Effect
from reconciler.core.journal_entry import (
    ACTIONS,
    HOLD,
    MAX_FIELDS,
    MAX_MODELS,
    REFUSAL,
    By,
    Entry,
    Outcome,
    cleaned,
    field_of,
    iso_of,
    moment,
)
from reconciler.core.local_paths import only_content
from reconciler.core.overrides import in_words as override_in_words
from reconciler.core.plan import Action, Change, Held, HeldKind, Plan
from reconciler.core.provenance import Provenance
from reconciler.core.rollback import Rollback, digest_of_fields, short
from reconciler.core.rollback import in_words as rollback_in_words
from reconciler.core.spec import Policy
from reconciler.core.state import Observed, Status
from reconciler.core.suspension import in_words as suspension_in_words

QUIET_SECONDS = 600.0
"""How long a hold or a refusal must have been away before it is over."""


@dataclass(frozen=True, slots=True)
class _Hand:
    """Something that holds by hand."""

    what: str
    model: str
    since: float
    until: float | None
    text: str
    revision: str = ""


class Book:
    """What the journal says is going on, and what a turn adds."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """Read what is going on off the entries there are, the oldest first."""
        self._open: dict[tuple[str, str], Entry] = {}
        self._failed: dict[str, Entry] = {}
        self._holds: dict[tuple[str, ...], Entry] = {}
        self._seen: dict[tuple[str, ...], float] = {}
        self._hands: dict[tuple[str, str], Entry] = {}
        self._quiet: set[tuple[str, str]] = set()
        self._first = True
        for entry in entries:
            self._take(entry)

    def turn(
        self,
        desired: Desired,
        observed: Observed,
        plan: Plan,
        *,
        provenance: Provenance | None = None,
        rollbacks: Sequence[Rollback] = (),
    ) -> list[Entry]:
        """What there is to write down, the oldest first.

        Args:
            desired: What is wanted, rollbacks included.
            observed: What is there, read in the same turn.
            plan: What was made of both.
            provenance: Where the files come from, where that is known.
            rollbacks: What was rolled back by hand.
        """
        at = _Turn(desired, observed, plan, provenance, rollbacks)
        found = self._by_hand(at)
        # Where nothing can be read, nothing has ended.
        if not desired.unreadable:
            found += self._ended(at)
            found += self._started(at)
            self._first = False
        found += self._held(at)
        return found

    # --- changes ------------------------------------------------------------------------------------------

    def _ended(self, at: "_Turn") -> list[Entry]:
        now_open = {(change.model, change.action.value): change for change in at.plan.changes}
        found: list[Entry] = []
        for key, entry in list(self._open.items()):
            change = now_open.get(key) or _still_loading(entry, now_open)
            if change is not None and _is_same(entry, change, at):
                continue
            outcome, reason, kind = at.outcome_of(entry)
            seconds: float | None = round(max(0.0, at.observed.now - moment(entry.at)), 3)
            if self._first:
                # When it ended, nobody saw.
                seconds = None
                if outcome is Outcome.SUPERSEDED:
                    outcome, reason = Outcome.INTERRUPTED, f"by a restart; {reason}"
            end = replace(
                entry,
                at=at.iso,
                outcome=outcome,
                fields=(),
                since=entry.at,
                seconds=seconds,
                reason=cleaned(reason),
                kind=kind,
            )
            said = key in self._quiet and outcome is Outcome.FAILED and self._failed.get(entry.model)
            if said and _plain(said.reason) == _plain(end.reason):
                del self._open[key]
                self._quiet.discard(key)
                continue
            self._take(end)
            found.append(end)
        return found

    def _started(self, at: "_Turn") -> list[Entry]:
        found: list[Entry] = []
        for change in at.plan.changes:
            key = (change.model, change.action.value)
            loads = self._open.get((change.model, Action.LOAD.value))
            if key in self._open or (change.action is Action.ADD and loads and loads.new == change.new):
                continue
            entry = at.entry_of(change)
            failed = self._failed.get(change.model)
            self._take(entry)
            # A try after a failure is news when it ends otherwise.
            if failed is not None and failed.new == entry.new and entry.by != By.HAND:
                self._failed[change.model] = failed
                self._quiet.add(key)
            else:
                found.append(entry)
        return found

    # --- holds and refusals -------------------------------------------------------------------------------

    def _held(self, at: "_Turn") -> list[Entry]:
        found: list[Entry] = []
        now = at.observed.now
        for held in at.plan.held:
            key: tuple[str, ...] = (HOLD, cleaned(held.model), held.kind.value)
            self._seen[key] = now
            if key not in self._holds and not self._is_told(held, at):
                found.append(at.hold_entry(held))
                self._take(found[-1])
        for entry in at.refusal_entries():
            self._seen[_key_of_hold(entry)] = now
            if _key_of_hold(entry) not in self._holds:
                found.append(entry)
                self._take(entry)
        for hold, entry in list(self._holds.items()):
            if now - self._seen.setdefault(hold, now) >= QUIET_SECONDS:
                end = replace(entry, at=at.iso, outcome=Outcome.OVER, since=entry.at, seconds=None, reason="")
                self._take(end)
                found.append(end)
        self._seen = {hold: seen for hold, seen in self._seen.items() if hold in self._holds}
        return found

    def _is_told(self, held: Held, at: "_Turn") -> bool:
        """How the change ended says it already."""
        failed, target = self._failed.get(held.model), at.desired.targets.get(held.model)
        if held.kind is not HeldKind.FAILED or failed is None or target is None:
            return False
        return failed.new == target.application

    # --- commands -----------------------------------------------------------------------------------------

    def _by_hand(self, at: "_Turn") -> list[Entry]:
        found: list[Entry] = []
        hands = {(hand.what, hand.model): hand for hand in at.hands()}
        for key, hand in hands.items():
            before = self._hands.get(key)
            if before is None or before.at != iso_of(hand.since):
                entry = Entry(
                    iso_of(hand.since),
                    hand.model,
                    hand.what,
                    Outcome.GIVEN,
                    cause=cleaned(hand.text),
                    by=By.HAND,
                    revision=hand.revision or at.plan.revision,
                    until="" if hand.until is None else iso_of(hand.until),
                )
                self._take(entry)
                found.append(entry)
        for entry in [entry for key, entry in self._hands.items() if key not in hands]:
            over = bool(entry.until) and moment(entry.until) <= at.observed.now
            reason = "its time is over" if over else "it is done, or was ended"
            end = replace(entry, at=at.iso, outcome=Outcome.ENDED, since=entry.at, reason=reason)
            self._take(end)
            found.append(end)
        return found

    def _take(self, entry: Entry) -> None:
        if entry.outcome is Outcome.GIVEN:
            self._hands[entry.what, entry.model] = entry
        elif entry.outcome is Outcome.ENDED:
            self._hands.pop((entry.what, entry.model), None)
        elif entry.outcome is Outcome.OVER:
            self._holds.pop(_key_of_hold(entry), None)
        elif entry.what in (HOLD, REFUSAL):
            self._holds[_key_of_hold(entry)] = entry
        elif entry.what in ACTIONS:
            self._take_change(entry)

    def _take_change(self, entry: Entry) -> None:
        key = (entry.model, entry.what)
        if entry.outcome is Outcome.STARTED:
            self._open[key] = entry
            self._failed.pop(entry.model, None)
            for hold in [hold for hold in self._holds if hold[:2] == (HOLD, entry.model)]:
                del self._holds[hold]
            return
        self._open.pop(key, None)
        self._quiet.discard(key)
        if entry.outcome is Outcome.FAILED:
            self._failed[entry.model] = entry
        elif entry.outcome is Outcome.DONE:
            self._failed.pop(entry.model, None)
        elif entry.outcome is Outcome.HELD:
            held = replace(entry, what=HOLD, cause=entry.reason)
            self._holds[_key_of_hold(held)] = held


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn, and what it says about changes."""

    desired: Desired
    observed: Observed
    plan: Plan
    provenance: Provenance | None
    rollbacks: Sequence[Rollback]

    @property
    def iso(self) -> str:
        return iso_of(self.observed.now)

    def entry_of(self, change: Change) -> Entry:
        """The first entry of a change."""
        target = self.desired.targets.get(change.model)
        return self._signed(
            Entry(
                self.iso,
                change.model,
                change.action.value,
                Outcome.STARTED,
                cause=cleaned(change.cause),
                by=self._by(change),
                file=cleaned(change.file),
                old=change.old,
                new=change.new,
                fields=tuple(field_of(each) for each in change.fields[:MAX_FIELDS]),
                digest=digest_of_fields(target.fields) if target is not None else "",
            )
        )

    def hold_entry(self, held: Held) -> Entry:
        """The entry of a hold."""
        by = {HeldKind.SUSPENDED: By.HAND, HeldKind.DRIFT: By.DRIFT}
        return self._signed(
            Entry(
                self.iso,
                cleaned(held.model),
                HOLD,
                Outcome.HELD,
                cause=cleaned(self._why_held(held)),
                by=by.get(held.kind, By.FILE),
                file=cleaned(held.file),
                kind=held.kind.value,
            )
        )

    def _why_held(self, held: Held) -> str:
        if held.kind is not HeldKind.INVALID:
            return held.reason
        problem = next((each for each in self.desired.problems if each.path == held.file), None)
        return f"{held.reason}: {problem}" if problem is not None else held.reason

    def refusal_entries(self) -> list[Entry]:
        """The entries of what safety rules forbid."""
        return [
            self._signed(
                Entry(
                    self.iso,
                    "",
                    REFUSAL,
                    Outcome.REFUSED,
                    cause=cleaned(each.reason),
                    by=By.SAFETY,
                    kind=each.flag,
                    models=each.models[:MAX_MODELS],
                )
            )
            for each in self.plan.refused
        ]

    def outcome_of(self, entry: Entry) -> tuple[Outcome, str, str]:
        """What became of a change that the plan does not have any more: outcome, reason, kind of hold."""
        failure = self.observed.failures.get(entry.new or "")
        held = next((each for each in self.plan.held if each.model == entry.model), None)
        refused = next((each for each in self.plan.refused if entry.model in each.models), None)
        if (done := self._done(entry)) is not None:
            return Outcome.DONE, done, ""
        # The entry's time is rounded.
        if failure is not None and failure.at >= moment(entry.at) - 0.01:
            return Outcome.FAILED, failure.reason, ""
        if held is not None and held.kind is HeldKind.FAILED:
            return Outcome.FAILED, held.reason, ""
        if held is not None:
            return Outcome.HELD, self._why_held(held), held.kind.value
        if refused is not None:
            return Outcome.REFUSED, refused.reason, ""
        return Outcome.SUPERSEDED, self._instead_of(entry), ""

    def _done(self, entry: Entry) -> str | None:
        """How it came about, which is mostly not worth a word; None where it did not."""
        model, apps = entry.model, self.observed.of_model(entry.model)
        live = [app for app in apps if app.status is not Status.DELETING]
        record = self.observed.records.get(model)
        if entry.what in (Action.UNLOAD, Action.REMOVE):
            return None if live else ""
        if entry.what == Action.SLEEP:
            return "" if any(app.name in self.observed.asleep for app in live) else None
        if entry.what in (Action.UPDATE, Action.FRONT_DOOR):
            return "" if record is not None and digest_of_fields(record.spec) == entry.digest else None
        if self.observed.routes.get(model) == entry.new:
            return ""
        if entry.what == Action.ADD and not live and all(each.model != model for each in self.plan.held):
            # Its weights are there; a request loads it.
            return next((each.reason for each in self.plan.resting if each.model == model), None)
        return None

    def _instead_of(self, entry: Entry) -> str:
        other = next((each for each in self.plan.changes if each.model == entry.model), None)
        if other is not None:
            revision = f" of {short(self.plan.revision)}" if self.plan.revision != entry.revision else ""
            return f"{other.action.value}{revision}: {other.cause}"
        resting = next((each.reason for each in self.plan.resting if each.model == entry.model), "")
        if resting or entry.model in self.desired.targets:
            return resting or f"what {short(self.plan.revision)} declares is there"
        return f"{short(self.plan.revision)} does not declare it"

    def hands(self) -> list[_Hand]:
        """What holds by hand."""
        now = self.observed.now
        found = [_Hand("rollback", e.about, e.since, e.until, rollback_in_words(e, now), e.revision_to)
                 for e in self.rollbacks]  # fmt: skip
        found += [_Hand("suspend", e.model, e.since, e.until, suspension_in_words(e, now))
                  for e in self.observed.suspensions if not e.ended(now)]  # fmt: skip
        for model, each in self.observed.overrides.items():
            target = self.desired.targets.get(model)
            policy = target.spec.lifecycle.policy if target is not None else Policy.ON_DEMAND
            text = override_in_words(each, policy, now)
            found.append(_Hand(each.kind.value, model, each.since, each.until, text))
        return found

    def _by(self, change: Change) -> By:
        if any(each.model == change.model for each in self.plan.drift):
            return By.DRIFT
        if change.action is Action.RESTORE:
            return By.FALLBACK
        if change.action in (Action.LOAD, Action.UNLOAD, Action.SLEEP):
            return self._by_whom(change)
        if any(each.covers(change.file) for each in self.rollbacks):
            return By.ROLLBACK
        return self._by_what(change)

    def _by_what(self, change: Change) -> By:
        """What is behind a difference that no person and no request asked for."""
        target, record = self.desired.targets.get(change.model), self.observed.records.get(change.model)
        if target is not None and record is not None and record.spec == target.fields:
            if change.action is Action.ADD:
                return By.CLUSTER
            if change.action is Action.REPLACE and change.old == record.application:
                return By.SETTINGS
        engine = {each.path for each in change.fields if each.effect is Effect.NEW_ENGINE}
        return By.HUB if engine == {"source.commit"} else By.FILE

    def _by_whom(self, change: Change) -> By:
        if change.model in self.observed.overrides:
            return By.HAND
        target = self.desired.targets.get(change.model)
        manual = target is not None and target.spec.lifecycle.policy is Policy.MANUAL
        due = manual or (change.action is Action.LOAD and change.model not in self.observed.waiting)
        return By.SCHEDULE if due and change.model in self.observed.windows else By.TRAFFIC

    def _signed(self, entry: Entry) -> Entry:
        """The entry with the commit that it comes from."""
        rollback = next((each for each in reversed(self.rollbacks) if each.covers(entry.file)), None)
        if rollback is not None:
            return replace(entry, revision=rollback.revision_to)
        entry = replace(entry, revision=self.plan.revision)
        if self.provenance is None:
            return entry
        by = self.provenance.changed.get(entry.file) or self.provenance.removed.get(entry.file)
        # Of folders nobody knows who changed them: whoever wrote the file did not.
        if by is None or only_content([each.path for each in entry.fields]):
            return entry
        return replace(entry, commit=by.short, author=cleaned(by.author), subject=cleaned(by.subject))


def _is_same(entry: Entry, change: Change, at: _Turn) -> bool:
    if entry.new != change.new:
        return False
    if change.action not in (Action.UPDATE, Action.FRONT_DOOR):
        return True
    # The same application throughout: here the file tells one change from the next.
    return digest_of_fields(at.desired.targets[change.model].fields) == entry.digest


def _still_loading(entry: Entry, changes: Mapping[tuple[str, str], Change]) -> Change | None:
    # Whoever asked for it may have left; it comes up all the same.
    return changes.get((entry.model, Action.ADD.value)) if entry.what == Action.LOAD else None


def _key_of_hold(entry: Entry) -> tuple[str, ...]:
    return (entry.what, entry.model, entry.kind, *entry.models)


def _plain(text: str) -> str:
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f.]*", "#", text)
