"""`reconcile fit`: bare facts, and model files whose weights are here."""

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.cli.fit import fit
from reconciler.cli.fit_options import FitOptions
from reconciler.core.fit.dtypes import BITS
from reconciler.host.settings import Settings

from . import configs
from .test_tensors import SMALL, tensors

FIELDS = (
    "weights_gib", "kv_bytes_per_token", "activation_gib", "cuda_graph_gib", "non_torch_gib", "available_kv_gib",
    "kv_tokens", "fits", "reason",
)  # fmt: skip


def settings(path: Path) -> Settings:
    return Settings(models_dir=path / "models.d", state_dir=path / "state", hub_cache=path / "hub")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def options(tmp_path: Path) -> FitOptions:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(configs.LLAMA_70B))
    return FitOptions(model_config=path, gpu="h100-80g", tensor_parallel=4, max_model_len=32768)


def asked(
    capsys: pytest.CaptureFixture[str], path: Path, options: FitOptions, name: str | None = None
) -> tuple[int, dict[str, Any]]:
    code = fit(settings(path), name, options=options, output="json")
    return code, json.loads(capsys.readouterr().out)


def test_bare_facts(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: FitOptions) -> None:
    code, found = asked(capsys, tmp_path, options)
    assert code == 0
    assert all(field in found for field in FIELDS)
    assert found["safe"]["weights_gib"] > found["weights_gib"]
    assert found["weights_gib"] == pytest.approx(70.55 * 2 / 1.0737 / 4, rel=0.01)
    assert found["kv_bytes_per_token"] == 80 * 2 * 256 * 2
    assert found["fits"] is True


def test_what_does_not_fit_exits_3_with_the_reason_and_advice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: FitOptions
) -> None:
    code, found = asked(capsys, tmp_path, replace(options, tensor_parallel=1, gpus=8))
    assert code == 3
    assert found["fits"] is False
    assert "leave nothing" in found["reason"]
    assert {each["change"] for each in found["advice"]} >= {"tensor_parallel 4"}
    rules = {size["size"]: size["rule"] for size in found["tensor_parallel"]}
    assert "not divisible" in rules[3]


@pytest.mark.parametrize("given", ["weights", "parameters"])
def test_a_known_total_is_taken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: FitOptions, given: str
) -> None:
    total = replace(options, weights_gib=100.0) if given == "weights" else replace(options, parameters=100 * 2**29)
    _, found = asked(capsys, tmp_path, total)
    assert found["weights_gib"] == pytest.approx(25, rel=0.01)


def test_a_quantisation_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: FitOptions) -> None:
    _, plain = asked(capsys, tmp_path, options)
    _, awq = asked(capsys, tmp_path, replace(options, quantization="awq"))
    assert 0.25 < awq["weights_gib"] / plain["weights_gib"] < 0.35


def test_without_a_size_the_smallest_that_suffices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: FitOptions
) -> None:
    _, found = asked(capsys, tmp_path, replace(options, tensor_parallel=None, gpus=8))
    assert found["engine"]["tensor_parallel"] == 4


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: FitOptions) -> None:
    assert fit(settings(tmp_path), None, options=replace(options, tensor_parallel=1, gpus=8), output="text") == 3
    text = capsys.readouterr().out
    for part in (
        "EXPECTED",
        "SAFE",
        "weights",
        "KV cache",
        "Valid tensor-parallel sizes",
        "Does not fit",
        "would",
    ):
        assert part in text
    assert fit(settings(tmp_path), None, options=options, output="text") == 0
    assert "Fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_config": None}, "give the name"),
        ({"gpu": None}, "say on what"),
        ({"gpu": "h1000"}, "no GPU"),
        ({"weights_gib": 1.0, "parameters": 1}, "exclude"),
        ({"weights_gib": -1.0}, "makes no sense"),
        ({"gpu_memory_utilization": 1.5}, "share"),
        ({"kv_cache_dtype": "fp3"}, "--kv-cache-dtype"),
        ({"quantization": "new"}, "not known"),
        ({"dtype": "int3"}, "int3"),
        ({"model_config": Path("nowhere.json")}, "nowhere.json"),
    ],
)
def test_a_question_that_makes_no_sense_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: FitOptions, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        fit(settings(tmp_path), None, options=replace(options, **change), output="json")
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def safetensors(path: Path) -> None:
    """A file with a true header, and a hole for its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors():
        start, end = end, end + tensor.count * BITS[tensor.dtype] // 8
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)


def model_file(path: Path, source: str) -> None:
    (path / "models.d").mkdir()
    (path / "models.d" / "small.yaml").write_text(
        f"name: small\nsource: {source}\nengine: {{max_model_len: 128}}\nresources: {{tensor_parallel: 2}}\n"
    )


@pytest.mark.parametrize("where", ["folder", "cache"])
def test_a_model_file_whose_weights_are_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, where: str
) -> None:
    if where == "folder":
        folder, source = tmp_path / "weights", "{path: ../weights}"
    else:
        repo, commit = tmp_path / "hub" / "models--o--small", "c" * 40
        folder, source = repo / "snapshots" / commit, "{repo: o/small}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**SMALL, "max_position_embeddings": 128}))
    safetensors(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    model_file(tmp_path, source)
    code, found = asked(capsys, tmp_path, FitOptions(gpu="l4"), "small")
    assert code == 0
    assert found["engine"]["max_model_len"] == 128
    assert found["engine"]["tensor_parallel"] == 2


@pytest.mark.parametrize(
    ("content", "index", "said"),
    [
        (b"", None, "no safetensors file"),
        (struct.pack("<Q", 2**60), None, "no safetensors file"),
        (struct.pack("<Q", 2) + b"[]", None, "no safetensors file"),
        (b"", {"weight_map": {"x": "../../etc/passwd"}}, "leads out"),
        (b"", {"weight_map": 3}, "no index"),
    ],
)
def test_weights_that_are_none_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, index: Any, said: str
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    (folder / "a.safetensors").write_bytes(content)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model_file(tmp_path, "{path: ../weights}")
    with pytest.raises(SystemExit):
        fit(settings(tmp_path), "small", options=FitOptions(gpu="l4"), output="json")
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["small", "other"])
def test_weights_that_are_not_here(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    model_file(tmp_path, "{repo: o/small}")
    with pytest.raises(SystemExit):
        fit(settings(tmp_path), name, options=FitOptions(gpu="l4"), output="json")
    error = capsys.readouterr().err
    assert ("does not answer" if name == "small" else "no valid model file declares 'other'") in error


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, reconciler.cli.fit; "
        "print([m for m in ('torch', 'vllm', 'ray', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
