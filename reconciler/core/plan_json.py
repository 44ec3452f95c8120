"""A plan as JSON, for machines. Within one format version fields are only added."""

from dataclasses import asdict

from reconciler.core.plan import FORMAT_VERSION, Action, Plan
from reconciler.core.state import Json


def plan_to_json(plan: Plan) -> Json:
    """The plan as a JSON-able dict."""
    return {
        "format_version": FORMAT_VERSION,
        "revision": plan.revision,
        "base": {"desired": plan.desired_digest, "observed": plan.observed_digest},
        "changes": [asdict(change) for change in plan.changes],
        "held": [asdict(held) for held in plan.held],
        "refused": [asdict(refusal) for refusal in plan.refused],
        "steps": [asdict(step) for step in plan.steps],
        "unchanged": list(plan.unchanged),
        "resting": [asdict(resting) for resting in plan.resting],
        "drift": [{**asdict(drift), "text": drift.text} for drift in plan.drift],
        "notes": [asdict(note) for note in plan.notes],
        "gpus": [asdict(gpu) for gpu in plan.gpus],
        "summary": counts(plan),
        "settled": plan.settled,
    }


def counts(plan: Plan) -> dict[str, int]:
    """How many models each kind of change concerns."""
    actions = {action.value: 0 for action in Action}
    for change in plan.changes:
        actions[change.action.value] += 1
    return {
        **actions,
        "held": len(plan.held),
        "refused": len(plan.refused),
        "unchanged": len(plan.unchanged),
        "resting": len(plan.resting),
    }
