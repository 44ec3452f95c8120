"""Rules that stop a plan from taking down what serves by mistake. Pure; each rule has a test that names it."""

from collections.abc import Collection

from reconciler.core.plan import Refusal

ALLOW_FLAG = "--dangerous-allow-removals"


def refuse_removals(
    removed: Collection[str], running: Collection[str], *, declared: int, unreadable: str, allowed: bool
) -> Refusal | None:
    """Why the removals must not be carried out, or None where they may.

    Args:
        removed: Models that run and are no longer declared.
        running: Models of ours that run, or made way for another version of themselves just now.
        declared: How many model files there are, valid or not.
        unreadable: Why the source could not be read; empty when it could.
        allowed: The operator gave the flag.
    """
    models = tuple(sorted(removed))
    if unreadable:
        # No flag helps: what could not be read says nothing about what should be removed.
        return Refusal(tuple(sorted(running)), f"the model files cannot be read: {unreadable}", "")
    if allowed:
        return None
    if declared == 0:
        return Refusal(
            models, "there is no model file at all; that is more often a mistake than a wish", ALLOW_FLAG
        )
    if models and 2 * len(models) > len(running):
        return Refusal(
            models, f"{len(models)} of the {len(running)} models that run would go, more than half", ALLOW_FLAG
        )
    return None
