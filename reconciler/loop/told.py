"""What only the reconciler that runs knows, of traffic and source, for another command that looks at the same.

Who waits, who is in use, since when a version has the traffic: a fresh look would take it all for new.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from reconciler.core.desired import Desired
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


@dataclass(frozen=True, slots=True)
class Freshness:
    """How the running reconciler's source is: a part of `Provenance`, under the same names."""

    checked_at: float = 0.0
    problem: str = ""


_FORM = TypeAdapter(Told)
_SOURCE_FORM = TypeAdapter(Freshness)


def told_to_json(observed: Observed) -> Json:
    """For the control socket."""
    told = Told(**{name: getattr(observed, name) for name in Told.__dataclass_fields__})
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(told).items()}


def freshness_to_json(desired: Desired) -> Json:
    """For the control socket."""
    given = desired.provenance
    return asdict(Freshness(given.checked_at, given.problem) if given is not None else Freshness())


def freshness_from_json(value: object) -> Freshness:
    """What another command makes of it.

    Raises:
        ValueError: It has another form, as from another release.
    """
    return _SOURCE_FORM.validate_python(value)


def told_from_json(value: object) -> Told:
    """What another command makes of it.

    Raises:
        ValueError: It has another form, as from another release.
    """
    return _FORM.validate_python(value)
