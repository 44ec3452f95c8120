"""What was observed: the cluster, the front door and our own records, as plain immutable facts.

The shell fills these in (`loop.observe`); the planner reads them. Nothing here knows where a fact came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from reconciler.core.overrides import Override
from reconciler.core.suspension import Suspension
from reconciler.core.weights import Copy, CopyState
from reconciler.core.windows import Window

Json: TypeAlias = dict[str, Any]


class Status(StrEnum):
    """The status of a Serve application, as Serve names it."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine process of an application, or one that died lately."""

    id: str
    state: str
    pid: int | None = None
    node_id: str = ""
    actor_id: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What an application reserves: for each replica `ranks` bundles of `gpus` GPUs (below 1: part of one GPU)."""

    ranks: int = 1
    gpus: float = 0.0
    one_node: bool = True
    accelerator: str | None = None
    """GPU type as Ray names it, where only that type will do."""
    replicas: int = 1
    """Replicas that are always up; each finds a place of its own."""
    memory: float = 0.0
    """Share of each GPU's memory that it takes, where that is known to be less than `gpus`; else 0."""


@dataclass(frozen=True, slots=True)
class Application:
    """One Serve application.

    Attributes:
        config: The configuration it was deployed from, verbatim; None when it was not deployed declaratively
            (such applications are not ours and survive every PUT) or is being deleted.
        model: The model it serves, when we deployed it; None for a foreign application.
        building: Its build task runs: a PUT that names it would cancel and restart that build.
        failure: Why a replica of it could not start, in one sentence; empty while none failed.
    """

    name: str
    status: Status
    config: Json | None = None
    model: str | None = None
    message: str = ""
    building: bool = False
    failure: str = ""
    replicas: tuple[Replica, ...] = ()
    dead_replicas: tuple[Replica, ...] = ()
    demand: Demand = Demand()


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU of a node, as NVML sees it.

    Attributes:
        total: Bytes that CUDA can have of it.
        foreign: Bytes that processes have which are not Ray's, so that Ray does not know of them.
        failed: Why it is left out of planning; empty while it is well.
    """

    index: int
    uuid: str = ""
    name: str = ""
    total: int = 0
    foreign: int = 0
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A Ray node: GPUs in all, and GPUs reserved by others than us (from Ray's own ledger, shares included).

    Attributes:
        devices: The GPUs themselves, in the order of their indices; empty where nobody could look at them.
        host: Its name for people.
    """

    id: str
    gpus: float = 0.0
    gpus_foreign: float = 0.0
    accelerator: str | None = None
    devices: tuple[Device, ...] = ()
    host: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What the front door last took over for a model: the basis of `old -> new` in a plan.

    Attributes:
        application: The version that has the traffic, or had it last.
        previous: The configuration of the version that made room for the current one; it comes back if that
            one fails.
        recent: The copies that the last versions read, the newest first, each as `repo@commit`s with spaces
            between: their weights stay, so that going back downloads nothing.
    """

    model: str
    file: str
    application: str
    spec: Json
    previous: Json | None = None
    recent: tuple[str, ...] = ()
    basis: str = ""
    """What its sizes were decided from, or might have been: while it serves they stay."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A version that could not be brought up. It belongs to the model and the digest of what its sizes are decided
    from: a version with other sizes waits as well, another file starts afresh.
    """

    model: str
    application: str
    reason: str
    attempts: int
    at: float
    """Seconds since the epoch of the last attempt's end."""
    retry_at: float
    """Seconds since the epoch before which it is not tried again."""
    basis: str = ""
    """What its sizes were decided from; empty where nobody knows."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests that wait for a model to come up.

    Attributes:
        count: How many.
        seconds: For how long the first of them has been waiting.
    """

    count: int
    seconds: float


def homes_of(applications: Mapping[str, Application]) -> dict[str, list[str]]:
    """The ids of the nodes on which the replicas of our applications are, as far as that is known."""
    return {
        app.name: [replica.node_id for replica in app.replicas if replica.node_id]
        for app in applications.values()
        if app.model is not None
    }


