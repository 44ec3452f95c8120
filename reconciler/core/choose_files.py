"""Which files of a repository are fetched: what vLLM reads, and nothing that could run. Pure.

vLLM reads the safetensors that the index names (`default_loader.py`, `filter_duplicate_safetensors_files`), else
those beside `config.json`; configuration, tokenizer and chat template; and for models of sentence-transformers the
modules' folders. Pickles and code can run when they are loaded, so they are taken only where the operator says so.
"""

import fnmatch
import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from reconciler.core.state import Json
from reconciler.core.vllm_architectures import ARCHITECTURES
from reconciler.core.weights import Role

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_MISTRAL_INDEX = "consolidated.safetensors.index.json"
_PICKLE_INDEX = "pytorch_model.bin.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# As in vLLM's filter_files_not_needed_for_inference.
_TRAINING_LEFTOVERS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
_SMALL = ("*.json", "*.jinja", "*.model", "*.model.v*", "*.tiktoken", "*.spm", "merges.txt", "vocab.txt")
_MODULE_FOLDER = re.compile(r"^[0-9]+_[A-Za-z]+/[^/]+$|^(?:additional_)?chat_templates/[^/]+\.jinja$")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_FILES = 20_000
MAX_SMALL_FILE = 256 * 2**20
"""Bytes. A tokenizer of 34 MB is the largest known; more than this is no configuration."""


