"""Between reading the files and planning: every version gets the sizes that suit the GPUs there are. Pure.

    files -> Desired, sizes open -> `Fitter.fitted` -> Desired, sizes decided -> plan

A version that runs keeps its sizes as long as its file leaves the same things open: what was decided once is not
decided anew because a GPU was added, a neighbour left, or a better number was measured.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from reconciler.core.application import basis_of, sizing_of
from reconciler.core.desired import Desired
from reconciler.core.fit.architecture import ArchitectureError
from reconciler.core.fit.classes import GpuClass, classes_of
from reconciler.core.fit.declared import declared
from reconciler.core.fit.engine import Engine
from reconciler.core.fit.extras import Known
from reconciler.core.fit.facts import Facts, FactsState, Place, facts_to_json
from reconciler.core.fit.gpus import GIB
from reconciler.core.fit.measured import Key
from reconciler.core.fit.measured import key_of as measured_key
from reconciler.core.fit.sizing import Outcome, Sized, Sizing, on_cpu, on_gpus
from reconciler.core.packing import Wish, arrange
from reconciler.core.placement import Ledger
from reconciler.core.render import Renderer, RenderError
from reconciler.core.spec import ModelSpec, Policy
from reconciler.core.state import Application, Demand, Json, Node, Record, Status, homes_of
from reconciler.core.target import Fit, Platform, Target
from reconciler.core.weights import Copy

_WAITS = "reads what the model is made of: its config.json and the headers of its tensors"

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """What was observed of the cluster and its traffic, as far as sizes depend on it; and Serve's own settings."""

    applications: Mapping[str, Application]
    nodes: tuple[Node, ...]
    routes: Mapping[str, str]
    serve: Json | None = None
    records: Mapping[str, Record] = field(default_factory=dict)

    def runs(self, model: str) -> list[Application]:
        """The versions of a model that are there and not being deleted, the one with the traffic first."""
        found = self._by_model.get(model, [])
        return sorted(found, key=lambda app: (app.name != self.routes.get(model), app.name))

    def has_place_for(self, app: Application) -> bool:
        """It runs, or the GPUs that there are could hold it if they were empty."""
        if not self.nodes or any(replica.state == "RUNNING" for replica in app.replicas):
            return True
        return self._empty.fits(app.demand)

    @functools.cached_property
    def _empty(self) -> Ledger:
        return Ledger(self.nodes)

    @functools.cached_property
    def _by_model(self) -> dict[str, list[Application]]:
        found: dict[str, list[Application]] = {}
        for app in self.applications.values():
            if app.model is not None and app.status is not Status.DELETING:
                found.setdefault(app.model, []).append(app)
        return found


class Measurements(Protocol):
    """What was measured when models ran before."""

    def version(self, model: str) -> Hashable:
        """Another one whenever something was measured of a model, which goes by its name in a key."""

    def known(self, key: Key) -> Known | None:
        """What an estimate may take from it; None where it must do without."""


