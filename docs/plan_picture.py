"""Draws docs/plan.svg: the plan of an edit, made by the real planner on a made-up cluster.

Run it from the repository: `.venv/bin/python docs/plan_picture.py`.
"""

import hashlib
import io
from pathlib import Path

from rich.console import Console

from reconciler.cli.show import show_plan
from reconciler.core.desired import Desired, Snapshot, compile_desired, wanted_in
from reconciler.core.fit.facts import Facts, FactsState
from reconciler.core.fit.gpus import gpu
from reconciler.core.fit.measured import Key
from reconciler.core.fitting import Cluster, Fitter
from reconciler.core.parse import parse_all
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Device, Json, Node, Observed, Record, Replica, Status
from reconciler.core.target import Platform
from reconciler.core.weights import Copy, CopyState, Phase, Resolution

_HERE = Path(__file__).parent
_PLATFORM = Platform(device="cuda", hub_cache="/srv/hub")
_RENDERER = Renderer((_HERE.parent / "templates" / "application.json.j2").read_text(encoding="utf-8"), _PLATFORM)
_GPU = gpu("l40s")
_NODE = Node("n", 2, devices=tuple(Device(i, f"GPU-{i}", "L40S", _GPU.total) for i in range(2)), host="box")
_IDLE_SECONDS = 25 * 60.0
_PINNED = "lifecycle: {policy: pinned}\n"
_QWEN = """\
source: {repo: Qwen/Qwen3-0.6B}
engine: {max_model_len: %d, kv_cache_memory_gib: 8}
resources: {replicas: {max: %d}}
lifecycle: {policy: pinned}
aliases: [%s]
"""
_EMBED = "source: {repo: Qwen/Qwen3-Embedding-0.6B}\ntask: embed\nengine: {max_model_len: 8192}\n" + _PINNED
_MISTRAL = "source: {repo: mistralai/Mistral-7B-Instruct-v0.3}\nlifecycle: {idle_timeout: 1h, priority: 20}\n"
_BEFORE = {
    "models.d/qwen3-0.6b.yaml": _QWEN % (4096, 1, "qwen"),
    "models.d/embedding.yaml": _EMBED,
    "models.d/mistral-7b.yaml": _MISTRAL,
    "models.d/phi-4-mini.yaml": (
        "source: {repo: microsoft/Phi-4-mini-instruct}\nengine: {max_model_len: 8192, kv_cache_memory_gib: 2}\n"
    ),
}
_AFTER = {
    "models.d/qwen3-0.6b.yaml": _QWEN % (8192, 2, "qwen, small"),
    "models.d/embedding.yaml": _EMBED + "aliases: [embeddings]\n",
    "models.d/mistral-7b.yaml": _MISTRAL,
    "models.d/llama-3.1-8b.yaml": "source: {repo: meta-llama/Llama-3.1-8B-Instruct}\n" + _PINNED,
    "models.d/llama-3.1-70b.yaml": (
        "source: {repo: meta-llama/Llama-3.1-70B-Instruct}\nengine: {max_model_len: 131072}\n"
    ),
}
_LLAMA: Json = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "intermediate_size": 14336,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
}  # fmt: skip
_QWEN3: Json = {
    **_LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "num_hidden_layers": 28, "num_attention_heads": 16, "head_dim": 128, "vocab_size": 151936,
    "intermediate_size": 3072, "tie_word_embeddings": True, "max_position_embeddings": 40960,
}  # fmt: skip
_CONFIGS: dict[str, Json] = {
    "Qwen/Qwen3-0.6B": _QWEN3,
    "Qwen/Qwen3-Embedding-0.6B": _QWEN3,
    "microsoft/Phi-4-mini-instruct": {
        **_LLAMA, "hidden_size": 3072, "num_attention_heads": 24, "intermediate_size": 8192, "vocab_size": 200064,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA,
    "mistralai/Mistral-7B-Instruct-v0.3": {
        **_LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32768,
        "max_position_embeddings": 32768,
    },
    "meta-llama/Llama-3.1-70B-Instruct": {
        **_LLAMA, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "intermediate_size": 28672,
    },
}  # fmt: skip
_FACTS = {
    Copy(repo, hashlib.sha1(repo.encode(), usedforsecurity=False).hexdigest()): FactsState(Facts(config, None))
    for repo, config in _CONFIGS.items()
}


class _NothingMeasured:
    def version(self, model: str) -> int:  # noqa: ARG002
        """Never another one."""
        return 0

    def known(self, key: Key) -> None:
        """No model ran before."""


def main() -> None:
    """Write the picture beside this file."""
    console = Console(record=True, width=124, file=io.StringIO(), highlight=False)
    console.print("$ reconcile --dry-run", style="bold")
    running = _running(_desired(_BEFORE, Observed(nodes=(_NODE,))))
    show_plan(make_plan(_desired(_AFTER, running), running), now=0, out=console)
    console.save_svg(str(_HERE / "plan.svg"), title="models.d edited: what will happen, and why")


def _desired(files: dict[str, str], observed: Observed) -> Desired:
    snapshot = Snapshot(
        revision="81cc07aa5e21",
        files={path: text.encode() for path, text in files.items()},
        folder="/srv/models.d",
    )
    commits = {copy.repo: copy.commit for copy in _FACTS}
    parsed = parse_all(snapshot.files)
    resolutions = {wanted: Resolution(commits[wanted.repo]) for wanted in wanted_in(parsed)}
    read = compile_desired(snapshot, _RENDERER, resolutions, parsed=parsed)
    cluster = Cluster(observed.applications, observed.nodes, observed.routes)
    return Fitter(_RENDERER, _PLATFORM, _NothingMeasured()).fitted(read, cluster, dict(_FACTS))


def _running(desired: Desired) -> Observed:
    targets = desired.targets.values()
    return Observed(
        applications={
            target.application: Application(
                target.application,
                Status.RUNNING,
                target.config,
                target.model,
                replicas=(Replica("r", "RUNNING", node_id=_NODE.id),),
                demand=target.demand,
            )
            for target in targets
        },
        nodes=(_NODE,),
        weights={copy: CopyState(Phase.READY) for copy in _FACTS},
        routes={target.model: target.application for target in targets},
        up_seconds={target.application: 3 * _IDLE_SECONDS for target in targets},
        idle_seconds={target.application: _IDLE_SECONDS for target in targets},
        records={
            target.model: Record(target.model, target.file, target.application, target.fields)
            for target in targets
        },
    )


if __name__ == "__main__":
    main()
