"""The command that says how much memory a model takes, and whether it fits: `reconcile fit`.

From bare facts (`--model-config config.json ...`), or for a model of the model files: on the GPUs that are there,
or on others. The bare facts need neither a GPU nor a cluster, and neither torch nor vLLM nor Ray.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

from pydantic import ValidationError

from reconciler.cli.common import OK, PARTIAL, fail, quiet
from reconciler.cli.fit_options import FitOptions, check, engine_of, gpu_of
from reconciler.cli.show import print_json
from reconciler.cli.show_fit import Answer, main_memory_report, show_fit, show_main_memory
from reconciler.core.fit.advice import Weigh, advise, smallest_tensor_parallel
from reconciler.core.fit.architecture import Architecture, ArchitectureError, architecture_of
from reconciler.core.fit.declared import declared
from reconciler.core.fit.estimate import Estimate, estimate
from reconciler.core.fit.gpus import GIB, Gpu
from reconciler.core.fit.quantization import named
from reconciler.core.fit.report import report
from reconciler.core.fit.weigh import loading_of, weigher
from reconciler.core.memory_plan import memory_of
from reconciler.core.render import RenderError
from reconciler.core.spec import ModelSpec
from reconciler.core.state import Device, Json, Node
from reconciler.host.settings import Settings
from reconciler.weights.headers import read_json
from reconciler.weights.revisions import PinsUnreadableError

_IN_SPEC = {
    "quantization": "engine", "max_model_len": "engine", "max_num_seqs": "engine", "dtype": "engine",
    "max_num_batched_tokens": "engine", "kv_cache_dtype": "engine", "gpu_memory_utilization": "engine",
    "kv_cache_memory_gib": "engine", "tensor_parallel": "resources", "pipeline_parallel": "resources",
}  # fmt: skip
"""Options that are fields of a model file, and the section of each."""
_IN_ARGS = {
    "expert_parallel": "enable_expert_parallel",
    "enforce_eager": "enforce_eager",
    "language_model_only": "language_model_only",
}
"""Options that are arguments of vLLM's."""


def fit(settings: Settings, name: str | None, *, options: FitOptions, output: str) -> int:
    """Say whether a model fits: exit 0 where it does, 3 where it does not, 1 where the question makes no sense.

    Args:
        settings: Where model files, the hub's cache and the cluster are.
        name: A model of the model files; None for bare facts.
        options: What was asked.
        output: `text` or `json`.
    """
    try:
        check(options, name)
        return _bare(options, output) if name is None else _declared(settings, name, options, output)
    except (ArchitectureError, ValueError, OverflowError) as error:
        fail(str(error))


# --- bare facts --------------------------------------------------------------------------------------------


def _bare(options: FitOptions, output: str) -> int:
    assert options.model_config is not None
    gpu = gpu_of(options)
    if gpu is None:
        raise ValueError("say on what: --gpu NAME (h100-80g, l4, rtx-4090, ...) or --gpu-memory-gib X")
    model = architecture_of(read_json(options.model_config))
    if options.quantization is not None and model.quantization is None:
        model = replace(model, quantization=named(options.quantization))
    if options.language_model_only:
        model = replace(model, vision=None, multimodal=False)
    engine = engine_of(options)
    weigh = weigher(
        model,
        loading_of(model, engine),
        total=None if options.weights_gib is None else options.weights_gib * GIB,
        parameters=options.parameters,
    )
    gpus = options.gpus or (options.tensor_parallel or 1) * engine.pipeline_parallel
    found = _estimate(model, weigh, options, gpu, gpus)
    return _answer(
        Answer(str(options.model_config), model, found, advise(model, weigh, found, gpus), gpus), output
    )


def _estimate(model: Architecture, weigh: Weigh, options: FitOptions, gpu: Gpu, gpus: int) -> Estimate:
    engine = engine_of(options)
    if options.tensor_parallel is None:
        for safely in (True, False):
            found = smallest_tensor_parallel(model, weigh, engine, gpu, gpus, safely=safely)
            if found is not None:
                return found
    return estimate(model, weigh(model), engine, gpu)


# --- a declared model --------------------------------------------------------------------------------------


def _declared(settings: Settings, name: str, options: FitOptions, output: str) -> int:
    from reconciler.loop.explain import UnknownModelError, explain  # noqa: PLC0415 -- the bare facts need no hub

    quiet(settings)
    gpu = gpu_of(options)
    try:
        found = asyncio.run(explain(settings, name, _changed(options), _supposed(gpu, options)))
    except (UnknownModelError, PinsUnreadableError, RenderError, FileNotFoundError) as error:
        fail(str(error))
    fitted, memory = found.target.fit, memory_of(found.target)
    assert fitted is not None
    assert memory is not None
    if fitted.sized.where is None:
        row = main_memory_report(name, memory, fitted, found.main_memory)
        if output == "json":
            print_json(row)
        else:
            show_main_memory(row)
        return OK if row["fits"] else PARTIAL
    model = declared(found.target.spec, found.facts, found.draft, on_cpu=False)
    estimated = fitted.sized.found
    kind = fitted.sized.where
    notes = tuple(filter(None, (_basis(fitted.basis), found.room)))
    advice = advise(model.model, model.weigh, estimated, kind.per_node)
    return _answer(Answer(name, model.model, estimated, advice, kind.count, notes), output)


def _basis(basis: str) -> str:
    return {
        "measured": "Weights and more as measured when it ran before.",
        "tensors": "Weights by the tensors of the checkpoint.",
        "config": "Weights by the config alone: the checkpoint has no safetensors.",
    }[basis]


def _changed(options: FitOptions) -> Callable[[ModelSpec], ModelSpec]:
    """What the file says, with the options in its place."""

    def change(spec: ModelSpec) -> ModelSpec:
        document: Json = spec.model_dump(mode="json", exclude_unset=True)
        for option, section in _IN_SPEC.items():
            if (value := getattr(options, option)) is not None:
                document.setdefault(section, {})[option] = value
        for option, argument in _IN_ARGS.items():
            if getattr(options, option):
                document.setdefault("engine", {}).setdefault("args", {})[argument] = True
        if options.pooling and "task" not in document:
            document["task"] = "embed"
        if options.gpu is not None or options.gpu_memory_gib is not None:
            document.setdefault("resources", {})["accelerator"] = "auto"
        try:
            return ModelSpec.model_validate_json(json.dumps(document))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    return change


def _supposed(gpu: Gpu | None, options: FitOptions) -> tuple[Node, ...] | None:
    if gpu is None:
        return None
    ranks = (options.tensor_parallel or 1) * (options.pipeline_parallel or 1)
    count = options.gpus or ranks
    devices = tuple(Device(index, name=gpu.name, total=gpu.total) for index in range(count))
    return (Node("supposed", count, devices=devices),)


def _answer(answer: Answer, output: str) -> int:
    if output == "json":
        print_json(
            {**report(answer.title, answer.model, answer.found, answer.advice, answer.gpus), "notes": answer.notes}
        )
    else:
        show_fit(answer)
    return OK if answer.found.fits else PARTIAL
