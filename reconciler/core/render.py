"""From a model file to the Ray Serve application that serves it, through the operator's template.

`compile_target` decides every setting that the file leaves open, renders `application.json.j2`, reads the result
back and names it by its digest. A target is all that the planner needs to know about a wanted version.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from reconciler.core.application import MODEL_ENV, deployment_name, model_of
from reconciler.core.model_source import ModelSource
from reconciler.core.spec import ModelSpec, Task
from reconciler.core.state import Demand, Json
from reconciler.core.weights import Copy, Resolution, Resolutions, Role, Wanted

_GIB = 2**30
_SLUG_LENGTH = 40


class RenderError(Exception):
    """The template failed, or what it made is no application that this tool may apply."""


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
    """

    device: str = "cpu"
    simulate_gpus: bool = False
    cpu_threads: int = 1
    cpu_kv_cache_gib: float = 1.0
    hub_cache: str = ""
    allow_code: tuple[str, ...] = ()


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
    notes: tuple[str, ...] = ()
    """What an operator should know about its revisions."""
    unsupported: str = ""
    """Why the engine that is installed cannot run it; empty where it can."""
    fields: Json = field(default_factory=dict)
    """The model file's fields with every default filled in, which plans compare."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.spec.name


class Renderer:
    """Renders applications with one template; compiled once, used for every model.

    Raises:
        RenderError: The template does not compile.
    """

    def __init__(self, template: str, platform: Platform) -> None:
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
        try:
            self._template = environment.from_string(template)
        except jinja2.TemplateError as error:
            raise RenderError(f"application.json.j2: {error}") from error
        self._platform = platform

    def compile_target(
        self, spec: ModelSpec, *, file: str, folder: str, resolutions: Resolutions | None = None
    ) -> Target:
        """The version that `spec` asks for.

        Args:
            spec: The model file's content.
            file: The file it came from, for messages and records.
            folder: The absolute folder that relative source paths start at.
            resolutions: Which commits the wanted revisions are. Without, the engine fetches what it needs itself.

        Raises:
            RenderError: The template failed on this model, or made something that is not its application.
        """
        source = ModelSource(spec, folder, self._platform.hub_cache, resolutions)
        demand = _demand(spec, self._platform)
        in_place = _in_place(spec)
        fields = source.with_commits(spec.model_dump(mode="json"))
        variables: Json = {
            "model": fields,
            "source": source.model,
            "engine_kwargs": _engine_kwargs(spec, self._platform)
            | source.engine_kwargs(self._platform.allow_code),
            "device": "cpu" if _on_cpu(spec, self._platform) else "gpu",
            "accelerator_type": demand.accelerator,
            "bundle": _bundle(spec, demand, self._platform),
            "strategy": "STRICT_PACK" if demand.one_node else "PACK",
            "env_vars": _env_vars(spec, self._platform, offline=not source.from_hub),
            "deployment": in_place,
        }
        unnamed = self._render(spec, {**variables, "app": {"name": "", "route_prefix": "/"}})
        application = f"{slug(spec.name)}-{_digest(unnamed)}"
        config = {**unnamed, "name": application, "route_prefix": f"/{application}"}
        return Target(
            spec=spec,
            file=file,
            application=application,
            config=config,
            in_place=in_place,
            demand=demand,
            paths=source.paths,
            copies=source.copies,
            unresolved=source.unresolved,
            notes=tuple(source.notes),
            unsupported=_unsupported(spec, self._platform),
            fields=fields,
        )

    def _render(self, spec: ModelSpec, variables: Mapping[str, Any]) -> Json:
        try:
            text = self._template.render(variables)
        except Exception as error:  # a template is a program: it can raise anything
            raise RenderError(f"application.json.j2 failed on model {spec.name}: {error}") from error
        try:
            config = json.loads(text)
        except ValueError as error:
            raise RenderError(f"application.json.j2 made no JSON of model {spec.name}: {error}") from error
        if not isinstance(config, dict) or model_of(config) != spec.name:
            raise RenderError(
                f"application.json.j2 must make one Serve application whose env_vars set {MODEL_ENV} "
                f"to the model's name ({spec.name}); without it the application would not be known as ours"
            )
        return config


def slug(name: str) -> str:
    """A model's name as part of an application's name and route: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_SLUG_LENGTH].strip("-")


