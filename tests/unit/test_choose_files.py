"""Which files of a repository are fetched, and which repositories are not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.choose_files import (
    Listing,
    RepoFile,
    Rules,
    WeightsRefusedError,
    choose_files,
    indexes_to_read,
)
from reconciler.core.vllm_architectures import ARCHITECTURES
from reconciler.core.weights import Role

CONFIG = {"config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()}
NOTHING = Rules()
BOTH = Rules(allow_pickle=("o/*",), allow_code=("o/m",))


def listing(*paths: str) -> Listing:
    return Listing(
        "o/m", "c" * 40, tuple(RepoFile(path, 10, f"{number:064x}") for number, path in enumerate(paths))
    )


def chosen(
    *paths: str, contents: dict[str, bytes] | None = None, role: Role = Role.MODEL, rules: Rules = NOTHING
) -> set[str]:
    files = choose_files(listing(*paths), role, {**CONFIG, **(contents or {})}, rules)
    return {file.path for file in files}


def index(*names: object) -> bytes:
    return json.dumps({"weight_map": {f"w{number}": name for number, name in enumerate(names)}}).encode()


@pytest.mark.parametrize(
    ("there", "contents", "wanted"),
    [
        pytest.param(
            ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/m.onnx", "README.md"],
            {},
            {"config.json", "model.safetensors"},
            id="one file, and other formats of the same",
        ),
        pytest.param(
            ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors", "c.safetensors"],
            {"model.safetensors.index.json": index("a.safetensors", "b.safetensors", "a.safetensors")},
            {"config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"},
            id="by the index, without what it does not name",
        ),
        pytest.param(
            ["config.json", "model.safetensors", "model.fp32-00001-of-00002.safetensors"],
            {},
            {"config.json", "model.safetensors"},
            id="not another precision of the same",
        ),
        pytest.param(
            ["config.json", "model.safetensors", "consolidated.safetensors", "params.json", "tekken.json"],
            {},
            {"config.json", "model.safetensors", "params.json", "tekken.json"},
            id="not Mistral's second copy",
        ),
        pytest.param(
            ["params.json", "consolidated.safetensors", "tekken.json"],
            {},
            {"params.json", "consolidated.safetensors", "tekken.json"},
            id="Mistral's format where it is the only one",
        ),
        pytest.param(
            ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "2_D/model.safetensors",
             "openvino/openvino_model.xml", "original/params.json"],
            {},
            {"config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "2_D/model.safetensors"},
            id="the modules of sentence-transformers",
        ),
        pytest.param(
            ["config.json", "model.safetensors", "tokenizer.model", "vocab.txt", "merges.txt",
             "chat_template.jinja", "LICENSE.txt", "modeling_x.py", "training_args.bin"],
            {},
            {"config.json", "model.safetensors", "tokenizer.model", "vocab.txt", "merges.txt",
             "chat_template.jinja"},
            id="tokenizer and chat template, no code",
        ),
    ],
)  # fmt: skip
def test_what_vllm_reads_is_fetched(there: list[str], contents: dict[str, bytes], wanted: set[str]) -> None:
    assert chosen(*there, contents=contents) == wanted


def test_only_pickles_are_refused_with_the_setting_that_allows_them() -> None:
    paths = ("config.json", "pytorch_model.bin", "training_args.bin", "optimizer.pt")
    with pytest.raises(WeightsRefusedError, match=r"RECONCILE_ALLOW_PICKLE='\[\"o/m\"\]'"):
        chosen(*paths)
    assert chosen(*paths, rules=BOTH) == {"config.json", "pytorch_model.bin"}


def test_code_of_its_own_is_refused_with_the_setting_that_allows_it() -> None:
    own = {"config.json": json.dumps({"architectures": ["OwnModel"], "auto_map": {"AutoModel": "m.Own"}}).encode()}
    with pytest.raises(WeightsRefusedError, match="RECONCILE_ALLOW_CODE"):
        chosen("config.json", "model.safetensors", "m.py", contents=own)
    allowed = chosen("config.json", "model.safetensors", "m.py", "sub/n.py", contents=own, rules=BOTH)
    assert allowed == {"config.json", "model.safetensors", "m.py", "sub/n.py"}


def test_code_that_nobody_needs_any_more_is_left_out() -> None:
    """VLLM knows the architecture, so the repository's own code is not run, and not fetched."""
    known = {
        "config.json": json.dumps(
            {"architectures": ["Phi3ForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3"}}
        ).encode()
    }
    assert chosen("config.json", "model.safetensors", "modeling_phi3.py", contents=known) == {
        "config.json",
        "model.safetensors",
    }


