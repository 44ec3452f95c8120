"""The pinned files hold what pyproject.toml asks for, and agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)==(\S+)")


def pins(name: str) -> dict[str, str]:
    lines = (REPO / "requirements" / f"{name}.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = PIN.fullmatch(line)
        assert match, f"requirements/{name}.txt: not a plain pin: {line}"
        found[match[1]] = match[2]
    return found


def names(requirements: list[str]) -> set[str]:
    bare = (re.split(r"[\[<>=~! ;]", requirement, maxsplit=1)[0] for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in bare}


def project() -> dict[str, object]:
    loaded = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("file", ["cpu", "gpu", "dev"])
def test_control_plane_is_pinned(file: str) -> None:
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert names(dependencies) <= set(pins(file))


@pytest.mark.parametrize("extra", ["cpu", "gpu", "dev"])
def test_extra_is_pinned(extra: str) -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert names(extras[extra]) <= set(pins(extra))


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_tools_do_not_change_what_the_engine_needs(engine: str) -> None:
    installed, tools = pins(engine), pins("dev")
    assert {name: installed[name] for name in installed.keys() & tools.keys()} == {
        name: tools[name] for name in installed.keys() & tools.keys()
    }


def test_cpu_leaves_out_what_breaks_it() -> None:
    cpu = pins("cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & set(cpu)
    assert not [name for name in cpu if name.startswith("nvidia-") and name != "nvidia-ml-py"]
    assert cpu["torch"] == pins("gpu")["torch"]


def test_pinned_starlette_is_past_the_host_header_hole() -> None:
    for file in ("cpu", "gpu", "dev"):
        assert tuple(map(int, pins(file)["starlette"].split("."))) >= (1, 0, 1)
