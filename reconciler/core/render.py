"""From a model file to the Ray Serve application that serves it, through the operator's template.

`compile_target` decides every setting that the file leaves open, renders `application.json.j2`, reads the result
back and names it by its digest. A target is all that the planner needs to know about a wanted version.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reconciler.core.application import BASIS_ENV, MODEL_ENV, deployment_name, model_of
from reconciler.core.fast_start import BUILD_ENVIRONMENT, CALLBACK, HOOK_ENV, REPLICA_HOOK
from reconciler.core.fit.sizing import Sizing, cpu_batch
from reconciler.core.local_paths import with_contents
from reconciler.core.model_source import ModelSource
from reconciler.core.spec import ModelSpec, Task
from reconciler.core.state import Demand, Json
from reconciler.core.target import Platform, Target
from reconciler.core.template import Template, TemplateError
from reconciler.core.weights import Resolutions

_GIB = 2**30
_SLUG_LENGTH = 40
_TEMPLATE = "application.json.j2"


class RenderError(Exception):
    """The template failed, or what it made is no application that this tool may apply."""


class Renderer:
    """Renders applications with one template; compiled once, used for every model.

    Raises:
        RenderError: The template does not compile.
    """

    def __init__(self, template: str, platform: Platform) -> None:
        try:
            self._template = Template(_TEMPLATE, template)
        except TemplateError as error:
            raise RenderError(str(error)) from error
        self._platform = platform

    def compile_target(
        self,
        spec: ModelSpec,
        *,
        file: str,
        folder: str,
        resolutions: Resolutions | None = None,
        objects: Mapping[str, str] | None = None,
    ) -> Target:
        """The version that `spec` asks for.

        Args:
            spec: The model file's content.
            file: The file it came from, for messages and records.
            folder: The absolute folder that relative source paths start at.
            resolutions: Which commits the wanted revisions are. Without, the engine fetches what it needs itself.
            objects: Where relative paths lead that do not start there.

        Raises:
            RenderError: The template failed on this model, or made something that is not its application.
        """
        source = ModelSource(spec, folder, self._platform.hub_cache, resolutions, objects)
        fields = with_contents(source.with_commits(spec.model_dump(mode="json")), objects or {})
        # Whoever has to fetch weights, or lives on several nodes, comes up in Ray's own way.
        fast = self._platform.fast_start and not source.from_hub and not spec.resources.across_nodes
        variables: Json = {
            "model": fields,
            "source": source.model,
            "engine_kwargs": _engine_kwargs(spec, self._platform)
            | source.engine_kwargs(self._platform.allow_code),
            "device": "cpu" if _on_cpu(spec, self._platform) else "gpu",
            "strategy": "PACK" if spec.resources.across_nodes else "STRICT_PACK",
            "env_vars": _env_vars(spec, self._platform, offline=not source.from_hub)
            | ({HOOK_ENV: REPLICA_HOOK} if fast else {}),
            "deployment": _in_place(spec),
            "fast_start": {"build": BUILD_ENVIRONMENT, "callback": CALLBACK} if fast else None,
        }
        target = Target(
            spec=spec,
            file=file,
            application="",
            config={},
            in_place=variables["deployment"],
            demand=Demand(),
            paths=source.paths,
            copies=source.copies,
            unresolved=source.unresolved,
            reads=source.reads,
            notes=tuple(source.notes),
            unsupported=_unsupported(spec, self._platform),
            fields=fields,
            variables=variables,
        )
        return self.sized(target, Sizing())

    def sized(self, target: Target, sizing: Sizing) -> Target:
        """The same version with what its file leaves open decided like this.

        Raises:
            RenderError: The template failed on this model, or made something that is not its application.
        """
        spec = target.spec
        demand = _demand(spec, self._platform, sizing)
        variables = {
            **target.variables,
            "engine_kwargs": target.variables["engine_kwargs"] | _decided(spec, self._platform, sizing),
            "accelerator_type": demand.accelerator,
            "bundle": _bundle(spec, demand, self._platform),
            "env_vars": target.variables["env_vars"] | _share_for_workers(spec, demand, self._platform),
        }
        unnamed = self._render(spec, {**variables, "app": {"name": "", "route_prefix": "/"}})
        digest = _digest(unnamed)
        application, basis = f"{slug(spec.name)}-{digest}", target.basis or digest
        config = {**unnamed, "name": application, "route_prefix": f"/{application}"}
        # Not part of the digest: what was decided counts, not what it was decided from.
        config["args"]["llm_configs"][0]["runtime_env"]["env_vars"][BASIS_ENV] = basis
        return replace(target, application=application, config=config, demand=demand, sizing=sizing, basis=basis)

    def _render(self, spec: ModelSpec, variables: Mapping[str, Any]) -> Json:
        try:
            config = self._template.render_json(variables)
        except TemplateError as error:
            raise RenderError(f"{error} (on model {spec.name})") from error
        if not isinstance(config, dict) or model_of(config) != spec.name:
            raise RenderError(
                f"{_TEMPLATE} must make one Serve application whose env_vars set {MODEL_ENV} "
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


def _demand(spec: ModelSpec, platform: Platform, sizing: Sizing) -> Demand:
    wanted = spec.resources.accelerator
    tensor: int = _chosen(spec.resources.tensor_parallel, sizing.tensor_parallel_size or 1)
    pipeline: int = _chosen(spec.resources.pipeline_parallel, sizing.pipeline_parallel_size or 1)
    reserves = wanted != "cpu" and (platform.device == "cuda" or platform.simulate_gpus)
    share: float = sizing.gpus or _chosen(spec.engine.gpu_memory_utilization, 1.0)
    named = wanted if wanted not in ("auto", "gpu") else sizing.accelerator
    return Demand(
        ranks=tensor * pipeline,
        gpus=share if reserves else 0.0,
        one_node=not spec.resources.across_nodes,
        accelerator=named if reserves else None,
        replicas=spec.resources.replicas.min,
    )


def _decided(spec: ModelSpec, platform: Platform, sizing: Sizing) -> Json:
    """The engine's settings that the file leaves open and `sizing` decides."""
    engine, resources = spec.engine, spec.resources
    on_cpu = _on_cpu(spec, platform)
    open_settings = {
        "tensor_parallel_size": resources.tensor_parallel,
        "pipeline_parallel_size": resources.pipeline_parallel,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        # The CPU engine knows no such share, and its cache has a size of its own.
        **({} if on_cpu else {"gpu_memory_utilization": engine.gpu_memory_utilization}),
    }
    return {
        key: value
        for key, written in open_settings.items()
        if written == "auto" and (value := getattr(sizing, key)) is not None
    }


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
    # sees none, so they are always set; on GPUs whose memory is known, by what suits them (`fit.sizing`).
    default_seqs, default_batch = (
        cpu_batch(spec) if on_cpu else (256, 8192 if spec.task is Task.GENERATE else None)
    )
    kv_cache_gib = _chosen(engine.kv_cache_memory_gib, platform.cpu_kv_cache_gib if on_cpu else None)
    kwargs: Json = {
        "max_model_len": _chosen(engine.max_model_len),
        "max_num_seqs": _chosen(engine.max_num_seqs, default_seqs),
        "max_num_batched_tokens": _chosen(engine.max_num_batched_tokens, default_batch),
        "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * _GIB),
        "gpu_memory_utilization": None if on_cpu else _chosen(engine.gpu_memory_utilization),
        "dtype": _chosen(engine.dtype),
        "kv_cache_dtype": _chosen(engine.kv_cache_dtype),
        "quantization": engine.quantization,
        "enable_sleep_mode": True if spec.lifecycle.sleep_after is not None and not on_cpu else None,
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


def _share_for_workers(spec: ModelSpec, demand: Demand, platform: Platform) -> dict[str, str]:
    # vLLM's Ray executor asks for a whole GPU for each worker, which a bundle with less of one can never give.
    if _on_cpu(spec, platform) or not 0 < demand.gpus < 1:
        return {}
    return {"VLLM_RAY_PER_WORKER_GPUS": f"{demand.gpus:g}"}


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
