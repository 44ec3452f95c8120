"""What only the reconciler that runs knows of the traffic, for another command that looks at the same cluster.

Who waits, who is in use, since when a version has the traffic: a fresh look would take it all for new.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from reconciler.core.state import Json, Observed, Waiting


@dataclass(frozen=True, slots=True)
class Told:
    """A part of `Observed`, under the same names."""

    in_flight: Mapping[str, int] | None = None
    idle_seconds: Mapping[str, float] = field(default_factory=dict)
    up_seconds: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    probing: frozenset[str] = frozenset()
    unanswered: Mapping[str, str] = field(default_factory=dict)
    ages: Mapping[str, float] = field(default_factory=dict)
    draining: Mapping[str, float] = field(default_factory=dict)


_FORM = TypeAdapter(Told)


def told_to_json(observed: Observed) -> Json:
    """For the control socket."""
    told = Told(**{name: getattr(observed, name) for name in Told.__dataclass_fields__})
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(told).items()}


def told_from_json(value: object) -> Told:
    """What another command makes of it.

    Raises:
        ValueError: It has another form, as from another release.
    """
    return _FORM.validate_python(value)
