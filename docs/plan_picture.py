"""Draws docs/plan.svg: the plan of an edit, made by the real planner on a made-up cluster.

Run it from the repository: `.venv/bin/python docs/plan_picture.py`.
"""

import io
from pathlib import Path

from rich.console import Console

from reconciler.cli.show import show_plan
from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.planner import make_plan
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Node, Observed, Record, Replica, Status
from reconciler.core.target import Platform

_HERE = Path(__file__).parent
_RENDERER = Renderer(
    (_HERE.parent / "templates" / "application.json.j2").read_text(encoding="utf-8"), Platform(device="cuda")
)
_QWEN = """\
source: {repo: Qwen/Qwen3-0.6B}
engine: {max_model_len: %d, gpu_memory_utilization: 0.3}
resources: {replicas: {max: %d}}
aliases: [%s]
"""
_BGE = "source: {repo: BAAI/bge-m3}\ntask: embed\nengine: {gpu_memory_utilization: 0.15}\n%s"
_BEFORE = {
    "models.d/qwen3-0.6b.yaml": _QWEN % (4096, 1, "qwen"),
    "models.d/bge-m3.yaml": _BGE % "",
    "models.d/phi-4-mini.yaml": (
        "source: {repo: microsoft/Phi-4-mini-instruct}\nengine: {gpu_memory_utilization: 0.4}\n"
    ),
    "models.d/whisper.yaml": (
        "source: {repo: openai/whisper-small}\ntask: transcribe\nengine: {gpu_memory_utilization: 0.1}\n"
    ),
}
_AFTER = {
    "models.d/qwen3-0.6b.yaml": _QWEN % (8192, 2, "qwen, small"),
    "models.d/bge-m3.yaml": _BGE % "aliases: [embeddings]\n",
    "models.d/whisper.yaml": _BEFORE["models.d/whisper.yaml"],
    "models.d/llama-3.1-8b.yaml": "source: {repo: meta-llama/Llama-3.1-8B-Instruct}\n",
    "models.d/llama-3.1-70b.yaml": (
        "source: {repo: meta-llama/Llama-3.1-70B-Instruct}\nresources: {tensor_parallel: 4}\n"
    ),
}


def main() -> None:
    """Write the picture beside this file."""
    console = Console(record=True, width=104, file=io.StringIO(), highlight=False)
    console.print("$ reconcile --dry-run", style="bold")
    show_plan(make_plan(_desired(_AFTER), _running(_desired(_BEFORE))), now=0, out=console)
    console.save_svg(str(_HERE / "plan.svg"), title="models.d edited: what will happen, and why")


def _desired(files: dict[str, str]) -> Desired:
    encoded = {path: text.encode() for path, text in files.items()}
    return compile_desired(Snapshot(revision="81cc07aa5e21", files=encoded, folder="/srv/models.d"), _RENDERER)


def _running(desired: Desired) -> Observed:
    targets = desired.targets.values()
    return Observed(
        applications={
            target.application: Application(
                target.application,
                Status.RUNNING,
                target.config,
                target.model,
                replicas=(Replica("r", "RUNNING"),),
                demand=target.demand,
            )
            for target in targets
        },
        nodes=(Node("node", gpus=3),),
        routes={target.model: target.application for target in targets},
        records={
            target.model: Record(target.model, target.file, target.application, target.fields)
            for target in targets
        },
    )


if __name__ == "__main__":
    main()