def test_a_tokenizer_that_is_code_is_refused() -> None:
    own = {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["t.Own", null]}}'}
    with pytest.raises(WeightsRefusedError, match="for its tokenizer"):
        chosen("config.json", "model.safetensors", "tokenizer_config.json", contents=own)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up.safetensors", "a/../../b", "a//b", "./a", "a\\b", "a\0b", ""]
)
def test_an_index_that_leads_out_of_the_repository_is_refused(name: str) -> None:
    with pytest.raises(WeightsRefusedError, match="leads out of the repository"):
        chosen("config.json", "a.safetensors", contents={"model.safetensors.index.json": index(name)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (index("b.safetensors"), "which the repository does not have"),
        (index("m.bin"), "no file of weights"),
        (index("own.py"), "no file of weights"),
        (index(7), "no index"),
        (index(), "names no file"),
        (b"{", "no index"),
        (b'{"weight_map": 3}', "no index"),
        (b"[" * 5000, "no index"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(WeightsRefusedError, match=said):
        chosen(
            "config.json", "a.safetensors", "m.bin", "own.py", contents={"model.safetensors.index.json": content}
        )


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["model.safetensors"], "has no config.json"),
        (["config.json", "model.gguf"], r"has no safetensors.*it has \.gguf"),
        (["config.json", "../x.json", "model.safetensors"], "leads out"),
    ],
)
def test_a_repository_that_is_no_model_is_refused(paths: list[str], said: str) -> None:
    with pytest.raises(WeightsRefusedError, match=said):
        chosen(*paths)


def test_an_adapter_is_its_two_files() -> None:
    paths = (
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "tokenizer.json",
        "README.md",
    )
    assert chosen(*paths, role=Role.ADAPTER) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    }
    with pytest.raises(WeightsRefusedError, match="is no LoRA adapter"):
        chosen("config.json", "model.safetensors", role=Role.ADAPTER)


def test_a_tokenizer_brings_no_weights() -> None:
    paths = ("config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json")
    assert chosen(*paths, role=Role.TOKENIZER) == {"config.json", "tokenizer.json"}


@given(st.lists(st.text(min_size=1, max_size=30), max_size=10), st.binary(max_size=60), st.sampled_from(Role))
def test_whatever_is_listed_only_listed_files_inside_the_repository_are_chosen(
    paths: list[str], content: bytes, role: Role
) -> None:
    """And no code and no pickle among them."""
    given_ = listing(*paths, "config.json", "model.safetensors")
    contents = dict.fromkeys(indexes_to_read(given_, role), content)
    try:
        files = choose_files(given_, role, contents, Rules())
    except WeightsRefusedError:
        return
    assert set(files) <= set(given_.files)
    for file in files:
        assert not file.path.startswith("/")
        assert ".." not in file.path.split("/")
        assert not file.path.endswith((".py", ".bin", ".pt", ".pkl"))


def test_the_known_architectures_are_those_of_the_engine_that_is_installed() -> None:
    registry = pytest.importorskip("vllm.model_executor.models.registry", reason="no engine is installed here")
    assert set(registry.ModelRegistry.get_supported_archs()) == ARCHITECTURES
