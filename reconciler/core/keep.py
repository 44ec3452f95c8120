"""Which weights must stay on disk: what files ask for, what runs, what may come back, what served lately. Pure."""

from collections.abc import Iterable

from reconciler.core.desired import Desired
from reconciler.core.model_source import copies_in
from reconciler.core.state import Observed, Record
from reconciler.core.weights import Copy, Keep


def recent_after(record: Record | None, copies: Iterable[Copy], versions: int) -> tuple[str, ...]:
    """The `recent` of a model's next record.

    Args:
        record: The one before.
        copies: What the version that serves now reads.
        versions: How many earlier versions are remembered.
    """
    now = " ".join(sorted({f"{copy.repo}@{copy.commit}" for copy in copies}))
    before = record.recent if record is not None else ()
    return tuple(dict.fromkeys(filter(None, (now, *before))))[: versions + 1]


def what_to_keep(desired: Desired, observed: Observed) -> Keep | None:
    """Everything that somebody needs, or may need; None where that cannot be told.

    A file that is not valid may ask for anything, and a source that cannot be read for everything.
    """
    if desired.unreadable or desired.invalid:
        return None
    configs = [target.config for target in desired.targets.values()]
    configs += [app.config for app in observed.applications.values() if app.config is not None]
    configs += [record.previous for record in observed.records.values() if record.previous is not None]
    copies = {copy for config in configs for copy in copies_in(config)}
    declared: set[Copy] = {copy for target in desired.targets.values() for copy in target.copies}
    texts = (text for record in observed.records.values() for version in record.recent for text in version.split())
    recent = {Copy(repo, commit) for repo, _, commit in (text.rpartition("@") for text in texts)}
    unresolved = {wanted.repo for target in desired.targets.values() for wanted in target.unresolved}
    return Keep(frozenset(copies | declared | recent), frozenset(unresolved))
