"""The model file: what an operator may declare about one model, and nothing else.

These classes are the one definition of the format. The parser validates with them, `reconcile schema` prints
the JSON Schema generated from them, and the descriptions below are what an editor shows. All are immutable,
strict (a boolean is not a number) and closed (an unknown key is an error).
"""

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    field_validator,
    model_validator,
)

from reconciler.core.cron import closing, times_of, zone_of
from reconciler.core.secrets import without_secrets

NAME_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:/[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)*$"
"""Names go into URLs, map files and Serve identifiers; `:` is Ray's separator for LoRA adapters."""

DURATION_PATTERN = r"^(?:[0-9]{1,9}(?:\.[0-9]{1,3})?(?:ms|s|m|h|d)){1,5}$"
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

ALLOWED_ENGINE_ARGS: frozenset[str] = frozenset(
    """
    async_scheduling attention_backend attention_config block_size chat_template_content_format
    config_format convert cpu_offload_gb default_chat_template_kwargs
    disable_cascade_attn disable_custom_all_reduce disable_hybrid_kv_cache_manager disable_sliding_window
    enable_auto_tool_choice enable_chunked_prefill enable_expert_parallel enable_force_include_usage
    enable_prefix_caching enable_prompt_tokens_details enable_sleep_mode enforce_eager generation_config
    hf_overrides kv_sharing_fast_prefill language_model_only limit_mm_per_prompt linear_backend
    logprobs_mode long_prefill_token_threshold max_cudagraph_capture_size max_logprobs
    mm_encoder_attn_backend mm_encoder_tp_mode mm_processor_cache_gb mm_processor_kwargs model_impl
    moe_backend optimization_level override_generation_config performance_mode pooler_config
    prefix_caching_hash_algo reasoning_parser response_role runner safetensors_load_strategy
    scheduling_policy seed skip_mm_profiling speculative_config stream_interval structured_outputs_config
    tokenizer_mode tool_call_parser video_pruning_rate
    """.split()
)
"""vLLM engine and frontend arguments (0.29) a model file may set.

Left out on purpose: what this tool sets itself (model, parallel sizes, memory), and what would run code from
a repository, read the operator's files or open a debugging endpoint (`trust_remote_code`,
`enable_prompt_embeds`, `allowed_local_media_path`, `worker_extension_cls`, ...).
"""


FORBIDDEN_ANYWHERE: frozenset[str] = frozenset(
    """
    trust_remote_code code_revision auto_map worker_cls worker_extension_cls scheduler_cls logits_processors
    """.split()
)
"""Keys that would run code from a repository, wherever vLLM or transformers reads nested settings."""


def _keys_within(value: JsonValue) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _keys_within(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys_within(item)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `15m` or `1h30m`.

    Raises:
        ValueError: The text is not a duration.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m, 1h30m or 2d")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


def _kind(value: object) -> str:
    # A discriminator instead of a plain union, so that a mistake is reported once and for the branch meant.
    return "auto" if isinstance(value, str) else "number"


Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=96)]
Duration = Annotated[
    str, AfterValidator(_check_duration), Field(pattern=DURATION_PATTERN, examples=["15m", "1h30m"])
]
LONGEST_WAIT_SECONDS = 4 * 3600.0
"""An hour less than `timeout server` of what is held, in templates/edge.cfg.j2: the answer may be silent too."""
_AutoTag = Annotated[Literal["auto"], Tag("auto")]
ParallelSize = Annotated[Annotated[int, Field(ge=1, le=1024), Tag("number")] | _AutoTag, Discriminator(_kind)]
Count = Annotated[Annotated[int, Field(ge=1, le=100_000_000), Tag("number")] | _AutoTag, Discriminator(_kind)]
Share = Annotated[Annotated[float, Field(gt=0, le=1), Tag("number")] | _AutoTag, Discriminator(_kind)]
Gibibytes = Annotated[Annotated[float, Field(gt=0, le=100_000), Tag("number")] | _AutoTag, Discriminator(_kind)]


REPO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""The hub's names of repositories, but for what `_check_repo` adds."""


def _check_repo(text: str) -> str:
    # What the hub itself refuses (huggingface_hub's validate_repo_id).
    if "--" in text or ".." in text or text.endswith((".git", "-", ".")):
        raise ValueError("the hub has no such names: no --, no .., and no .git, - or . at the end")
    return text


def _check_revision(text: str) -> str:
    # It becomes a path in the hub's cache.
    if ".." in text or "//" in text or text.endswith(("/", ".", ".lock")):
        raise ValueError("git has no such names: no .., no //, and no /, . or .lock at the end")
    return text


_Repo = Annotated[str, Field(pattern=REPO_PATTERN, max_length=96), AfterValidator(_check_repo)]
_Revision = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$", max_length=120), AfterValidator(_check_revision)
]
_Path = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$")]

LOCAL_PREFIXES = ("/", "./", "../")
"""What a tokenizer begins with that is a folder, not a repository."""


