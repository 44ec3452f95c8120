"""A new model file: what the hub says ends up in it, and nothing that the hub says can break out of its place."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.new_file import (
    DEFAULT_CONTEXT,
    SCHEMA_LINE,
    Facts,
    context_of,
    facts_of,
    name_of,
    new_file,
    read_config,
    task_of,
)
from reconciler.core.parse import ParsedFile, parse_model
from reconciler.core.spec import NAME_PATTERN, ModelSpec, Task

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FACTS = Facts(
    repo="org/Some-Model",
    commit=COMMIT,
    pipeline_tag="text-generation",
    architectures=("LlamaForCausalLM",),
    context=131072,
    weight_bytes=16 * 2**30,
    licence="apache-2.0",
)


def spec_of(text: str) -> ModelSpec:
    found = parse_model("models.d/x.yaml", text.encode())
    assert isinstance(found, ParsedFile), (text, found)
    return found.spec


def test_a_file_says_what_is_known() -> None:
    text = new_file(FACTS, name="some-model")
    assert text.splitlines()[0] == SCHEMA_LINE
    for words in ("commit 01234567", "generate (text-generation, LlamaForCausalLM)", "16.0 GiB", "apache-2.0"):
        assert words in text
    spec = spec_of(text)
    assert (spec.name, spec.source.repo, spec.source.revision) == ("some-model", "org/Some-Model", "main")
    assert (spec.task, spec.engine.max_model_len) == (Task.GENERATE, DEFAULT_CONTEXT)
    assert spec.lifecycle.idle_timeout == "30m"
    assert "own limit: 131072" in text
    assert all(len(line) <= 115 for line in text.splitlines())


def test_what_is_commented_out_works_when_the_mark_is_taken_away() -> None:
    for facts in (FACTS, replace(FACTS, context=None), replace(FACTS, task=Task.EMBED)):
        text = new_file(facts, name="some-model")
        examples = re.sub(r"(?m)^# (?=(?:  )?[a-z_]+:(?: |$))", "", text)
        spec = spec_of(examples)
        assert spec.resources.tensor_parallel == 2
        assert spec.aliases == ("another-name",)
        assert spec.lifecycle.priority == 50
        assert spec.engine != spec_of(text).engine or facts is FACTS


def test_a_short_context_is_kept_and_an_unknown_one_is_left_to_the_engine() -> None:
    assert spec_of(new_file(replace(FACTS, context=2048), name="m")).engine.max_model_len == 2048
    assert spec_of(new_file(replace(FACTS, context=None), name="m")).engine.max_model_len == "auto"
    assert spec_of(new_file(replace(FACTS, task=Task.EMBED), name="m")).engine.max_model_len == "auto"


@pytest.mark.parametrize(("gib", "parallel"), [(16, 2), (131, 4), (400, 8), (2000, 8)])
def test_the_example_splits_large_models_over_more_gpus(gib: int, parallel: int) -> None:
    assert f"tensor_parallel: {parallel} " in new_file(replace(FACTS, weight_bytes=gib * 2**30), name="m")


def test_a_gated_repository_a_refused_one_and_a_quantised_one_are_called_so() -> None:
    text = new_file(replace(FACTS, gated=True, quantisation="awq"), name="m", refused=True)
    assert "https://huggingface.co/org/Some-Model" in text
    assert "# Refused:" in text
    assert "# Quantisation: awq" in text
    for word in ("Gated", "Refused", "Quantisation"):
        assert word not in new_file(FACTS, name="m")


def test_a_commit_as_the_revision_is_not_called_a_branch() -> None:
    text = new_file(FACTS, name="m", revision=COMMIT)
    assert spec_of(text).source.revision == COMMIT
    assert "follows a branch" not in text
    assert "follows a branch" in new_file(FACTS, name="m")


def test_a_reranker_that_was_published_as_a_chat_model_is_told_to_score() -> None:
    facts = replace(FACTS, repo="Qwen/Qwen3-Reranker-4B", pipeline_tag="text-ranking")
    overrides = spec_of(new_file(facts, name="m")).engine.args["hf_overrides"]
    assert overrides == {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }


@pytest.mark.parametrize(
    ("known", "task"),
    [
        ({"pipeline_tag": "text-generation"}, Task.GENERATE),
        ({"pipeline_tag": "image-text-to-text"}, Task.GENERATE),
        ({"pipeline_tag": "feature-extraction", "architectures": ("Qwen3ForCausalLM",)}, Task.EMBED),
        ({"pipeline_tag": "sentence-similarity"}, Task.EMBED),
        ({"pipeline_tag": "text-ranking"}, Task.RERANK),
        ({"pipeline_tag": "text-classification"}, Task.CLASSIFY),
        ({"pipeline_tag": "text-classification", "repo": "a/bge-Reranker-x"}, Task.RERANK),
        ({"pipeline_tag": "text-classification", "tags": ("cross-encoder",)}, Task.RERANK),
        ({"pipeline_tag": "automatic-speech-recognition"}, Task.TRANSCRIBE),
        ({"pipeline_tag": "text-classification", "architectures": ("Qwen2ForRewardModel",)}, Task.REWARD),
        ({"architectures": ("BertForSequenceClassification",)}, Task.CLASSIFY),
        ({"architectures": ("BertForSequenceClassification",), "tags": ("sentence-transformers",)}, Task.CLASSIFY),
        ({"architectures": ("XLMRobertaModel",)}, Task.EMBED),
        ({"architectures": ("WhisperForConditionalGeneration",)}, Task.TRANSCRIBE),
        ({"architectures": ("Gemma3ForConditionalGeneration",)}, Task.GENERATE),
        ({"architectures": ("MistralForCausalLM",), "tags": ("sentence-transformers",)}, Task.EMBED),
        ({"tags": ("sentence-transformers",)}, Task.EMBED),
        ({"pipeline_tag": "text-generation", "task": Task.SCORE}, Task.SCORE),
        ({"pipeline_tag": "who-knows", "architectures": ("Odd",)}, Task.GENERATE),
        ({}, Task.GENERATE),
    ],
)
def test_the_task_is_told_by_what_is_known(known: dict[str, Any], task: Task) -> None:
    assert task_of(Facts(**{"repo": "a/b", **known})) is task


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"model_max_length": 512}, 512),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": 128000, "text_config": {"max_position_embeddings": 1}}, 128000),
        ({"max_position_embeddings": True, "text_config": []}, None),
        ({"max_position_embeddings": "4096"}, None),
        ({"max_position_embeddings": -1, "n_positions": 10**20, "seq_length": 7}, 7),
        ({}, None),
    ],
)
def test_the_context_is_read_wherever_it_is_written(config: dict[str, Any], context: int | None) -> None:
    assert context_of(config) == context


def test_a_config_that_is_none_says_nothing() -> None:
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        assert read_config(content) == {}


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("a/-_x_-", "x"),
        ("a/Über Modell!", "ber-modell"),
        ("a/___", "model"),
        ("a/" + "x" * 95 + "-y", "x" * 95),
    ],
)
def test_the_name_is_the_repositorys(repo: str, name: str) -> None:
    assert name_of(repo) == name


hostile = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "x\nname: taken",
            "x\r\ntask: embed",
            "x\u2028engine: {args: {seed: 1}}",
            "x\x85aliases: [a]",
            '"\nsource: {repo: evil/evil}',
            "' # ' \"",
            "%YAML 1.1\n---\n",
            "...\n---\nname: b",
            "# comment",
            "!!python/object/apply:os.system [ls]",
            "&a *a <<: {}",
            "\ud800",
            "\ufeff\u202e\x00",
            "yaml-language-server: $schema=http://127.0.0.1/x",
            "\\",
            "no",
            "1e3",
        ]
    ),
)
words = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,18}[A-Za-z0-9])?", fullmatch=True).filter(
    lambda word: "--" not in word and ".." not in word and not word.endswith((".git", ".lock"))
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_that_the_hub_says_changes_more_than_its_own_place(data: st.DataObject) -> None:
    many = st.lists(hostile, max_size=3).map(tuple)
    repo = f"{data.draw(words)}/{data.draw(words)}"
    facts = Facts(
        repo=repo,
        commit=data.draw(hostile),
        pipeline_tag=data.draw(hostile),
        tags=data.draw(many),
        architectures=data.draw(many),
        context=data.draw(st.none() | st.integers(1, 100_000_000)),
        weight_bytes=data.draw(st.none() | st.integers(0, 2**50)),
        quantisation=data.draw(hostile),
        licence=data.draw(hostile),
        gated=data.draw(st.booleans()),
        description=data.draw(hostile),
        task=data.draw(st.none() | st.sampled_from(Task)),
    )
    name = data.draw(
        st.from_regex(NAME_PATTERN.replace("$", r"\Z"), fullmatch=True).filter(lambda n: len(n) <= 96)
    )
    revision = data.draw(words)
    text = new_file(facts, name=name, revision=revision, refused=data.draw(st.booleans()))
    spec = spec_of(text)
    assert (spec.name, spec.source.repo, spec.source.revision) == (name, repo, revision)
    assert spec.task is task_of(facts)
    assert spec.aliases == ()
    assert set(spec.engine.args) <= {"hf_overrides"}
    # Another reader, of an older YAML, sees the same.
    loaded = yaml.safe_load(text)
    assert set(loaded) <= {"name", "description", "source", "task", "engine", "lifecycle"}
    assert (loaded["name"], loaded["source"]) == (name, {"repo": repo, "revision": revision})
    assert len(re.findall(r"(?m)^\s*#\s*yaml-language-server", text)) == 1


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_repository_gives_a_valid_name(repo: str) -> None:
    assert re.fullmatch(NAME_PATTERN, name_of(repo))
    assert len(name_of(repo)) <= 96


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3),
    max_leaves=5,
)
KEYS = ["architectures", "quantization_config", "text_config", "max_position_embeddings", "n_positions"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_no_config_breaks_anything(config: dict[str, Any]) -> None:
    read = read_config(json.dumps(config).encode())
    facts = facts_of(
        "a/b", COMMIT, read, pipeline_tag="", tags=(), weight_bytes=1, licence="", gated=False, entry=None
    )
    spec_of(new_file(facts, name="m"))
