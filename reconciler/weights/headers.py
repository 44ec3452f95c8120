"""A model's folder on disk: its config, and what the headers of its safetensors say. Nothing in it is trusted.

A safetensors file begins with eight bytes that say how long its header is, and the header: JSON with dtype, shape
and place of each tensor (https://huggingface.co/docs/safetensors). `weights.facts` reads those on the hub.
"""

import contextlib
import json
import os
import struct
import sys
import threading
from collections.abc import Collection, Iterable
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

from reconciler.core.choose_files import CONFIG, INDEX
from reconciler.core.fit.dtypes import BITS
from reconciler.core.fit.facts import Facts, checked_dtype, checked_shape
from reconciler.core.fit.tensors import Tensor
from reconciler.core.state import Json
from reconciler.core.weights import in_words
from reconciler.weights.choosing import MAX_READ
from reconciler.weights.errors import scrub

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SINGLE = "model.safetensors"
LENGTH_BYTES = 8
MAX_CONFIG = 16 * 2**20
"""Bytes. A config.json has some kilobytes."""
MAX_HEADERS = 128 * 2**20
"""Bytes of all headers of one model together: the 210,000 tensors of Kimi K2 Thinking take 31 MiB."""
MAX_FILES = 2000
"""Files of weights of one model; the largest known have some two hundred."""
_MAX_TENSORS = 1_000_000
_MISTRAL_INDEX = "consolidated.safetensors.index.json"

FolderLook: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of the content's change (in nanoseconds) and inode of each file that facts are read from."""


class ModelFilesError(ValueError):
    """A model's files cannot be read; the text names the file and the cause, and says what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(scrub(text))


class Allowance:
    """How many bytes the headers of one model may have together, in whichever threads they are read."""

    def __init__(self) -> None:
        self._left = MAX_HEADERS
        self._lock = threading.Lock()

    def take(self, size: int, where: str) -> None:
        """Before a header of so many bytes is read.

        Raises:
            ModelFilesError: It is too much.
        """
        with self._lock:
            self._left -= size
            if self._left < 0:
                raise ModelFilesError(
                    f"{where}: with its header of {in_words(size)} the model has more than "
                    f"{in_words(MAX_HEADERS)} of headers, which no known one has; use another one"
                )


def read_folder(folder: Path, *, adapter: bool | None = None) -> Facts:
    """The facts of a model or of an adapter on disk.

    Args:
        folder: Its folder.
        adapter: It is an adapter; None: as it looks.

    Raises:
        ModelFilesError: They cannot be read.
    """
    names = names_in(folder)
    if adapter is None:
        adapter = _looks_like_an_adapter(names)
    config = ADAPTER_CONFIG if adapter else CONFIG
    if config not in names:
        raise ModelFilesError(f"{folder} has no {config}, which says what it is: give the folder of a whole model")
    weights = [ADAPTER_WEIGHTS] if adapter and ADAPTER_WEIGHTS in names else []
    if not adapter:
        weights = _weights(folder, names)
    check_count(len(weights), str(folder))
    allowance = Allowance()
    return facts_of(
        read_json(folder / config),
        [_read_header(folder / name, allowance) for name in weights] if weights else None,
    )


def names_in(folder: Path) -> frozenset[str]:
    """The files in a folder, through links that lead somewhere; not those in folders of it.

    Raises:
        ModelFilesError: There is no such folder, or it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError) as error:  # A path with a NUL in it is a ValueError.
        raise _unreadable(folder, error) from None


def look_of_folder(folder: Path) -> FolderLook:
    """What the files look like that `read_folder` reads; empty where there are none."""
    found = []
    # What is wrong with a folder or a link that leads nowhere is for `read_folder` to say.
    with contextlib.suppress(ModelFilesError):
        for name in names_in(folder):
            if name in (CONFIG, ADAPTER_CONFIG, INDEX, _MISTRAL_INDEX) or _is_weights(name):
                with contextlib.suppress(OSError):
                    info = (folder / name).stat()
                    found.append((name, info.st_size, info.st_mtime_ns, info.st_ino))
    return tuple(sorted(found))