class Fitter:
    """Decides sizes, and remembers what it decided from the same things.

    Args:
        renderer: Renders a version with its sizes.
        platform: What the renderer was made for.
        measurements: What was measured.
    """

    def __init__(self, renderer: Renderer, platform: Platform, measurements: Measurements) -> None:
        self._renderer, self._platform, self._measurements = renderer, platform, measurements
        self._renders: _Memo[Target] = _Memo()
        self._reckoned: _Memo[Target] = _Memo()
        self._outcomes: _Memo[Outcome] = _Memo()
        self._digests: _Memo[str] = _Memo()

    def places(self, desired: Desired) -> frozenset[Place]:
        """Whose facts are asked for: also of versions that run, to know what they take."""
        return frozenset(place for target in desired.targets.values() for place in target.reads)

    def fitted(self, desired: Desired, cluster: Cluster, facts: Mapping[Place, FactsState]) -> Desired:
        """The same wishes with every size decided.

        Args:
            desired: The model files.
            cluster: What there is.
            facts: Of the places in `places`; what is not in it is not known.
        """
        targets: dict[str, Target] = {}
        choices: dict[str, tuple[Target, ...]] = {}
        for model, target in desired.targets.items():
            try:
                running = self._running(target, cluster)
                if running is not None:
                    running = self._as_it_runs(running, cluster, facts)
                found = (running,) if running is not None else self._sized(target, cluster, facts)
            except RenderError as error:
                running, found = None, (replace(target, unknown=str(error)),)
            targets[model] = found[0]
            if running is None and not _is_held(found[0]):
                choices[model] = found
        order = self._choose(targets, choices, cluster)
        for memo in (self._renders, self._reckoned, self._outcomes, self._digests):
            memo.sweep()
        return replace(desired, targets=targets, order=order)

    def _running(self, target: Target, cluster: Cluster) -> Target | None:
        """The wanted version as it runs, with the sizes that it was given."""
        record = cluster.records.get(target.model)
        for app in cluster.runs(target.model):
            # A version of old does not say what it was decided from, and what serves may have been decided from a
            # file that left open what this one says. The names then tell whether they are the same.
            known = basis_of(app.config or {}) in ("", target.basis)
            known = known or (
                record is not None and (record.application, record.basis) == (app.name, target.basis)
            )
            if app.config is None or not known or not cluster.has_place_for(app):
                continue
            same = self._render(target, sizing_of(app.config))
            if same.application == app.name:
                return same
        return None

    def _as_it_runs(self, target: Target, cluster: Cluster, facts: Mapping[Place, FactsState]) -> Target:
        """A version that runs, with what it takes at its own sizes; without that where it cannot be told.

        Whether that much fits is no question any more: it runs.
        """
        read = {place: facts[place].facts for place in target.reads if place in facts}
        model = read.get(target.reads.model) if target.reads.model is not None else None
        if model is None or any(read.get(place) is None for place in target.reads):
            return target
        draft = read[target.reads.draft] if target.reads.draft is not None else None

        app = cluster.applications[target.application]
        where = {replica.node_id for replica in app.replicas}
        # Of its own GPUs, whatever others there are.
        there = replace(cluster, nodes=tuple(node for node in cluster.nodes if node.id in where) or cluster.nodes)

        def weigh() -> Target:
            sizes = replace(target, spec=_with_sizes(target.spec, target.sizing))
            try:
                ways = self._outcome(sizes, there, model, draft).choices
            except (ArchitectureError, ValueError, OverflowError):
                return target
            if not ways:
                return target
            way = next((way for way in ways if way.sizing.accelerator == target.sizing.accelerator), ways[0])
            return replace(target, fit=Fit(way, basis=_basis(way, from_tensors=model.tensors is not None)))

        version = self._measurements.version(
            self._digests.get((target, model), (), lambda: name_of(target, model))
        )
        classes = classes_of(there.nodes, target.spec.resources.accelerator) if target.demand.gpus else ()
        return self._reckoned.get((target, model, draft), (classes, version), weigh)

    def _sized(self, target: Target, cluster: Cluster, facts: Mapping[Place, FactsState]) -> tuple[Target, ...]:
        """The version with each of the sizes that it may run with, the best first."""
        if target.unsupported or target.reads.model is None:
            return (target,)
        states = {place: facts.get(place, FactsState()) for place in target.reads}
        problem = next((state.problem for state in states.values() if state.problem), "")
        if problem:
            return (replace(target, unknown=problem),)
        model = states[target.reads.model].facts
        draft = states[target.reads.draft].facts if target.reads.draft is not None else None
        if model is None or any(state.facts is None for state in states.values()):
            return (replace(target, waits=_WAITS),)
        try:
            outcome = self._outcome(target, cluster, model, draft)
        except (ArchitectureError, ValueError, OverflowError) as error:
            return (replace(target, unknown=str(error)),)
        from_tensors = model.tensors is not None
        sizes = (self._with(target, sized, outcome, from_tensors=from_tensors) for sized in outcome.choices)
        return tuple(sizes) or (target,)

    def _with(self, target: Target, sized: Sized, outcome: Outcome, *, from_tensors: bool) -> Target:
        fit = Fit(sized, outcome.misfit, outcome.advice, _basis(sized, from_tensors=from_tensors))
        notes = target.notes
        if sized.found.fits and not sized.found.fits_safely:
            notes = (*notes, sized.found.reason)
        rendered = self._render(target, sized.sizing)
        # Ray reserves a whole GPU, of which the engine leaves a part alone: others may have that much.
        memory = sized.memory if sized.memory < rendered.demand.gpus else 0.0
        return replace(rendered, fit=fit, notes=notes, demand=replace(rendered.demand, memory=memory))

    def _outcome(self, target: Target, cluster: Cluster, facts: Facts, draft: Facts | None) -> Outcome:
        classes = classes_of(cluster.nodes, target.spec.resources.accelerator) if target.demand.gpus else ()
        if target.demand.gpus and not classes:
            return Outcome(())

        name = self._digests.get((target, facts), (), lambda: name_of(target, facts))

        def measured(engine: Engine, kind: GpuClass | None) -> Known | None:
            key = self.key_of(name, target.config, kind, engine)
            return self._measurements.known(key) if key is not None else None

        def decide() -> Outcome:
            model = declared(target.spec, facts, draft, on_cpu=not classes)
            if not classes:
                return on_cpu(model, target.spec, int(self._platform.cpu_kv_cache_gib * GIB), measured)
            return on_gpus(model, target.spec, classes, measured)

        # Models that are alike in these are weighed once.
        asked = target.spec.model_dump_json(include={"engine", "resources", "task", "adapters"})
        version = self._measurements.version(name)
        return self._outcomes.get((facts, draft), (asked, classes, version), decide)

    def key_of(self, name: str, config: Json, kind: GpuClass | None, engine: Engine | None = None) -> Key | None:
        """What a measurement of a version holds for; None where its configuration makes no sense.

        Args:
            name: Of the model, from `name_of`.
            config: Its application.
            kind: The GPUs that it runs on; None on the CPU.
            engine: While sizes are being decided: those to look up, instead of those in `config`.
        """
        return measured_key(
            config,
            model=name,
            vllm=self._platform.vllm,
            gpu="" if kind is None else kind.gpu.name,
            gpu_total=0 if kind is None else kind.gpu.total,
            engine=engine,
        )

    def _choose(
        self, targets: dict[str, Target], choices: Mapping[str, tuple[Target, ...]], cluster: Cluster
    ) -> dict[str, int]:
        """Put the best choice of each model into `targets`; gives the order in which models had better start."""
        wishes = []
        for model, found in choices.items():
            if not cluster.runs(model) and found[0].demand.gpus:
                lifecycle = found[0].spec.lifecycle
                tier = (lifecycle.policy is not Policy.PINNED, -lifecycle.priority)
                wishes.append(Wish(model, tuple(target.demand for target in found), tier))
        if not wishes:
            return {}
        placed: dict[str, Demand] = {
            name: app.demand for name, app in cluster.applications.items() if app.model is not None
        }
        arrangement = arrange(cluster.nodes, placed, wishes, homes_of(cluster.applications))
        for start in arrangement.starts:
            targets[start.name] = next(each for each in choices[start.name] if each.demand == start.demand)
        return {start.name: place for place, start in enumerate(arrangement.starts)}

    def _render(self, target: Target, sizing: Sizing) -> Target:
        if sizing == target.sizing:
            return target
        return self._renders.get((target,), (sizing,), lambda: self._renderer.sized(target, sizing))


