"""A plan: what differs, why, what will be done about it, and what is to be done right now.

`changes`, `held` and `refused` are for people and machines to read before anything happens. `steps` and
`applications` are what `loop.act` carries out in this turn; a change takes several turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from reconciler.core.diff import FieldChange
from reconciler.core.drift import Drift
from reconciler.core.state import Json
from reconciler.core.weights import CopyPlan

FORMAT_VERSION = 1


class Action(StrEnum):
    """What happens to a model."""

    ADD = "add"
    REPLACE = "replace"
    UPDATE = "update"
    FRONT_DOOR = "front door"
    RESTORE = "restore"
    LOAD = "load"
    """A model at rest comes up: it is asked for, by a request, by hand or by its schedule."""
    SLEEP = "sleep"
    """It is idle: its weights go to main memory, and its GPU memory is given back."""
    UNLOAD = "unload"
    """It goes, and stays declared: it is idle, makes room, or is sent away by hand."""
    REMOVE = "remove"


class Order(StrEnum):
    """How a version replaces another."""

    BESIDE = "beside"
    """The new one comes up and is probed, takes the traffic, then the old one is drained and removed."""
    IN_TURN = "in turn"
    """There is no room for both: the old one goes first and comes back if the new one fails."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one rank of a version takes on its GPU, or the whole version of main memory. Sizes are in bytes.

    Attributes:
        where: The kind of GPU, or `main memory`.
        total: Of one such GPU; 0 for main memory.
        ranks: GPUs that it is spread over.
        gpus: What Ray reserves on each, 1 for a whole one.
        needed: In all, with the KV cache and what lies outside the engine's budget.
        needed_safe: What that should not exceed.
        basis: Where the numbers come from: `measured` when it ran before, the `tensors` of the checkpoint, or its
            `config`, where there are no tensors to be read.
        fits_safely: It fits with every term at its safe value.
    """

    where: str
    total: int
    ranks: int
    gpus: float
    needed: int
    needed_safe: int
    weights: int
    kv_cache: int
    kv_tokens: int
    max_model_len: int
    basis: str
    fits_safely: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One model's difference, with its cause in words."""

    model: str
    action: Action
    cause: str
    fields: tuple[FieldChange, ...] = ()
    old: str | None = None
    """The application that goes."""
    new: str | None = None
    """The application that comes."""
    order: Order | None = None
    phase: str = ""
    """Where a change that is under way stands; empty before it starts."""
    file: str = ""
    downloads: tuple[CopyPlan, ...] = ()
    """What has to be fetched for it first."""
    memory: Memory | None = None
    """What the version that comes will take; None where that is not known."""
    for_room: bool = False
    """It goes, though it need not, so that another one has room."""


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU, as it is and as it will be once the plan is carried out.

    Attributes:
        node: The node's name.
        total: Bytes that CUDA can have of it; 0 where nobody knows.
        before: Share that Ray has reserved, now.
        after: The same when everything of the plan is up that has a place.
        foreign: Share that processes have which are not Ray's.
        failed: Why it is left out of planning; empty while it is well.
        applications: Those that are on it afterwards, as far as that can be foreseen.
    """

    node: str
    index: int
    name: str
    total: int
    before: float
    after: float
    foreign: float = 0.0
    failed: str = ""
    applications: tuple[str, ...] = ()


class HeldKind(StrEnum):
    """Why a model is left as it is."""

    INVALID = "invalid file"
    FAILED = "failed"
    NO_ROOM = "no room"
    DOES_NOT_FIT = "does not fit"
    MISSING = "missing weights"
    WRONG_ENGINE = "wrong engine"
    SUSPENDED = "suspended"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class Held:
    """A model that is not where its file wants it, and will not be until something changes."""

    model: str
    kind: HeldKind
    reason: str
    file: str = ""
    retry_at: float | None = None
    """Seconds since the epoch of the next try; None where only a change helps."""
    advice: tuple[str, ...] = ()
    """Changes of its file that would help, each with its numbers, the mildest first."""
    on_request: bool = False
    """A request is enough to try it again."""


@dataclass(frozen=True, slots=True)
class Resting:
    """A model that is not up, or leaves, and as things are need not be up."""

    model: str
    reason: str
    file: str = ""
    on_request: bool = True
    """A request is enough to bring it up."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a safety rule forbids, and the flag that allows it."""

    models: tuple[str, ...]
    reason: str
    flag: str


class Do(StrEnum):
    """One thing to do, or to wait for, in this turn."""

    FETCH = "fetch"
    START = "start"
    UPDATE = "update"
    REMOVE = "remove"
    PROBE = "probe"
    ROUTE = "route"
    UNROUTE = "unroute"
    FAIL = "fail"
    RECORD = "record"
    KEEP_PREVIOUS = "keep previous"
    FORGET_PREVIOUS = "forget previous"
    AWAIT = "await"
    DRAIN = "drain"
    END_OVERRIDE = "end override"
    SLEEP = "sleep"
    WAKE = "wake"


WAITING = frozenset({Do.AWAIT, Do.DRAIN})
"""Steps that nobody carries out: time does."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step for one application of a model."""

    do: Do
    model: str
    application: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know about a model: that its branch moved and it does not follow, say."""

    model: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan.

    Attributes:
        applications: The configurations that Serve should hold, by name, foreign ones included; None where that
            is what it holds already, or where a PUT has to wait.
        revision: The source's revision it was made from.
        desired_digest: Digest of the model files and settings.
        observed_digest: Digest of the applications that were observed; a plan whose digest no longer matches is
            stale and is not applied.
    """

    changes: tuple[Change, ...] = ()
    held: tuple[Held, ...] = ()
    refused: tuple[Refusal, ...] = ()
    steps: tuple[Step, ...] = ()
    applications: Mapping[str, Json] | None = None
    revision: str = ""
    desired_digest: str = ""
    observed_digest: str = ""
    unchanged: tuple[str, ...] = field(default=())
    """Models that are as their files want them."""
    resting: tuple[Resting, ...] = ()
    """Models that are not up, or leave, as their policies want it."""
    notes: tuple[Note, ...] = ()
    """What is no difference, and yet worth knowing."""
    gpus: tuple[GpuUse, ...] = ()
    """Every GPU, before and after."""
    drift: tuple[Drift, ...] = ()
    """What was changed or deleted behind our back."""
    by_traffic: frozenset[str] = frozenset()
    """Models that come or go as traffic has it, which may never end."""

    @property
    def settled(self) -> bool:
        """Nothing to do and nothing to wait for."""
        return not self.steps

    @property
    def done(self) -> bool:
        """Nothing is left to do or to wait for of what files and operators ask."""
        return all(step.model in self.by_traffic and step.do is not Do.FETCH for step in self.steps)

    @property
    def converged(self) -> bool:
        """Everything is as declared: nothing pending, held or refused."""
        return not (self.steps or self.changes or self.refused or self.held)