def read_json(path: Path, *, limit: int = MAX_CONFIG) -> Json:
    """A file with a JSON object.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        ModelFilesError: It cannot be read, or is something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    return parse_json(content, str(path), limit=limit)


def parse_json(content: bytes, where: str, *, limit: int = MAX_CONFIG) -> Json:
    """The same of content that is here already.

    Raises:
        ModelFilesError: It is no JSON object, or has more bytes than the limit.
    """
    if len(content) > limit:
        raise ModelFilesError(
            f"{where} has more than {in_words(limit)}, so it is not what it is called: fetch it again"
        )
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{where} is no JSON ({error}): fetch it again") from None
    if not isinstance(data, dict):
        raise ModelFilesError(f"{where} is no JSON object: fetch it again")
    return data


def header_length(first: bytes, size: int, where: str) -> int:
    """How many bytes of header follow the first eight.

    Args:
        first: The first eight bytes of the file.
        size: Bytes of the whole file.
        where: The file's name, for people.

    Raises:
        ModelFilesError: It is no safetensors file.
    """
    if len(first) < LENGTH_BYTES or size < LENGTH_BYTES:
        raise _damaged(where, f"it has {min(len(first), size)} bytes")
    length: int = struct.unpack_from("<Q", first)[0]
    if length > size - LENGTH_BYTES:
        raise _damaged(where, f"it has {size} bytes, and names a header of {length}")
    return length


def parse_header(header: bytes, size: int, where: str) -> tuple[Tensor, ...]:
    """The tensors that a header names.

    Args:
        header: All of it, without the eight bytes before it.
        size: Bytes of the whole file.
        where: The file's name, for people.

    Raises:
        ModelFilesError: It is no header, or names what the file cannot hold.
    """
    # An entry is an object with two lists; many more brackets are meant to take memory.
    if header.count(b"{") + header.count(b"[") > 3 * _MAX_TENSORS:
        raise _damaged(where, f"it names more than {_MAX_TENSORS} tensors")
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError):
        raise _damaged(where, "its header is no JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(where, "its header is no JSON object")
    room = size - LENGTH_BYTES - len(header)
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    found = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        try:
            tensor = _tensor(name, entry, room)
        except ValueError as error:
            raise _damaged(where, f"tensor {name!r:.80}: {error}") from None
        # Of many thousand tensors, most look alike.
        found.append(Tensor(name, tensor.dtype, shapes.setdefault(tensor.shape, tensor.shape)))
    return tuple(found)


def facts_of(config: Json, headers: Iterable[Iterable[Tensor]] | None) -> Facts:
    """The facts, from the headers of all files; None where there are none."""
    if headers is None:
        return Facts(config, None)
    # What two files hold is loaded twice, into the same memory.
    tensors = {tensor.name: tensor for header in headers for tensor in header}
    return Facts(config, tuple(tensors.values()))


def check_count(files: int, where: str) -> None:
    """Before so many files are opened.

    Raises:
        ModelFilesError: They are too many.
    """
    if files > MAX_FILES:
        raise ModelFilesError(
            f"{where}: {files} files of weights are more than any known model has; use another one"
        )


def _looks_like_an_adapter(names: Collection[str]) -> bool:
    # Many are saved with the config.json of the model that they are for; their own weights are in one file.
    others = any(_is_weights(name) and name != ADAPTER_WEIGHTS for name in names)
    return ADAPTER_CONFIG in names and (CONFIG not in names or (ADAPTER_WEIGHTS in names and not others))


def _weights(folder: Path, names: frozenset[str]) -> list[str]:
    """The safetensors that hold the model: those of the index, else the usual name, else all; as `choose_files`.

    vLLM would read Mistral's own form (consolidated*.safetensors) first. That is the same model by other names,
    and the usual ones say better which part is what, so that form counts only where there is nothing else.
    """
    found = sorted(filter(_is_weights, names))
    plain = [name for name in found if not name.startswith("consolidated")]
    if INDEX in names and (plain or not found):
        return _indexed(folder, INDEX, names)
    if _MISTRAL_INDEX in names and not plain:
        return _indexed(folder, _MISTRAL_INDEX, names)
    return [SINGLE] if SINGLE in plain else plain or found


def _indexed(folder: Path, index: str, names: frozenset[str]) -> list[str]:
    path = folder / index
    mapping = read_json(path, limit=MAX_READ).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(n, str) for n in mapping.values()):
        raise ModelFilesError(f"{path} is no index of weights: fetch it again")
    files = sorted(set(mapping.values()))
    for name in files:
        # CVE-2026-69112: an index may name any path.
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ModelFilesError(
                f"{path} names {name!r:.80}, which leads out of the folder: do not use this model, nobody who "
                "means well writes that"
            )
        if not _is_weights(name):
            raise ModelFilesError(f"{path} names {name!r:.80}, which is no file of weights: fetch it again")
        if name not in names:
            raise ModelFilesError(f"{path} names {name!r:.80}, which is not there: fetch the rest of the model")
    return files


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _read_header(path: Path, allowance: Allowance) -> tuple[Tensor, ...]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(file.read(LENGTH_BYTES), size, str(path))
            allowance.take(length, str(path))
            header = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from None
    return parse_header(header, size, str(path))


def _tensor(name: str, entry: Any, room: int) -> Tensor:  # noqa: ANN401 -- whatever JSON holds
    if not name.isprintable():
        raise ValueError("its name cannot be printed")
    if not isinstance(entry, dict):
        raise ValueError("it has no entry")  # noqa: TRY004 -- whoever reads a header handles one error
    dtype, shape = checked_dtype(entry.get("dtype")), checked_shape(entry.get("shape"))
    place = entry.get("data_offsets")
    if not isinstance(place, list) or len(place) != 2 or not all(type(end) is int for end in place):  # noqa: PLR2004
        raise ValueError("it has no place in the file")
    if not 0 <= place[0] <= place[1] <= room:
        raise ValueError("its place is outside of the file")
    if (place[1] - place[0]) * 8 != prod(shape) * BITS[dtype]:
        raise ValueError(f"its place has {place[1] - place[0]} bytes, not those of its shape")
    return Tensor(name, sys.intern(dtype), shape)


def _unreadable(path: Path, error: OSError | ValueError) -> ModelFilesError:
    cause = getattr(error, "strerror", None) or error
    return ModelFilesError(f"{path}: {cause}; check the path and its permissions")


def _damaged(where: str, cause: str) -> ModelFilesError:
    return ModelFilesError(
        f"{where} is no safetensors file that can be read ({cause}): it is damaged, cut off or of a newer form; "
        "fetch it again, or use another version of the model"
    )
