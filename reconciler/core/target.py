"""One wanted version of a model, as `core.render` makes it: all that the planner needs to know about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.core.fit.sizing import Sized, Sizing
from reconciler.core.model_source import Reads
from reconciler.core.spec import ModelSpec
from reconciler.core.state import Demand, Json
from reconciler.core.weights import Copy, Resolution, Role, Wanted


@dataclass(frozen=True, slots=True)
class Platform:
    """What rendering depends on besides the model file: settings of the operator, fixed while we run.

    Attributes:
        device: `cuda` or `cpu`, the build of the engine.
        simulate_gpus: Reserve Ray's GPU resource though the engine computes on the CPU (to try out placement).
        cpu_threads: Threads that a CPU engine computes with.
        cpu_kv_cache_gib: KV cache of a CPU engine whose file leaves it open, in GiB.
        hub_cache: The hub's cache, where engines find what was fetched.
        allow_code: Repositories whose own code may run, as patterns.
        vllm: The engine's version; empty where none is installed here.
        fast_start: Every Python that Ray starts workers with has this package, which may be named to it.
    """

    device: str = "cpu"
    simulate_gpus: bool = False
    cpu_threads: int = 1
    cpu_kv_cache_gib: float = 1.0
    hub_cache: str = ""
    allow_code: tuple[str, ...] = ()
    vllm: str = ""
    fast_start: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """How much memory a version takes, and whether that is there at all.

    Attributes:
        sized: The settings, and the estimate with them.
        misfit: Why it does not fit on any GPU of the cluster, empty GPUs supposed; empty where it does.
        advice: What to change, each with its numbers.
        basis: Where the numbers come from: `measured`, `tensors` or `config`.
    """

    sized: Sized
    misfit: str = ""
    advice: tuple[str, ...] = ()
    basis: str = "tensors"


@dataclass(frozen=True, slots=True)
class Target:
    """One wanted version of a model.

    Attributes:
        application: Its name, `<model>-<digest>`.
        config: The Serve application, as it is put into Serve's configuration.
        in_place: The deployment's settings that Serve changes without a restart (also in `config`).
        paths: The local folders of the operator's that it is read from, and what each is to the model.
        copies: What it reads out of the hub's cache, with the revision that each was asked for by.
        unresolved: Repositories whose commit is not known, with what there is to say about each.
    """

    spec: ModelSpec
    file: str
    application: str
    config: Json
    in_place: Json
    demand: Demand
    paths: Mapping[str, Role] = field(default_factory=dict)
    copies: Mapping[Copy, str] = field(default_factory=dict)
    unresolved: Mapping[Wanted, Resolution] = field(default_factory=dict)
    reads: Reads = field(default_factory=Reads)
    """What its memory depends on."""
    notes: tuple[str, ...] = ()
    """What an operator should know about its revisions."""
    unsupported: str = ""
    """Why the engine that is installed cannot run it; empty where it can."""
    fields: Json = field(default_factory=dict)
    """The model file's fields with every default filled in, which plans compare."""
    sizing: Sizing = field(default_factory=Sizing)
    """What was decided of what the file leaves open."""
    basis: str = ""
    """Digest of what it was decided from: while a version with the same basis runs, its sizes stay."""
    fit: Fit | None = None
    """What is known about its memory; None where nobody looked, or needs to."""
    unknown: str = ""
    """Why nothing is known about its memory, where that was looked for."""
    waits: str = ""
    """What is being found out before it can be planned; empty where nothing is."""
    variables: Json = field(default_factory=dict, repr=False, compare=False)
    """What its template was rendered with."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.spec.name
