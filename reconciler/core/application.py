"""What the configuration of a deployed Serve application says, read back: whose it is, and what it reserves. Pure.

The other direction of `core.render`. Foreign applications have any shape, so nothing here raises.
"""

from dataclasses import fields

from reconciler.core.fit.sizing import Sizing
from reconciler.core.state import Demand, Json

MODEL_ENV = "RECONCILE_MODEL"
"""The environment variable by which an application is known to be ours, and whose it is."""
_CONTEXT = 0.02
"""Share of a GPU that CUDA's context takes, roughly: it is outside the engine's budget."""
BASIS_ENV = "RECONCILE_BASIS"
"""Where an application says what its sizes were decided from."""


def deployment_name(model: str) -> str:
    """The name Ray Serve LLM gives the engine's deployment (`ray.llm` 2.60, core/server/builder.py)."""
    return "LLMServer:" + model.replace("/", "--").replace(".", "_")


def model_of(config: Json) -> str | None:
    """The model an application's configuration belongs to, or None where it is not ours."""
    try:
        model = config["args"]["llm_configs"][0]["runtime_env"]["env_vars"][MODEL_ENV]
    except (KeyError, IndexError, TypeError):
        return None
    return model if isinstance(model, str) else None


def demand_of(config: Json) -> Demand:
    """What a deployed application of ours reserves, read back from its configuration."""
    try:
        llm = config["args"]["llm_configs"][0]
        placement = llm["placement_group_config"]
        kwargs = llm["engine_kwargs"]
        deployment: Json = next(iter(config.get("deployments") or ()), {})
        gpus = float(placement["bundle_per_worker"].get("GPU", 0))
        utilization = float(kwargs.get("gpu_memory_utilization") or 0)
        return Demand(
            ranks=int(kwargs.get("tensor_parallel_size", 1)) * int(kwargs.get("pipeline_parallel_size", 1)),
            gpus=gpus,
            one_node=placement.get("strategy") == "STRICT_PACK",
            accelerator=llm.get("accelerator_type"),
            replicas=int((deployment.get("autoscaling_config") or {}).get("min_replicas", 1)),
            # Of a whole GPU the engine leaves a part alone.
            memory=utilization + _CONTEXT if gpus == 1 and 0 < utilization < 1 - _CONTEXT else 0.0,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Demand()


def sizing_of(config: Json) -> Sizing:
    """The sizes that a deployed application of ours runs with, read back from its configuration."""
    try:
        llm = config["args"]["llm_configs"][0]
        kwargs = llm["engine_kwargs"]
        known = {field.name: kwargs.get(field.name) for field in fields(Sizing)}
        bundle = (llm.get("placement_group_config") or {}).get("bundle_per_worker") or {}
        return Sizing(**known | {"gpus": float(bundle.get("GPU", 0)), "accelerator": llm.get("accelerator_type")})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Sizing()


def basis_of(config: Json) -> str:
    """What the sizes of a deployed application of ours were decided from; empty where it does not say."""
    try:
        return str(config["args"]["llm_configs"][0]["runtime_env"]["env_vars"].get(BASIS_ENV, ""))
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""


def with_in_place(config: Json, in_place: Json) -> Json:
    """`config` with the deployment settings of `in_place`, everything else untouched."""
    return {**config, "deployments": [in_place]}


def adapter_names(config: Json) -> tuple[str, ...]:
    """The names of the LoRA adapters that an application of ours serves beside its model."""
    try:
        modules = config["args"]["llm_configs"][0]["engine_kwargs"]["lora_modules"]
        return tuple(str(module["name"]) for module in modules)
    except (KeyError, IndexError, TypeError):
        return ()