class WeightsRefusedError(Exception):
    """This repository is not fetched; the text says why and what would change that."""


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a commit.

    Attributes:
        path: Relative to the repository, with slashes.
        size: Bytes.
        etag: What the cache names its content by: SHA-256 of a large file, the git blob's SHA-1 of a small one.
    """

    path: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of one commit, as the hub lists them."""

    repo: str
    commit: str
    files: tuple[RepoFile, ...]

    _by_path: dict[str, RepoFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_path", {file.path: file for file in self.files})

    def find(self, path: str) -> RepoFile | None:
        """The file at this path."""
        return self._by_path.get(path)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator allows, as patterns of repository names (`org/*`)."""

    allow_pickle: tuple[str, ...] = ()
    allow_code: tuple[str, ...] = ()


def is_etag(text: str) -> bool:
    """The text can be the name of content: a SHA-256 or a git SHA-1, in small hexadecimal digits."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def is_weights_at_the_root(path: str) -> bool:
    """A file of this name is read by vLLM wherever it finds one in the folder of a model."""
    return path.endswith(".safetensors") and "/" not in path


def allowed(repo: str, patterns: Iterable[str]) -> bool:
    """One of the patterns matches the repository."""
    return any(fnmatch.fnmatchcase(repo, pattern) for pattern in patterns)


def indexes_to_read(listing: Listing, role: Role) -> tuple[str, ...]:
    """The small files that `choose_files` has to see the content of, where they are there."""
    if role is Role.TOKENIZER:
        names: tuple[str, ...] = ("tokenizer_config.json",)
    elif role is Role.ADAPTER:
        names = ()
    else:
        names = (CONFIG, "tokenizer_config.json", INDEX, _MISTRAL_INDEX, _PICKLE_INDEX)
    return tuple(name for name in names if listing.find(name) is not None)


def choose_files(listing: Listing, role: Role, contents: dict[str, bytes], rules: Rules) -> tuple[RepoFile, ...]:
    """The files to fetch, small ones first.

    Args:
        listing: Everything there is.
        role: What the repository is to the model.
        contents: The content of `indexes_to_read`.
        rules: What the operator allows.

    Raises:
        WeightsRefusedError: It has no weights that vLLM can read, only pickles, needs code of its own, or an index
            that names what it should not.
    """
    if len(listing.files) > MAX_FILES:
        raise WeightsRefusedError(f"{listing.repo} has {len(listing.files)} files, more than {MAX_FILES}")
    for file in listing.files:
        _check_name(listing.repo, file.path)
    code = allowed(listing.repo, rules.allow_code)
    if not code:
        _refuse_code(listing, contents)
    small = [file for file in listing.files if _is_small(file, role, code=code)]
    chosen = [*small, *_weights(listing, role, contents, rules)]
    unique = {file.path: file for file in chosen}
    return tuple(sorted(unique.values(), key=lambda file: (file.size, file.path)))


def _weights(listing: Listing, role: Role, contents: dict[str, bytes], rules: Rules) -> list[RepoFile]:
    if role is Role.TOKENIZER:
        return []
    if role is Role.ADAPTER:
        file = listing.find(_ADAPTER_WEIGHTS)
        if file is None or listing.find("adapter_config.json") is None:
            raise WeightsRefusedError(
                f"{listing.repo} is no LoRA adapter that can be used: it lacks adapter_config.json or "
                f"{_ADAPTER_WEIGHTS}"
            )
        return [file]
    if listing.find(CONFIG) is None and listing.find("params.json") is None:
        raise WeightsRefusedError(
            f"{listing.repo} has no {CONFIG}, so vLLM cannot tell what it is{_other(listing)}"
        )
    tensors = [file for file in listing.files if file.path.endswith(".safetensors") and "/" not in file.path]
    modules = [file for file in listing.files if _is_module(file) and file.path.endswith(".safetensors")]
    plain = [file for file in tensors if not file.path.startswith("consolidated")]
    for index, found in ((INDEX, plain), (_MISTRAL_INDEX, tensors)):
        if index in contents and found:
            return [*_indexed(listing, index, contents[index]), *modules]
    # Without an index, what stands beside the usual name is another precision of the same (whisper-large-v3).
    usual = [file for file in plain if file.path == "model.safetensors"]
    if tensors:
        return [*(usual or plain or tensors), *modules]
    return _pickles(listing, contents, rules)


def _indexed(listing: Listing, index: str, content: bytes) -> list[RepoFile]:
    """The files that an index names, each checked (CVE-2026-69112: a name may be any path)."""
    found: list[RepoFile] = []
    for name in sorted(set(_weight_map(listing.repo, index, content))):
        _check_name(f"{listing.repo}: {index}", name)
        file = listing.find(name)
        if file is None:
            raise WeightsRefusedError(
                f"{listing.repo}: {index} names {name!r}, which the repository does not have"
            )
        if not name.endswith(_PICKLES if index == _PICKLE_INDEX else ".safetensors"):
            raise WeightsRefusedError(f"{listing.repo}: {index} names {name!r}, which is no file of weights")
        found.append(file)
    if not found:
        raise WeightsRefusedError(f"{listing.repo}: {index} names no file")
    return found


def _weight_map(repo: str, index: str, content: bytes) -> list[str]:
    try:
        names = list(json.loads(content)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = [None]
    if not all(isinstance(name, str) for name in names):
        raise WeightsRefusedError(f"{repo}: {index} is no index of weights")
    return names


def _pickles(listing: Listing, contents: dict[str, bytes], rules: Rules) -> list[RepoFile]:
    pickles = [
        file
        for file in listing.files
        if file.path.endswith(_PICKLES) and "/" not in file.path and file.path not in _TRAINING_LEFTOVERS
    ]
    if not pickles:
        raise WeightsRefusedError(
            f"{listing.repo} has no safetensors, the format that vLLM reads{_other(listing)}"
        )
    if not allowed(listing.repo, rules.allow_pickle):
        raise WeightsRefusedError(
            f"{listing.repo} has its weights only as pickles ({pickles[0].path}), which can run code when they "
            "are loaded; look for a safetensors version, or allow it with "
            f"RECONCILE_ALLOW_PICKLE='[\"{listing.repo}\"]'"
        )
    if _PICKLE_INDEX in contents:
        return _indexed(listing, _PICKLE_INDEX, contents[_PICKLE_INDEX])
    return pickles


def _other(listing: Listing) -> str:
    kinds = {posixpath.splitext(file.path)[1] for file in listing.files} & {".gguf", ".onnx", ".h5", ".msgpack"}
    return f" (it has {', '.join(sorted(kinds))})" if kinds else ""


def _is_small(file: RepoFile, role: Role, *, code: bool) -> bool:
    if file.size > MAX_SMALL_FILE:
        return False
    if "/" in file.path and not _is_module(file):
        return code and file.path.endswith(".py")
    name = posixpath.basename(file.path)
    if name.endswith(".py"):
        return code
    if name in (_PICKLE_INDEX, _MISTRAL_INDEX) or (name == INDEX and role is not Role.MODEL):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _SMALL)


def _is_module(file: RepoFile) -> bool:
    # sentence-transformers: 1_Pooling/config.json, 2_Dense/model.safetensors; and named chat templates.
    return _MODULE_FOLDER.fullmatch(file.path) is not None


def _check_name(where: str, name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise WeightsRefusedError(f"{where} names {name!r}, which leads out of the repository")


def _refuse_code(listing: Listing, contents: dict[str, bytes]) -> None:
    config, tokenizer = _json(contents.get(CONFIG)), _json(contents.get("tokenizer_config.json"))
    architectures = config.get("architectures")
    known = isinstance(architectures, list) and any(name in ARCHITECTURES for name in architectures)
    # Many repositories carry code that nobody needs any more, because vLLM knows the model by now.
    model_needs = _names_code(config, ("AutoConfig", "AutoModel")) and not known
    plain_tokenizer = any(listing.find(name) for name in ("tokenizer.json", "tokenizer.model", "tekken.json"))
    if not (model_needs or (_names_code(tokenizer, ("AutoTokenizer",)) and not plain_tokenizer)):
        return
    what = "its own code" if model_needs else "code of its own for its tokenizer"
    raise WeightsRefusedError(
        f"{listing.repo} needs {what} (auto_map in {CONFIG if model_needs else 'tokenizer_config.json'}), which "
        f"would run here; if you trust it, allow it with RECONCILE_ALLOW_CODE='[\"{listing.repo}\"]'"
    )


def _names_code(config: Json, kinds: tuple[str, ...]) -> bool:
    mapping = config.get("auto_map")
    return isinstance(mapping, dict) and any(code and key.startswith(kinds) for key, code in mapping.items())


def _json(content: bytes | None) -> Json:
    try:
        data = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