def name_of(target: Target, facts: Facts) -> str:
    """By what a measurement knows a model: its commit, or of a folder a digest of what its memory depends on."""
    place = target.reads.model
    if isinstance(place, Copy):
        return f"{place.repo}@{place.commit}"
    return hashlib.sha256(json.dumps(facts_to_json(facts), sort_keys=True).encode()).hexdigest()[:16]


def _basis(sized: Sized, *, from_tensors: bool) -> str:
    return "measured" if sized.measured else "tensors" if from_tensors else "config"


def _with_sizes(spec: ModelSpec, sizing: Sizing) -> ModelSpec:
    """The file as if it said what was decided where it leaves something open."""
    engine = {
        "max_model_len": sizing.max_model_len,
        "max_num_seqs": sizing.max_num_seqs,
        "max_num_batched_tokens": sizing.max_num_batched_tokens,
        "gpu_memory_utilization": sizing.gpu_memory_utilization,
        "kv_cache_memory_gib": sizing.kv_cache_memory_bytes and sizing.kv_cache_memory_bytes / GIB,
    }
    resources = {
        "tensor_parallel": sizing.tensor_parallel_size,
        "pipeline_parallel": sizing.pipeline_parallel_size,
    }
    decided = {
        "engine": spec.engine.model_copy(update=_given(engine)),
        "resources": spec.resources.model_copy(update=_given(resources)),
    }
    return spec.model_copy(update=decided)


def _given(sizes: Mapping[str, float | None]) -> Json:
    return {name: size for name, size in sizes.items() if size}


def _is_held(target: Target) -> bool:
    misfit = target.fit is not None and target.fit.misfit
    return bool(target.unsupported or target.waits or misfit or target.spec.lifecycle.policy is Policy.MANUAL)


class _Memo(Generic[T]):
    """Results by the identity of what they were made from, and further keys; what a round did not use goes."""

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[tuple[Any, ...], T]] = {}
        self._used: set[Hashable] = set()

    def get(self, owners: tuple[Any, ...], keys: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        key = (*map(id, owners), *keys)
        self._used.add(key)
        if key not in self._found:
            # The owners are held, so that their identities are not given to others.
            self._found[key] = (owners, make())
        return self._found[key][1]

    def sweep(self) -> None:
        self._found = {key: found for key, found in self._found.items() if key in self._used}
        self._used.clear()
