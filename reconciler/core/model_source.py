"""Where a model's weights, tokenizer and adapters are read from: a local folder, or the hub's cache. Pure."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reconciler.core.choose_files import allowed
from reconciler.core.spec import LOCAL_PREFIXES, ModelSpec
from reconciler.core.state import Json
from reconciler.core.weights import (
    DEFAULT_REVISION,
    Copy,
    Resolution,
    Resolutions,
    Role,
    Wanted,
    draft_model,
    snapshot_folder,
    wanted_of,
)

_IN_CACHE = re.compile(
    r"/models--(?:(?P<owner>[^/]+?)--)?(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(?=/|$)"
)


@dataclass(frozen=True, slots=True)
class Reads:
    """What a model's memory depends on, by where it is: a copy in the hub's cache, or a folder.

    Attributes:
        model: None while its commit is not known, or where the engine fetches it itself.
        draft: The draft model of speculative decoding. (LoRA slots have their size whatever the adapters are.)
    """

    model: Copy | str | None = None
    draft: Copy | str | None = None

    def __iter__(self) -> Iterator[Copy | str]:
        return (each for each in (self.model, self.draft) if each is not None)


def copies_in(config: Json) -> frozenset[Copy]:
    """The copies in a hub's cache that an application reads, wherever that cache lies.

    Not by the cache's own path: the same folder may be spelt in several ways.
    """
    found = (match for text in _texts(config) for match in _IN_CACHE.finditer(text))
    return frozenset(Copy("/".join(filter(None, (each["owner"], each["name"]))), each["commit"]) for each in found)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 -- any JSON value
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


class ModelSource:
    """Where one model's weights, tokenizer and adapters are read from.

    Args:
        spec: The model file.
        folder: Where relative paths start.
        cache: The hub's cache.
        resolutions: Which commits the wanted revisions are. Without, the engine fetches from the hub itself.
        objects: Where relative paths lead that do not start there.
    """

    def __init__(
        self,
        spec: ModelSpec,
        folder: str,
        cache: str,
        resolutions: Resolutions | None,
        objects: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._cache, self._resolutions = folder, cache, resolutions
        self._objects = objects or {}
        self._spec = spec
        self._commits: dict[tuple[Role, str, str], str] = {}
        self._places: dict[str, Copy | str] = {}
        self.paths: dict[str, Role] = {}
        self.copies: dict[Copy, str] = {}
        self.unresolved: dict[Wanted, Resolution] = {}
        self.notes: list[str] = []
        wanted = {(each.role, each.repo, each.revision): each for each in wanted_of(spec)}
        self.from_hub = bool(wanted) and resolutions is None
        source = spec.source
        if source.path is not None:
            self.model = self._local(source.path, Role.MODEL)
        else:
            self.model = self._remote(wanted, Role.MODEL, source.repo or "", source.revision)
        self.tokenizer: str | None = None
        if source.tokenizer is not None and source.tokenizer.startswith(LOCAL_PREFIXES):
            self.tokenizer = self._local(source.tokenizer, Role.TOKENIZER)
        elif source.tokenizer is not None:
            self.tokenizer = self._remote(wanted, Role.TOKENIZER, source.tokenizer, source.tokenizer_revision)
        draft = draft_model(spec)
        # Without resolutions the engine fetches it as the file says.
        self.draft = (
            self._remote(wanted, Role.MODEL, *draft) if draft is not None and resolutions is not None else None
        )
        self.adapters = [
            {
                "name": adapter.name,
                "path": self._local(adapter.path, Role.ADAPTER)
                if adapter.path is not None
                else self._remote(wanted, Role.ADAPTER, adapter.repo or "", adapter.revision),
            }
            for adapter in spec.adapters
        ]

    def with_commits(self, fields: Json) -> Json:
        """The model file's fields with the commit beside every revision, so that a plan shows when one moved."""
        source, spec = self._spec.source, self._spec
        found = self._commits.get((Role.MODEL, source.repo or "", source.revision or DEFAULT_REVISION))
        if found:
            fields["source"]["commit"] = found
        found = self._commits.get(
            (Role.TOKENIZER, source.tokenizer or "", source.tokenizer_revision or DEFAULT_REVISION)
        )
        if found:
            fields["source"]["tokenizer_commit"] = found
        for adapter, row in zip(spec.adapters, fields["adapters"], strict=True):
            found = self._commits.get((Role.ADAPTER, adapter.repo or "", adapter.revision or DEFAULT_REVISION))
            if found:
                row["commit"] = found
        return fields

    def engine_kwargs(self, allow_code: tuple[str, ...]) -> Json:
        """What the engine has to be told. vLLM ignores a revision where it is given a folder."""
        source = self._spec.source
        kwargs: Json = {}
        if self.from_hub and source.repo is not None and source.revision is not None:
            kwargs["revision"] = source.revision
        if self.tokenizer is not None:
            # Not Ray's `tokenizer_source`, which nothing in ray.llm 2.60 reads.
            kwargs["tokenizer"] = self.tokenizer
            if self.from_hub and source.tokenizer_revision is not None:
                kwargs["tokenizer_revision"] = source.tokenizer_revision
        if self.draft is not None:
            settings = self._spec.engine.args.get("speculative_config")
            assert isinstance(settings, dict), "or there would be no draft model"
            rest = {key: value for key, value in settings.items() if key not in ("model", "revision")}
            kwargs["speculative_config"] = {**rest, "model": self.draft}
        if source.repo is not None and allowed(source.repo, allow_code):
            kwargs["trust_remote_code"] = True
        if self.adapters:
            count = len(self.adapters)
            # All of them stay on the device, or a request for another one would wait for it to be read again.
            kwargs |= {
                "enable_lora": True,
                "lora_modules": self.adapters,
                "max_loras": count,
                "max_cpu_loras": count,
                "max_lora_rank": self._spec.engine.max_lora_rank,
            }
        return kwargs

    @property
    def reads(self) -> Reads:
        """Where everything is that decides how much memory the model takes."""
        return Reads(self._places.get(self.model), self._places.get(self.draft or ""))

    def _local(self, path: str, role: Role) -> str:
        found = self._objects.get(posixpath.normpath(path))
        if found is None:
            found = posixpath.normpath(posixpath.join(self._folder, path))
        self.paths.setdefault(found, role)
        self._places[found] = found
        return found

    def _remote(
        self, wanted: Mapping[tuple[Role, str, str], Wanted], role: Role, repo: str, revision: str | None
    ) -> str:
        if self._resolutions is None:
            return repo
        key = wanted[role, repo, revision or DEFAULT_REVISION]
        found = self._resolutions.get(key, Resolution())
        if found.note:
            self.notes.append(f"{repo}: {found.note}")
        if not found.commit:
            self.unresolved[key] = found
            return snapshot_folder(self._cache, repo, "unresolved")
        if found.moved_to:
            self.notes.append(
                f"revision {key.revision} of {repo} moved: {found.commit[:8]} -> {found.moved_to[:8]}; this model "
                "stays (source.track: true follows it)"
            )
        copy = Copy(repo, found.commit, role)
        path = snapshot_folder(self._cache, repo, found.commit)
        self._commits[role, repo, key.revision] = found.commit
        self.copies[copy] = key.revision
        self._places[path] = copy
        return path
