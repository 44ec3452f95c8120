"""The stack under test: `./start.sh --demo` as the end-to-end tests start it, and what can be seen of it."""

import asyncio
import contextlib
import json
import sys
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The end-to-end tests have a class that starts everything on ports of its own; there need not be two.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "e2e"))

from stack import Stack, free_ports  # type: ignore[import-not-found, unused-ignore]

from bench.machine import BenchError, say
from bench.phases import read_events
from reconciler.core.application import MODEL_ENV, model_of
from reconciler.demo.files import CHAT_MODEL, EMBEDDING_MODEL
from reconciler.ray_serve.client import ServeClient

__all__ = [
    "ALIAS",
    "MODEL",
    "Engine",
    "Replica",
    "Stack",
    "applications",
    "engine_log",
    "engine_of",
    "free_ports",
    "listed",
    "model_file",
    "replica_of",
    "running",
    "started",
    "wait_cold",
    "wait_forgotten",
    "wait_settled",
]

MODEL, ALIAS = CHAT_MODEL, "chat"

# What is there already the demo leaves as it is, so this keeps its models from being loaded.
_NOT_LOADED = "lifecycle: {policy: manual}\nsource: {repo: unused/unused}\n"
_ROUTER = "LLMRouter"
"""A deployment beside the engine's, of Serve's own."""
_COLD = "unloaded"
_LISTED_SECONDS, _SETTLED_SECONDS = 180.0, 120.0


@dataclass(frozen=True, slots=True)
class Engine:
    """How Ray Serve was told to run the engine, so that bare vLLM can be told the same.

    Attributes:
        application: The Serve application, which is also its route.
        source: The folder of the weights.
        arguments: vLLM's engine arguments.
        variables: Environment variables, ours left out.
    """

    application: str
    source: str
    arguments: dict[str, Any]
    variables: dict[str, str]


@dataclass(frozen=True, slots=True)
class Replica:
    """The replica that holds a model's engine.

    Attributes:
        started: When Serve started it, in seconds since the epoch.
    """

    pid: int
    actor_id: str
    started: float


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """A stack in `folder` whose chat model is loaded; everything it started is gone afterwards."""
    with _stack(folder, {EMBEDDING_MODEL: _NOT_LOADED + "task: embed\n"}) as stack:
        stack.wait_loaded(MODEL)
        yield stack


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Stack]:
    """A stack in `folder` that has just been started and loads nothing; all that it started is gone afterwards."""
    with _stack(folder, {EMBEDDING_MODEL: _NOT_LOADED + "task: embed\n", MODEL: _NOT_LOADED}) as stack:
        yield stack


@contextlib.contextmanager
def _stack(folder: Path, files: Mapping[str, str]) -> Iterator[Stack]:
    stack = Stack(folder)
    stack.models.mkdir(parents=True)
    for name, text in files.items():
        (stack.models / f"{name}.yaml").write_text(text)
    try:
        say("starting Ray, Serve, the edge and the reconciler")
        stack.start()
        yield stack
    finally:
        say("stopping what was started")
        stack.stop()


def model_file(stack: Stack, name: str, *, accelerator: str, lifecycle: str) -> str:
    """The demo's chat model once more, under another name: with the same settings of the engine.

    Args:
        stack: Whose weights.
        name: The model's.
        accelerator: `cpu`, or `gpu` for one of the simulated GPUs, all of it.
        lifecycle: The section of that name, as YAML in a line.
    """
    weights = stack.state / "demo" / "weights" / CHAT_MODEL
    return (
        f"name: {name}\n"
        f"source: {{path: {json.dumps(str(weights))}}}\n"
        "engine: {max_model_len: 512, kv_cache_memory_gib: 0.25, args: {enforce_eager: true}}\n"
        f"resources: {{accelerator: {accelerator}}}\n"
        f"lifecycle: {lifecycle}\n"
    )


def listed(stack: Stack) -> dict[str, str]:
    """What `/v1/models` of the front door says: the state of every model and alias."""
    with urllib.request.urlopen(f"{stack.url}/models", timeout=30) as answer:
        rows: list[dict[str, Any]] = json.load(answer)["data"]
    return {row["id"]: row["status"]["value"] for row in rows}


def wait_cold(stack: Stack, names: Collection[str]) -> None:
    """Wait until the front door knows all of these models, and none of them is up."""

    def known() -> bool:
        with contextlib.suppress(OSError):  # It is not up yet.
            states = listed(stack)
            return all(states.get(name) == _COLD for name in names)
        return False

    stack.wait_for(known, f"the front door lists, as {_COLD}: {', '.join(names)}", _LISTED_SECONDS)


def wait_forgotten(stack: Stack, names: Collection[str]) -> None:
    """Wait until the front door knows none of these models."""
    stack.wait_for(
        lambda: not set(names) & listed(stack).keys(),
        f"the front door lists no more: {', '.join(names)}",
        _LISTED_SECONDS,
    )


def wait_settled(stack: Stack, since: float) -> None:
    """Wait until the reconciler has said that nothing is left to do, after `since` (seconds since the epoch)."""

    def settled() -> bool:
        return any(each.name == "reconcile.settled" and each.moment >= since for each in read_events(stack.log))

    stack.wait_for(settled, "the reconciler is settled", _SETTLED_SECONDS)


def engine_of(stack: Stack, model: str = MODEL) -> Engine:
    """The configuration that Serve runs a model by.

    Raises:
        BenchError: Serve has no application of that model.
    """
    for name, details in applications(stack).items():
        config = details.get("deployed_app_config")
        if config is None or model_of(config) != model:
            continue
        llm = config["args"]["llm_configs"][0]
        variables: dict[str, str] = llm["runtime_env"]["env_vars"]
        return Engine(
            application=name,
            source=llm["model_loading_config"]["model_source"],
            arguments=llm["engine_kwargs"],
            variables={key: value for key, value in variables.items() if key != MODEL_ENV},
        )
    raise BenchError(f"Ray Serve has no application of {model}")


def applications(stack: Stack) -> dict[str, dict[str, Any]]:
    """Serve's applications, as Serve describes them."""
    found: dict[str, dict[str, Any]] = asyncio.run(stack.serve_instance())["applications"]
    return found


def replica_of(stack: Stack, model: str) -> Replica:
    """The replica of a model that is up.

    Raises:
        BenchError: There is none.
    """
    deployments: dict[str, dict[str, Any]] = applications(stack)[engine_of(stack, model).application][
        "deployments"
    ]
    for name, deployment in deployments.items():
        for row in deployment["replicas"] if name != _ROUTER else ():
            if row["pid"] and row["actor_id"]:
                return Replica(row["pid"], row["actor_id"], row["start_time_s"])
    raise BenchError(f"{model} has no replica")


def engine_log(stack: Stack, replica: Replica) -> str:
    """What a replica and the workers of its engine have printed, from its beginning."""

    async def read() -> list[str]:
        async with ServeClient(stack.dashboard, stack.state / "ray-token") as client:
            return await client.start_logs(replica.actor_id)

    return "\n".join(asyncio.run(read()))