class Task(StrEnum):
    """What the model is asked to do; decides the vLLM runner and the request that probes it."""

    GENERATE = "generate"
    EMBED = "embed"
    SCORE = "score"
    RERANK = "rerank"
    CLASSIFY = "classify"
    REWARD = "reward"
    TRANSCRIBE = "transcribe"


class Policy(StrEnum):
    """Who decides whether a model is up."""

    PINNED = "pinned"
    ON_DEMAND = "on_demand"
    MANUAL = "manual"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Source(_Section):
    """Where the weights come from: a hub repository or a local folder, exactly one of the two."""

    repo: _Repo | None = None
    """Repository on the Hugging Face hub, as `owner/name`."""
    revision: _Revision | None = None
    """Branch, tag or commit of the repository; the default is the repository's main branch."""
    track: bool = False
    """Follow the branch when it moves. Without it, the commit that was found first stays."""
    path: _Path | None = None
    """A local model folder. A relative path starts at the folder of the model file."""
    tokenizer: _Path | None = None
    """Another repository for the tokenizer, or a folder, which begins with `/`, `./` or `../`."""
    tokenizer_revision: _Revision | None = None
    """Branch, tag or commit of the tokenizer's repository."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.repo is None) == (self.path is None):
            raise ValueError("give exactly one of repo and path")
        if self.path is not None and (self.revision is not None or self.track):
            raise ValueError("revision and track belong to repo; a path has no revision")
        if self.tokenizer is not None and not self.tokenizer.startswith(LOCAL_PREFIXES):
            if not re.fullmatch(r"(?:[A-Za-z0-9][A-Za-z0-9_.-]*/)?[A-Za-z0-9][A-Za-z0-9_.-]*", self.tokenizer):
                raise ValueError("tokenizer is neither a repository (owner/name) nor a folder (/x, ./x, ../x)")
            _check_repo(self.tokenizer)
        if self.tokenizer_revision is not None and (self.tokenizer or "/").startswith(LOCAL_PREFIXES):
            raise ValueError("tokenizer_revision belongs to a tokenizer that is a repository")
        return self


class Adapter(_Section):
    """A LoRA adapter, asked for by a name of its own: from a hub repository or a local folder."""

    name: Name
    """The name clients use."""
    repo: _Repo | None = None
    """Repository on the Hugging Face hub, as `owner/name`."""
    revision: _Revision | None = None
    """Branch, tag or commit of the repository; the default is the repository's main branch."""
    path: _Path | None = None
    """A local folder. A relative path starts at the folder of the model file."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.repo is None) == (self.path is None):
            raise ValueError("give exactly one of repo and path")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision belongs to repo; a path has no revision")
        return self


class Engine(_Section):
    """vLLM's settings. What is absent or `auto` is chosen for you; `reconcile render` shows it."""

    max_model_len: Count = "auto"
    """Context length in tokens, prompt and answer together. auto: the model's own, or the longest that fits."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Type of weights and activations."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2", "bfloat16"] = "auto"
    """Type of the KV cache."""
    quantization: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=40)] | None = None
    """Quantisation method, where vLLM cannot tell it from the weights."""
    gpu_memory_utilization: Share = "auto"
    """Share of each GPU's memory this model may use, 0 to 1; Ray reserves that and room for CUDA's context.
    auto: a whole GPU, or what `kv_cache_memory_gib` or an embedding model takes."""
    kv_cache_memory_gib: Gibibytes = "auto"
    """Size of the KV cache in GiB (2**30 bytes), per rank."""
    max_num_seqs: Count = "auto"
    """How many sequences run at once."""
    max_num_batched_tokens: Count = "auto"
    """How many tokens one step computes at most."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    """The largest rank of the model's adapters; only those with adapters need it."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Further vLLM arguments, by their Python names, from the allowed list."""

    @model_validator(mode="after")
    def _known_args(self) -> Self:
        for key in _keys_within(self.args):
            if key.lower().replace("-", "_") in FORBIDDEN_ANYWHERE:
                raise ValueError(f"args: {key} is not allowed in a model file, at any depth")
        for key in self.args:
            if key in ALLOWED_ENGINE_ARGS:
                continue
            if key in type(self).model_fields and key != "args":
                raise ValueError(f"args.{key}: write it directly under engine")
            raise ValueError(f"args.{key} is not an argument that a model file may set")
        return self


class Replicas(_Section):
    """How many copies of the engine run. Serve scales between the bounds by traffic."""

    min: Annotated[int, Field(ge=1, le=1000)] = 1
    """Copies that are always up while the model is."""
    max: Annotated[int, Field(ge=1, le=1000)] = 1
    """Copies at most."""
    target_ongoing_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests in flight per replica that scaling aims at."""

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, data: object) -> object:
        if isinstance(data, dict) and "max" not in data and isinstance(data.get("min"), int):
            return {**data, "max": data["min"]}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class Resources(_Section):
    """What the model runs on."""

    accelerator: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)] = "auto"
    """`auto`, `cpu`, `gpu`, or a GPU type as Ray names it (`H100`, `A100-40G`, `L4`)."""
    tensor_parallel: ParallelSize = "auto"
    """GPUs each layer is split over. auto: the fewest on which the model fits."""
    pipeline_parallel: ParallelSize = "auto"
    """Stages the layers are dealt out to."""
    across_nodes: bool = False
    """The ranks of one replica may be on several nodes. Their network has to be fast for that."""
    replicas: Replicas = Field(default_factory=Replicas)
    max_ongoing_requests: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Requests one replica takes at once; further ones wait or go to another replica."""
    max_queued_requests: Annotated[int, Field(ge=-1, le=1_000_000_000)] | None = None
    """Requests that may wait for a replica; -1 is no bound."""


