"""Run as a program: vLLM's own models with LoRA on the CPU, and the bytes of the slots that they make room for.

Reads `cases` as JSON, each with a `config`, `tp`, `max_loras`, `rank`, `targets` and `expert_parallel`, and writes
one number for each, or a text where vLLM refuses; likewise for `tables`. A process of its own, because it pretends
to be one rank of several, which nothing else should see.
"""

import json
import os
import sys
import tempfile
from typing import Any


def _bytes(value: Any) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        return int(value.numel() * value.element_size())
    return sum(_bytes(item) for item in value) if isinstance(value, list | tuple) else 0


def _without_kernels() -> None:
    """On a CPU no kernel for experts supports LoRA; the shapes do not need one."""
    from vllm.lora.layers import fused_moe
    from vllm.lora.layers.base import BaseLayerWithLoRA

    def init(self: Any, base_layer: Any) -> None:
        BaseLayerWithLoRA.__init__(self)
        self.base_layer, self._shared_experts = base_layer, base_layer._shared_experts
        self.moe_config = base_layer.moe_config
        parallel = self.moe_config.moe_parallel_config
        self.tp_size, self.tp_rank, self.device = parallel.tp_size, parallel.tp_rank, "cpu"
        self._w13_slices = 2 if self.moe_config.is_act_and_mul else 1
        self.n_slices = self.local_num_experts * (self._w13_slices + 1)
        self.enable_moe_shared_loras = False

    fused_moe.FusedMoEWithLoRA.__init__ = init
    fused_moe.FusedMoEWithLoRA.set_mapping = lambda self, wrapper: None


def _slots(case: dict[str, Any], folder: str) -> int:
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.model_executor.model_loader.utils import initialize_model

    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:  # noqa: PTH118, PTH123
        json.dump(case["config"], file)
    config = EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_lora=True,
        max_loras=case["max_loras"],
        max_lora_rank=case["rank"],
        lora_target_modules=case["targets"] or None,
        max_model_len=128,
        max_num_batched_tokens=128,
        max_num_seqs=8,
        dtype="bfloat16",
        enable_expert_parallel=case["expert_parallel"],
    ).create_engine_config()
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            parallel_state.init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
            parallel_state.initialize_model_parallel(1, 1)
            parallel_state._EP = parallel_state._DP
        parallel_state._TP.world_size = case["tp"]
        torch.set_default_dtype(torch.bfloat16)
        model = initialize_model(config)
        torch.set_default_dtype(torch.float32)
        vocabulary = config.model_config.get_vocab_size()
        manager = LoRAModelManager(model, 8, 128, vocabulary, config.lora_config, torch.device("cpu"), config)
    total = 0
    for module in manager.modules.values():
        if hasattr(module, "w13_lora_a_stacked"):
            names = ("w13_lora_a_stacked", "w13_lora_b_stacked", "w2_lora_a_stacked", "w2_lora_b_stacked")
            total += sum(_bytes(getattr(module, name)) for name in names) + _bytes(module.adapter_enabled)
        else:
            total += _bytes(module.lora_a_stacked) + _bytes(module.lora_b_stacked)
            total += _bytes(getattr(module, "sharded_to_full_mapping_gpu", None))
    return total


def _tables(max_loras: int, tokens: int, seqs: int) -> int:
    """What `PunicaWrapperGPU` would hold, without its kernels."""
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    base = vars(PunicaWrapperCPU(tokens, seqs, "cpu"))
    meta = vars(LoRAKernelMeta.make(max_loras, tokens, "cpu"))
    kernels = sum(_bytes(value) for name, value in meta.items() if not name.endswith("_cpu"))
    return sum(_bytes(value) for value in base.values()) + 2 * kernels


def main() -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()
    _without_kernels()
    asked = json.load(sys.stdin)
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in asked["cases"]:
            try:
                found.append(_slots(case, folder))
            except ValueError as error:
                found.append(str(error))
    tables = [_tables(*each) for each in asked["tables"]]
    sys.stdout.write("\n" + json.dumps({"cases": found, "tables": tables}) + "\n")


if __name__ == "__main__":
    main()