def _digest(config: Json) -> str:
    frozen = {key: value for key, value in config.items() if key not in ("name", "route_prefix", "deployments")}
    canonical = json.dumps(frozen, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _on_cpu(spec: ModelSpec, platform: Platform) -> bool:
    return platform.device == "cpu" or spec.resources.accelerator == "cpu"


def _unsupported(spec: ModelSpec, platform: Platform) -> str:
    wanted = spec.resources.accelerator
    if wanted == "cpu" and platform.device == "cuda":
        return "resources.accelerator is cpu, and the engine installed here is the GPU one (./start.sh --cpu)"
    if wanted not in ("cpu", "auto") and platform.device == "cpu" and not platform.simulate_gpus:
        return (
            f"resources.accelerator is {wanted}, and the engine installed here is the CPU one (./start.sh --gpu)"
        )
    return ""


def _demand(spec: ModelSpec, platform: Platform) -> Demand:
    wanted = spec.resources.accelerator
    tensor: int = _chosen(spec.resources.tensor_parallel, 1)
    pipeline: int = _chosen(spec.resources.pipeline_parallel, 1)
    reserves = wanted != "cpu" and (platform.device == "cuda" or platform.simulate_gpus)
    share: float = _chosen(spec.engine.gpu_memory_utilization, 1.0)
    return Demand(
        ranks=tensor * pipeline,
        gpus=share if reserves else 0.0,
        one_node=pipeline == 1,
        accelerator=wanted if reserves and wanted not in ("auto", "gpu") else None,
    )


def _bundle(spec: ModelSpec, demand: Demand, platform: Platform) -> Json:
    # Memory, not cores, is what bounds how many models fit on a CPU, so cores are only nominally reserved.
    bundle: Json = {"CPU": 0.01 if _on_cpu(spec, platform) else 1}
    if demand.gpus:
        bundle["GPU"] = demand.gpus
    return bundle


def _engine_kwargs(spec: ModelSpec, platform: Platform) -> Json:
    engine = spec.engine
    on_cpu = _on_cpu(spec, platform)
    # vLLM's own defaults for both bounds depend on the GPU it sees, and fall to the small class on a node that
    # sees none, so they are always set.
    default_batch = (2048 if on_cpu else 8192) if spec.task is Task.GENERATE else None
    kv_cache_gib = _chosen(engine.kv_cache_memory_gib, platform.cpu_kv_cache_gib if on_cpu else None)
    kwargs: Json = {
        "max_model_len": _chosen(engine.max_model_len),
        "max_num_seqs": _chosen(engine.max_num_seqs, 16 if on_cpu else 256),
        "max_num_batched_tokens": _chosen(engine.max_num_batched_tokens, default_batch),
        "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * _GIB),
        "gpu_memory_utilization": None if on_cpu else _chosen(engine.gpu_memory_utilization),
        "dtype": _chosen(engine.dtype),
        "kv_cache_dtype": _chosen(engine.kv_cache_dtype),
        "quantization": engine.quantization,
        "runner": None if spec.task in (Task.GENERATE, Task.TRANSCRIBE) else "pooling",
        "tensor_parallel_size": _chosen(spec.resources.tensor_parallel),
        "pipeline_parallel_size": _chosen(spec.resources.pipeline_parallel),
    }
    return {key: value for key, value in kwargs.items() if value is not None} | engine.args


def _chosen(value: Any, default: Any = None) -> Any:  # noqa: ANN401 -- a number, a word or nothing
    return default if value == "auto" else value


def _env_vars(spec: ModelSpec, platform: Platform, *, offline: bool) -> dict[str, str]:
    variables = {MODEL_ENV: spec.name}
    if offline:
        variables["HF_HUB_OFFLINE"] = "1"
    if _on_cpu(spec, platform):
        # vLLM's `auto` binds every engine of the machine to the same cores, the first ones.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        variables["OMP_NUM_THREADS"] = str(platform.cpu_threads)
    return variables


def _in_place(spec: ModelSpec) -> Json:
    resources = spec.resources
    autoscaling: Json = {"min_replicas": resources.replicas.min, "max_replicas": resources.replicas.max}
    if resources.replicas.target_ongoing_requests is not None:
        autoscaling["target_ongoing_requests"] = resources.replicas.target_ongoing_requests
    settings: Json = {
        "name": deployment_name(spec.name),
        "autoscaling_config": autoscaling,
        # Serve's default of 10 s has killed engines that were only busy.
        "health_check_period_s": 10,
        "health_check_timeout_s": 60,
        # The edge has drained the application before it is removed; these bound what is left.
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": 20,
    }
    if resources.max_ongoing_requests is not None:
        settings["max_ongoing_requests"] = resources.max_ongoing_requests
    if resources.max_queued_requests is not None:
        settings["max_queued_requests"] = resources.max_queued_requests
    return settings