class Schedule(_Section):
    """A window in which the model is pinned."""

    start: Annotated[str, Field(min_length=9, max_length=100)]
    """Cron expression (five fields) at which the window opens."""
    end: Annotated[str, Field(min_length=9, max_length=100)]
    """Cron expression (five fields) at which it closes."""
    timezone: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+/-]+$", max_length=64)] = "UTC"
    """IANA time zone of both, such as `Europe/Berlin`."""

    @field_validator("start", "end")
    @classmethod
    def _times(cls, text: str) -> str:
        times_of(text)
        return text

    @field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        zone_of(name)
        return name

    @model_validator(mode="after")
    def _closes(self) -> Self:
        closing(times_of(self.start), times_of(self.end))
        return self


class Lifecycle(_Section):
    """When the model is up, and what may take it down."""

    policy: Policy = Policy.ON_DEMAND
    """pinned: always up; on_demand: up when asked for, unloaded when idle; manual: only by hand."""
    idle_timeout: Duration = "30m"
    """How long after its last request an on_demand model stays."""
    sleep_after: Duration | None = None
    """On GPUs: how long after its last request the model goes to sleep, its weights in main memory and its GPU
    memory given back; a request wakes it in seconds. It keeps its place in Ray. Absent: it does not sleep."""
    min_stay: Duration = "1m"
    """How long a model stays at least once it is up."""
    load_timeout: Duration = "30m"
    """How long a load may take before it counts as failed."""
    drain_timeout: Duration = "10m"
    """How long requests in flight may take to finish before the model is removed all the same."""
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    """0 to 100. Of models that are always up the higher one is loaded first; where room has to be made, the lower
    one leaves first."""
    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """How many requests may wait for the model to come up; further ones are refused at once."""
    wait_timeout: Duration = "20m"
    """How long a request may wait for the model to come up; 4h at most."""
    schedule: Annotated[tuple[Schedule, ...], Field(max_length=50)] = ()
    """Windows in which the model is pinned."""
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)] | None = None
    """Models of one group are never up together."""
    heal: Literal["on", "off"] = "on"
    """off: drift is reported, not repaired."""

    @field_validator("wait_timeout")
    @classmethod
    def _as_the_edge_waits(cls, text: str) -> str:
        if parse_duration(text) > LONGEST_WAIT_SECONDS:
            raise ValueError(f"{text} is more than 4h, the longest that the front door lets a request wait")
        return text

    @model_validator(mode="after")
    def _asleep_before_gone(self) -> Self:
        if self.sleep_after is not None and parse_duration(self.sleep_after) >= parse_duration(self.idle_timeout):
            raise ValueError(
                f"sleep_after ({self.sleep_after}) is not less than idle_timeout ({self.idle_timeout})"
            )
        return self


class ModelSpec(_Section):
    """One model, as declared by one YAML file."""

    name: Name
    """The name clients use. The default is the file's stem."""
    source: Source
    task: Task = Task.GENERATE
    """generate, embed, score, rerank, classify, reward or transcribe."""
    engine: Engine = Field(default_factory=Engine)
    resources: Resources = Field(default_factory=Resources)
    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    aliases: tuple[Name, ...] = ()
    """Further names for the same model."""
    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters that are served with the model, each under its own name."""
    description: Annotated[str, Field(max_length=2000)] = ""
    """Shown in listings."""
    labels: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]*$", max_length=63)],
        Annotated[str, Field(max_length=253)],
    ] = Field(default_factory=dict)
    """Free-form labels of your own."""

    @property
    def other_names(self) -> tuple[str, ...]:
        """What clients may call the model, or a part of it, beside its own name."""
        return (*self.aliases, *(adapter.name for adapter in self.adapters))

    @field_validator("description", "labels")
    @classmethod
    def _without_secrets(cls, given: str | dict[str, str]) -> str | dict[str, str]:
        # They are in listings, plans and the journal, for many to read.
        for text in (given,) if isinstance(given, str) else given.values():
            if without_secrets(text) != text:
                raise ValueError("this looks like it holds a token or a password, and many can read it")
        return given

    @model_validator(mode="after")
    def _may_sleep(self) -> Self:
        if self.lifecycle.sleep_after is not None and self.task is Task.TRANSCRIBE:
            raise ValueError("lifecycle.sleep_after: whether a speech model woke well cannot be checked")
        return self
