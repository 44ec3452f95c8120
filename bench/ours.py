"""The stack under test: `./start.sh --demo` as the end-to-end tests start it, with one chat model up."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The end-to-end tests have a class that starts everything on ports of its own; there need not be two.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "e2e"))

from stack import Stack  # type: ignore[import-not-found, unused-ignore]

from bench.machine import BenchError, say
from reconciler.core.application import MODEL_ENV, model_of
from reconciler.demo.files import CHAT_MODEL, EMBEDDING_MODEL

__all__ = ["ALIAS", "MODEL", "Engine", "Stack", "applications", "engine_of", "running"]

MODEL, ALIAS = CHAT_MODEL, "chat"

# What is there already the demo leaves as it is, so this keeps its second model from being loaded.
_NOT_LOADED = "lifecycle: {policy: manual}\nsource: {repo: unused/unused}\ntask: embed\n"


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


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Stack]:
    """A stack in `folder` whose chat model is loaded; everything it started is gone afterwards."""
    stack = Stack(folder)
    stack.models.mkdir(parents=True)
    (stack.models / f"{EMBEDDING_MODEL}.yaml").write_text(_NOT_LOADED)
    try:
        say("starting Ray, Serve, the edge and the reconciler; loading the model")
        stack.start()
        stack.wait_loaded(MODEL)
        yield stack
    finally:
        say("stopping what was started")
        stack.stop()


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