def coming_up(app: Application) -> bool:
    """The application occupies a loading slot: it is built or its first replica starts."""
    return app.status in (Status.DEPLOYING, Status.NOT_STARTED) and not any(
        replica.state == "RUNNING" for replica in app.replicas
    )


def failure_of(failures: Mapping[str, Failure], model: str, application: str, basis: str) -> Failure | None:
    """The failure of a version, or the last one of the same with other sizes; None where there was none."""
    if application in failures:
        return failures[application]
    same = (each for each in failures.values() if basis and (each.model, each.basis) == (model, basis))
    return max(same, key=lambda each: each.at, default=None)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything the planner may know about the world, read at one time.

    Attributes:
        applications: Serve's applications by name, foreign ones included.
        serve: The settings of the running Serve instance that a PUT has to carry (HTTP options and the like);
            None where Serve does not run yet.
        nodes: The cluster's nodes; empty where only CPUs are used.
        routes: Model name to application, as the edge routes now.
        in_flight: Requests in flight by application; None when that could not be read, which counts as in use.
        idle_seconds: Seconds since an application of ours was last used: since its last request ended, or since it
            came up; 0 while it is in use, while requests wait for it, and while nobody can tell.
        up_seconds: Seconds since an application first had the traffic, as far as this process has seen it; for one
            that slept, since it had the traffic again.
        waiting: Requests that wait for a model to come up, by model.
        load_seconds: How long a model's loads took lately, where it was loaded before.
        asleep: Applications whose engines sleep.
        turning: Applications that are being put to sleep or woken.
        insomniac: Applications that may not sleep, for good or for a while, with the reason.
        broken: Applications that may not have traffic again, for a sleep or a wake went wrong, with the reason.
        sleep_left: Bytes of main memory that further sleepers may take; None where none may sleep.
        overrides: What was asked for by hand, by model.
        windows: Where a model with a schedule stands, by model.
        suspensions: What is to be left as it is, by hand.
        declared: The file that declared a model last, of those that are there.
        left: Our applications as we left them: the digest of the configuration (`core.drift`), by name.
        ready: Applications that answered a real request since they came up.
        probing: Applications that are being asked such a request right now.
        unanswered: Applications that came up and did not answer, with what they said instead.
        ages: Seconds since an application was first seen by this process, or since its last build began.
        draining: Seconds since an application lost its traffic.
        records: What the front door last took over, by model.
        failures: By application name.
        missing_paths: Local source paths that hold no model, with the reason.
        main_memory: Bytes of main memory that are free where CPU engines run; None where nobody can tell.
        folder_bytes: Bytes of the weights in a folder that an engine on the CPU reads.
        weights: How far the wanted copies of repositories are; what is not in it is not there.
        now: Seconds since the epoch, for backoff and messages only.
    """

    applications: Mapping[str, Application] = field(default_factory=dict)
    serve: Json | None = None
    nodes: tuple[Node, ...] = ()
    routes: Mapping[str, str] = field(default_factory=dict)
    in_flight: Mapping[str, int] | None = field(default_factory=dict)
    idle_seconds: Mapping[str, float] = field(default_factory=dict)
    up_seconds: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    load_seconds: Mapping[str, float] = field(default_factory=dict)
    asleep: frozenset[str] = frozenset()
    turning: frozenset[str] = frozenset()
    insomniac: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    sleep_left: int | None = None
    overrides: Mapping[str, Override] = field(default_factory=dict)
    windows: Mapping[str, Window] = field(default_factory=dict)
    suspensions: tuple[Suspension, ...] = ()
    declared: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    probing: frozenset[str] = frozenset()
    unanswered: Mapping[str, str] = field(default_factory=dict)
    ages: Mapping[str, float] = field(default_factory=dict)
    draining: Mapping[str, float] = field(default_factory=dict)
    records: Mapping[str, Record] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    missing_paths: Mapping[str, str] = field(default_factory=dict)
    main_memory: int | None = None
    folder_bytes: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[Copy, CopyState] = field(default_factory=dict)
    now: float = 0.0

    def of_model(self, model: str) -> tuple[Application, ...]:
        """Our applications that serve `model`, whatever their state."""
        return tuple(app for app in self.applications.values() if app.model == model)
