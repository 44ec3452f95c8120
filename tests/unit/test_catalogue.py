"""The catalogue: every entry makes a valid file, and words find what they mean."""

import pytest

from reconciler.core.catalogue import CATALOGUE, Entry, find, matches, near, search
from reconciler.core.new_file import facts_of_entry, new_file
from reconciler.core.parse import ParsedFile, parse_model
from reconciler.core.spec import Task


def names(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.name for entry in entries]


def test_there_is_something_for_every_purpose_and_nothing_twice() -> None:
    assert len(CATALOGUE) >= 40
    for field in ("name", "repo", "description"):
        values = [getattr(entry, field).casefold() for entry in CATALOGUE]
        assert len(set(values)) == len(values), field
    assert {entry.task for entry in CATALOGUE} == {Task.GENERATE, Task.EMBED, Task.RERANK, Task.TRANSCRIBE}


@pytest.mark.parametrize("entry", CATALOGUE, ids=names(CATALOGUE))
def test_every_entry_makes_a_file_that_says_what_it_is(entry: Entry) -> None:
    text = new_file(facts_of_entry(entry), name=entry.name)
    found = parse_model(f"models.d/{entry.name}.yaml", text.encode())
    assert isinstance(found, ParsedFile), found
    assert (found.spec.name, found.spec.source.repo, found.spec.task) == (entry.name, entry.repo, entry.task)
    assert found.spec.description == entry.description
    assert f"Licence: {entry.licence}" in text
    assert ("Gated:" in text) == entry.gated


@pytest.mark.parametrize("entry", CATALOGUE, ids=names(CATALOGUE))
def test_every_entrys_size_fits_its_parameters(entry: Entry) -> None:
    bytes_each = entry.size_gib * 2**30 / (entry.parameters * 1e9)
    fewer = {"fp8", "awq", "mxfp4"} & set(entry.tags)
    # Two bytes, four where it is published in float32; the smallest of Qwen3 is published with its output twice.
    assert 0.5 < bytes_each < 1.4 if fewer else 1.75 < bytes_each < 4.2, entry


@pytest.mark.parametrize(
    ("query", "some"),
    [
        ("whisper", "whisper-large-v3-turbo"),
        ("QWEN3 Rerank", "qwen3-reranker-0.6b"),
        ("baai/bge", "bge-m3"),
        ("embed multilingual", "multilingual-e5-small"),
        ("awq", "qwen3-8b-awq"),
        ("sees images", "gemma-3-4b-it"),
    ],
)
def test_words_are_looked_for_everywhere(query: str, some: str) -> None:
    assert some in names(matches(query))
    assert search(query) == matches(query)


def test_every_word_has_to_match() -> None:
    assert set(names(matches("vision google"))) < set(names(matches("vision")))


def test_no_words_match_everything() -> None:
    assert matches("  ") == CATALOGUE


@pytest.mark.parametrize(
    ("query", "first"),
    [("qwne3-8b", "qwen3-8b"), ("llamma", "llama-3.1-8b-instruct"), ("Qwen/Qwen3-0.6", "qwen3-0.6b")],
)
def test_a_near_name_is_found_where_nothing_matches(query: str, first: str) -> None:
    assert names(near(query))[0] == first
    assert search(query)[0].name == first


def test_what_looks_like_nothing_finds_nothing() -> None:
    assert search("zzzzzzzz") == ()


def test_an_entry_is_found_by_its_name_and_its_repository() -> None:
    entry = find("qwen3-0.6b")
    assert entry is not None
    assert entry is find("qwen/QWEN3-0.6B")
    assert find("qwen3") is None
