"""What the hub knows about a repository to a model file with comments. Pure.

Metadata is written by whoever owns the repository, so none of it reaches the file as it is: values are quoted
wherever they are not plain words, and what stands in a comment is one line of harmless characters.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.core.catalogue import Entry
from reconciler.core.spec import Task
from reconciler.core.state import Json
from reconciler.core.weights import DEFAULT_REVISION, in_words

SCHEMA_LINE = "# yaml-language-server: $schema=../schema/model.schema.json"
DEFAULT_CONTEXT = 32768
"""A longer context is possible, but its cache takes memory that most want for more requests at once."""

_HUB = "https://huggingface.co"
_LONGEST_NAME = 96
_LONGEST_WORDS = 80
_LONGEST_TEXT = 300
_MAX_CONTEXT = 100_000_000
_MAX_ARCHITECTURES = 4
_GPU_WEIGHTS = 48 * 2**30
"""Bytes of weights that leave a GPU of 80 GB room for a cache."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
# As vLLM looks for it in config.json (`transformers_utils/model_arch_config_convertor.py`), the usual one first.
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
    "max_target_positions",
)
_NO_WORD = re.compile(r"[^A-Za-z0-9._+/-]+")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
# What YAML 1.1 or 1.2 reads as something else than text.
_NOT_TEXT = frozenset("null true false yes no on off y n".split())
_PIPELINES = {
    "feature-extraction": Task.EMBED,
    "sentence-similarity": Task.EMBED,
    "text-ranking": Task.RERANK,
    "text-classification": Task.CLASSIFY,
    "token-classification": Task.CLASSIFY,
    "zero-shot-classification": Task.CLASSIFY,
    "automatic-speech-recognition": Task.TRANSCRIBE,
    "text-generation": Task.GENERATE,
    "text2text-generation": Task.GENERATE,
    "image-text-to-text": Task.GENERATE,
    "video-text-to-text": Task.GENERATE,
    "audio-text-to-text": Task.GENERATE,
    "image-to-text": Task.GENERATE,
    "visual-question-answering": Task.GENERATE,
    "any-to-any": Task.GENERATE,
}
_RERANKER_TAGS = frozenset({"cross-encoder", "reranker"})
_ENDINGS = (
    (("RewardModel",), Task.REWARD),
    (("Classification",), Task.CLASSIFY),
    (("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"), Task.GENERATE),
    (("Model", "ForMaskedLM"), Task.EMBED),
)
# Published as a chat model that says yes or no; vLLM has to be told to read a score off that.
_SAYS_YES_OR_NO = re.compile(r"Qwen/Qwen3-Reranker-[0-9.]+B")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a repository.

    Attributes:
        repo: As `owner/name`, valid by the model file's rules. All else is whatever the hub says.
        commit: What its revision is at present; empty where the hub was not asked.
        context: The model's own limit in tokens.
        weight_bytes: Bytes of weights that would be fetched.
        description: A sentence of the catalogue's.
        task: What the catalogue knows it is for.
    """

    repo: str
    commit: str = ""
    pipeline_tag: str = ""
    tags: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    context: int | None = None
    weight_bytes: int | None = None
    quantisation: str = ""
    licence: str = ""
    gated: bool = False
    description: str = ""
    task: Task | None = None


def facts_of(
    repo: str,
    commit: str,
    config: Json,
    *,
    pipeline_tag: str,
    tags: Sequence[str],
    weight_bytes: int | None,
    licence: str,
    gated: bool,
    entry: Entry | None,
) -> Facts:
    """Facts from the hub's answers; the catalogue's fill the gaps.

    Args:
        repo: The repository.
        commit: The commit that was looked at.
        config: Its config.json, or what is known of it.
        pipeline_tag: What the hub says it does.
        tags: The hub's labels.
        weight_bytes: Bytes of weights that would be fetched.
        licence: As the hub calls it.
        gated: Terms have to be accepted.
        entry: What the catalogue says about this repository.
    """
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    named = config.get("architectures")
    return Facts(
        repo=repo,
        commit=commit,
        pipeline_tag=pipeline_tag,
        tags=tuple(tags),
        architectures=tuple(each for each in named if isinstance(each, str)) if isinstance(named, list) else (),
        context=context_of(config) or (entry.context if entry else None),
        weight_bytes=weight_bytes,
        quantisation=method if isinstance(method, str) else "",
        licence=licence or (entry.licence if entry else ""),
        gated=gated,
        description=entry.description if entry else "",
        task=entry.task if entry else None,
    )


def facts_of_entry(entry: Entry) -> Facts:
    """Facts from the catalogue alone."""
    return Facts(
        repo=entry.repo,
        context=entry.context,
        weight_bytes=int(entry.size_gib * 2**30),
        licence=entry.licence,
        gated=entry.gated,
        description=entry.description,
        task=entry.task,
    )


def read_config(content: bytes) -> Json:
    """A config.json, or nothing where it is none."""
    try:
        data: Any = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def context_of(config: Json) -> int | None:
    """The longest context that a config.json names, its part about text included."""
    nested = config.get("text_config")
    parts: list[Json] = [config, nested] if isinstance(nested, dict) else [config]
    for value in (part.get(key) for part in parts for key in _CONTEXT_KEYS):
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_CONTEXT:
            return value
    return None


def task_of(facts: Facts) -> Task:
    """What the model is for: the catalogue's word, else the hub's, else what its architecture is built for."""
    if facts.task is not None:
        return facts.task
    built_for = _built_for(facts.architectures)
    if built_for is Task.REWARD:
        return Task.REWARD
    task = _PIPELINES.get(facts.pipeline_tag)
    if task is None and "sentence-transformers" in facts.tags and built_for is not Task.CLASSIFY:
        task = Task.EMBED
    task = task or built_for or Task.GENERATE
    # Rerankers are classifiers of pairs, and many are labelled as nothing more.
    ranks = "rerank" in facts.repo.casefold() or not _RERANKER_TAGS.isdisjoint(facts.tags)
    return Task.RERANK if task in (Task.CLASSIFY, Task.EMBED) and ranks else task


def _built_for(architectures: Sequence[str]) -> Task | None:
    for architecture in architectures:
        if architecture.startswith("Whisper"):
            return Task.TRANSCRIBE
        for endings, task in _ENDINGS:
            if architecture.endswith(endings):
                return task
    return None


def name_of(repo: str) -> str:
    """A model's name from its repository's: lower case, and valid whatever it was."""
    name = re.sub(r"[^a-z0-9._-]+", "-", repo.rpartition("/")[2].lower())[:_LONGEST_NAME]
    return name.strip("._-") or "model"


def gate(repo: str) -> str:
    """What to do about a gated repository."""
    return f"accept its terms at {_HUB}/{repo}, and give a token that may read it (HF_TOKEN, or `hf auth login`)"


def new_file(facts: Facts, *, name: str, revision: str = DEFAULT_REVISION, refused: bool = False) -> str:
    """The text of a model file.

    Args:
        facts: What is known.
        name: The model's name, valid by the model file's rules.
        revision: What the file asks for, valid too.
        refused: The rules in force do not let the repository be fetched.
    """
    lines = [
        SCHEMA_LINE,
        *(f"# {line}" for line in _head(facts, refused=refused)),
        f"name: {_scalar(name)}",
        *([f"description: {_quoted(facts.description)}"] if facts.description else []),
        "source:",
        f"  repo: {_scalar(facts.repo)}",
        f"  revision: {_scalar(revision)}{_pinning(revision)}",
        f"task: {task_of(facts).value}",
        *_engine(facts),
        *_resources(facts),
        "lifecycle:",
        "  policy: on_demand  # pinned: always up; manual: only by hand",
        "  idle_timeout: 30m",
        "#   priority: 50  # 0 to 100; the higher one is loaded first",
        "# aliases: [another-name]  # further names for the same model",
    ]
    return "\n".join(lines) + "\n"


def _head(facts: Facts, *, refused: bool) -> list[str]:
    # Each line begins with a word of ours, so that none can be taken for an instruction to an editor.
    kinds = [facts.pipeline_tag, *facts.architectures[:_MAX_ARCHITECTURES]]
    words = ", ".join(word for word in map(_words, kinds) if word)
    at = f" at commit {_words(facts.commit)[:8]}" if facts.commit else " from the catalogue; the hub was not asked"
    lines = [
        f"Written by `reconcile add` for {_words(facts.repo)}{at}.",
        f"Kind: {task_of(facts).value}{f' ({words})' if words else ''}",
        f"Size: {_size(facts)}",
        f"Licence: {_words(facts.licence) or 'not known'}",
    ]
    if method := _words(facts.quantisation):
        lines.append(f"Quantisation: {method}")
    if facts.gated:
        page, _, token = gate(_words(facts.repo)).partition(", ")
        lines += [f"Gated: {page},", f"       {token}."]
    if refused:
        lines.append("Refused: the rules in force when this was written do not let it be fetched.")
    lines.append(
        "Every field is explained in docs/model-file.md. Take `# ` away to set one that is commented out."
    )
    return lines


def _pinning(revision: str) -> str:
    if _COMMIT.fullmatch(revision):
        return ""
    return "  # the commit that this is first found to be stays; `track: true` follows a branch"


def _engine(facts: Facts) -> list[str]:
    task = task_of(facts)
    if task is Task.GENERATE and facts.context is None:
        return ["# engine:", f"#   max_model_len: {DEFAULT_CONTEXT}  # the model's own limit is not known"]
    if task is Task.GENERATE:
        chosen = min(facts.context or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        own = (
            "that is the model's own limit"
            if chosen == facts.context
            else f"the model's own limit: {facts.context}"
        )
        return ["engine:", f"  max_model_len: {chosen}  # {own}"]
    if task in (Task.RERANK, Task.SCORE) and _SAYS_YES_OR_NO.fullmatch(facts.repo):
        return [
            "engine:",
            "  args:",
            "    # The model answers yes or no; with this, vLLM reads a score off that. Queries and documents",
            "    # have to be put into the prompt that the model's page describes.",
            "    hf_overrides:",
            "      architectures: [Qwen3ForSequenceClassification]",
            '      classifier_from_token: ["no", "yes"]',
            "      is_original_qwen3_reranker: true",
        ]
    return ["# engine:", "#   gpu_memory_utilization: 0.2  # a share of one GPU, so that others fit beside it"]


def _resources(facts: Facts) -> list[str]:
    size, parallel = facts.weight_bytes or 0, 2
    while size > parallel * _GPU_WEIGHTS and parallel < 8:  # noqa: PLR2004 -- GPUs of one node
        parallel *= 2
    why = f"GPUs to split it over; {_size(facts)}, and its cache comes on top"
    return ["# resources:", f"#   tensor_parallel: {parallel}  # {why}"]


def _size(facts: Facts) -> str:
    return f"{in_words(facts.weight_bytes)} of weights" if facts.weight_bytes else "weights of unknown size"


def _scalar(text: str) -> str:
    """Text as a YAML scalar: as it is where it can only be text, else in quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT:
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    # JSON's strings are YAML's double-quoted ones, as long as no surrogate is escaped.
    return json.dumps(one_line(text), ensure_ascii=False)


def one_line(text: str, longest: int = _LONGEST_TEXT) -> str:
    """Printable characters on one line: no line ends of any kind, no controls, nothing invisible."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _words(text: str) -> str:
    """An identifier for a comment, of nothing but letters, digits and a few marks."""
    return _NO_WORD.sub(" ", text).strip()[:_LONGEST_WORDS]
