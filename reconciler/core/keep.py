"""Which weights must stay on disk: what files ask for, what runs, and what may come back. Pure."""

from reconciler.core.desired import Desired
from reconciler.core.model_source import copies_in
from reconciler.core.state import Observed
from reconciler.core.weights import Copy, Keep


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
    unresolved = {wanted.repo for target in desired.targets.values() for wanted in target.unresolved}
    return Keep(frozenset(copies | declared), frozenset(unresolved))
