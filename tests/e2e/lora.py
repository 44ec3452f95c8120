"""A LoRA adapter for the demo's chat model, made by hand: random, and strong enough to change what it says."""

import json
import math
import random
import struct
from array import array

_RANK, _HIDDEN = 8, 128
_OUTPUTS = {"q_proj": 128, "v_proj": 64}
_LAYERS = 2


def adapter_files(seed: int = 0) -> dict[str, bytes]:
    """What a repository of an adapter holds."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": 64,
        "target_modules": sorted(_OUTPUTS),
        "bias": "none",
    }
    chance = random.Random(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight": shape
        for layer in range(_LAYERS)
        for module, outputs in _OUTPUTS.items()
        for side, shape in (("A", (_RANK, _HIDDEN)), ("B", (outputs, _RANK)))
    }
    header, body = {}, b""
    for name, shape in tensors.items():
        values = array("f", (chance.gauss(0, 1) for _ in range(math.prod(shape)))).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(values)]}
        body += values
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    weights = struct.pack("<Q", len(head)) + head + body
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": weights}
