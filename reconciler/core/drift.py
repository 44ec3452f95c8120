"""Drift: what became of an application behind our back. Pure.

An application of ours is as we left it, or somebody else changed or deleted it. What Ray Serve does by itself
(another number of replicas, a replica that is started again) touches no configuration, and is no drift.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from reconciler.core.state import Application, Json, Status


class Deed(StrEnum):
    """What was done."""

    DELETED = "deleted"
    CHANGED = "changed"

    def of(self, application: str) -> str:
        """In words."""
        if self is Deed.DELETED:
            return f"{application} is gone from Ray Serve, and the reconciler did not remove it"
        return f"{application} was changed in Ray Serve, and not by the reconciler"


@dataclass(frozen=True, slots=True)
class Drift:
    """One application that is not as we left it.

    Attributes:
        model: Its model.
        healed: It is put right; else it is only reported.
        missed: It is not as it should be.
    """

    model: str
    application: str
    deed: Deed
    healed: bool
    missed: bool = True

    @property
    def over(self) -> bool:
        """There is nothing to put right."""
        return not self.missed

    @property
    def text(self) -> str:
        """In words."""
        if self.healed:
            end = "it is put right"
        elif self.missed:
            end = "it is left so"
        else:
            end = "it need not be there" if self.deed is Deed.DELETED else "it is as its file wants it"
        return f"{self.deed.of(self.application)}; {end}"


def digest_of(config: Json) -> str:
    """A digest of an application's configuration: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def deeds(left: Mapping[str, str], applications: Mapping[str, Application]) -> dict[str, Deed]:
    """What was done to applications that we left otherwise.

    Args:
        left: By application of ours, the digest of the configuration that we left it with.
        applications: What Serve has.
    """
    found: dict[str, Deed] = {}
    for name, digest in left.items():
        app = applications.get(name)
        if app is None or app.status is Status.DELETING:
            found[name] = Deed.DELETED
        elif app.config is None or digest_of(app.config) != digest:
            found[name] = Deed.CHANGED
    return found
