"""A model repository of random bytes in two shards, and a machine that fetches it."""

import asyncio
import dataclasses
import json
import random
import struct
import threading
from pathlib import Path
from typing import Any

from hub_server import Hub

from reconciler.core.choose_files import Rules
from reconciler.core.weights import Copy, CopyState
from reconciler.weights.cache import HubCache
from reconciler.weights.choosing import Chooser
from reconciler.weights.fetch import Fetcher
from reconciler.weights.hub import Hub as Client
from reconciler.weights.manifest import Manifests
from reconciler.weights.progress import Progress
from reconciler.weights.room import Room
from reconciler.weights.store import Limits, WeightStore

CHUNK = 2**20
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 2048}


def safetensors(size: int, seed: int) -> bytes:
    """A valid safetensors file with one tensor of so many bytes."""
    header = json.dumps({f"w{seed}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def model_files(*, size: int = 3 * CHUNK // 2, seed: int = 0) -> dict[str, bytes]:
    """Everything that a hub repository of a model has, what is not wanted included."""
    weight_map = {f"w{index}": shard for index, shard in enumerate(SHARDS)}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}" * 500,
        "tokenizer_config.json": b'{"chat_template": "x"}',
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        SHARDS[0]: safetensors(size, seed),
        SHARDS[1]: safetensors(size // 2, seed + 1),
        "README.md": b"# A model",
        "pytorch_model.bin": b"pickle",
        "modeling_own.py": b"import os",
        "original/consolidated.00.pth": b"pickle",
        "onnx/model.onnx": b"onnx",
        ".gitattributes": b"",
    }


WANTED = ("config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", *SHARDS)


class Kit:
    """One machine: a cache, a state directory, and what uses them."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        self.commit = ""
        self.cache = HubCache(folder / "hub")
        self.manifests = Manifests(folder / "state" / "weights")
        self.progress = Progress()

    @property
    def copy(self) -> Copy:
        """`org/model` at the commit it has."""
        return Copy("org/model", self.commit)

    def chooser(self, rules: Rules = Rules()) -> Chooser:  # noqa: B008 -- immutable
        """What says which files a copy has."""
        return Chooser(self.client(), self.cache, self.manifests, rules)

    def client(self) -> Client:
        """A client that gives up a stalled connection after a second."""
        return Client(self.hub.url, timeout=5, stall=1)

    def fetcher(self, *, reserve: int = 0, limit: int | None = None, rules: Rules = Rules()) -> Fetcher:  # noqa: B008
        """What makes copies; it removes nothing to make room."""
        room = Room(self.cache, reserve=reserve, limit=limit, make_room=lambda _: 0)
        return Fetcher(self.client(), self.cache, self.manifests, chooser=self.chooser(rules), room=room)

    def fetch(self, copy: Copy | None = None, revision: str = "main", **options: Any) -> None:
        """Fetch one copy, here and now."""
        self.progress = Progress()
        self.fetcher(**options).fetch(copy or self.copy, revision, self.progress, threading.Event())

    def store(self, **options: Any) -> WeightStore:
        """The store as the loop has it."""
        names = {each.name for each in dataclasses.fields(Limits)}
        limits = Limits(**{key: options.pop(key) for key in list(options) if key in names})
        return WeightStore(self.folder / "state", self.client(), self.cache, limits, **options)

    def state(self, copy: Copy | None = None) -> CopyState:
        """How far the copy is, as a reconciler that starts now sees it."""
        copy = copy or self.copy

        async def look() -> CopyState:
            return (await self.store().states([copy]))[copy]

        return asyncio.run(look())

    def snapshot(self, commit: str | None = None) -> dict[str, bytes]:
        """What an engine would read."""
        folder = self.cache.snapshot("org/model", commit or self.commit)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    def blobs(self) -> dict[str, Path]:
        """Every finished blob by its name."""
        folder = self.cache.folder("org/model") / "blobs"
        return {path.name: path for path in folder.iterdir() if not path.name.endswith(".incomplete")}


def expected(files: dict[str, bytes]) -> dict[str, bytes]:
    """Those of the files that are wanted."""
    return {path: files[path] for path in WANTED}
