"""`reconcile add` and `reconcile catalogue`, against a hub on loopback and without one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, MoveBranch, Status

from reconciler.cli.add import add, catalogue
from reconciler.cli.common import ERROR, OK, PARTIAL
from reconciler.core.catalogue import CATALOGUE
from reconciler.core.parse import ParsedFile, parse_model
from reconciler.core.spec import ModelSpec, Task
from reconciler.host.settings import Settings
from reconciler.weights.hub import Hub as Client

from .repository import CONFIG, model_files

REPO = "org/Tiny-Model"
NOWHERE = "http://127.0.0.1:9"
Add = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models.d"


@pytest.fixture
def run(hub: Hub, folder: Path) -> Add:
    """`add` with the options that a command line would leave at their defaults."""

    def run(repo: str = REPO, *, url: str = hub.url, allow_pickle: tuple[str, ...] = (), **options: Any) -> int:
        defaults = {"revision": None, "name": None, "stdout": False, "force": False, "output": "text"}
        settings = Settings(models_dir=folder, state_dir=folder.parent / "state", allow_pickle=allow_pickle)
        return add(settings, repo, hub=Client(url, timeout=5), **{**defaults, **options})

    hub.repo(REPO, model_files(), pipeline_tag="text-generation", tags=["license:mit"])
    return run


def spec_in(path: Path) -> ModelSpec:
    found = parse_model(f"models.d/{path.name}", path.read_bytes())
    assert isinstance(found, ParsedFile), found
    return found.spec


def failed(capsys: pytest.CaptureFixture[str], call: Callable[[], int], code: int = ERROR) -> str:
    """What a call that ends with this code says."""
    try:
        got = call()
    except SystemExit as end:
        got = int(end.code or 0)
    said = capsys.readouterr()
    assert (got, said.out) == (code, "")
    return said.err


def test_a_file_is_written_from_what_the_hub_says(
    hub: Hub, run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.repo(REPO, model_files(seed=3))
    assert run() == OK
    path = folder / "tiny-model.yaml"
    spec = spec_in(path)
    assert (spec.source.repo, spec.source.revision, spec.task) == (REPO, "main", Task.GENERATE)
    assert spec.engine.max_model_len == CONFIG["max_position_embeddings"]
    assert path.stat().st_mode & 0o777 == 0o644
    text = path.read_text()
    for words in (commit[:8], "Licence: mit", "LlamaForCausalLM", "2.3 MiB of weights"):
        assert words in text
    said = capsys.readouterr().out
    assert str(path) in said
    assert "reconcile --dry-run" in said
    assert not any(row.file and row.file.endswith(".safetensors") for row in hub.requests)


def test_a_revision_and_a_name_are_taken_over(hub: Hub, run: Add, folder: Path) -> None:
    commit = hub.repo(REPO, model_files(seed=1), revision="next")
    assert run(revision="next", name="team/tiny") == OK
    spec = spec_in(folder / "team--tiny.yaml")
    assert (spec.name, spec.source.revision) == ("team/tiny", "next")
    assert commit[:8] in (folder / "team--tiny.yaml").read_text()


def test_stdout_prints_the_file_and_writes_none(
    run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stdout=True) == OK
    found = parse_model("x.yaml", capsys.readouterr().out.encode())
    assert isinstance(found, ParsedFile)
    assert not folder.exists()


def test_json_has_the_path_the_text_and_the_facts(
    run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(output="json") == OK
    said = json.loads(capsys.readouterr().out)
    path = folder / "tiny-model.yaml"
    assert (said["path"], said["text"], said["notes"]) == (str(path), path.read_text(), [])
    assert (said["facts"]["repo"], said["facts"]["task"], said["facts"]["context"]) == (REPO, "generate", 2048)
    assert run(output="json", stdout=True) == OK
    assert json.loads(capsys.readouterr().out)["path"] is None


def test_a_file_that_is_there_is_replaced_only_by_force(
    run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    path = folder / "tiny-model.yaml"
    path.write_text("mine")
    assert "--force" in failed(capsys, run)
    assert path.read_text() == "mine"
    assert run(force=True) == OK
    assert spec_in(path).source.repo == REPO


@pytest.mark.parametrize(
    "other", ["name: Tiny-Model\nsource: {repo: a/b}\n", "aliases: [tiny-model]\nsource: {repo: a/b}\n"]
)
def test_a_name_that_another_file_has_is_refused_even_by_force(
    run: Add, folder: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "other.yaml").write_text(other)
    assert "models.d/other.yaml:1" in failed(capsys, lambda: run(force=True))
    assert [path.name for path in folder.iterdir()] == ["other.yaml"]
    assert run(name="another") == OK


def test_broken_files_of_others_are_no_hindrance(run: Add, folder: Path) -> None:
    folder.mkdir()
    (folder / "broken.yaml").write_text("a: [")
    assert run() == OK


@pytest.mark.parametrize(
    ("repo", "options", "words"),
    [
        ("qwen3-0.6", {}, "did you mean qwen3-0.6b"),
        ("a/b/c", {}, "neither owner/name"),
        (REPO, {"name": "../x"}, "is no name"),
        (REPO, {"name": "x" * 300}, "is no name"),
        (REPO, {"revision": "-x"}, "no branch, tag or commit"),
        (REPO, {"revision": "gone"}, "no revision 'gone'"),
        ("org/absent", {}, "not on the hub, or is private"),
    ],
)
def test_what_cannot_be_is_said(
    run: Add, repo: str, options: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in failed(capsys, lambda: run(repo, **options))


def test_a_pickle_is_refused_unless_it_is_forced_or_allowed(
    hub: Hub, run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickle = {"config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": b"x" * 5000}
    hub.repo("org/pickle", pickle)
    said = failed(capsys, lambda: run("org/pickle"), PARTIAL)
    assert "RECONCILE_ALLOW_PICKLE" in said
    assert "--force" in said
    assert not folder.exists()
    assert run("org/pickle", force=True) == OK
    assert "RECONCILE_ALLOW_PICKLE" in capsys.readouterr().out
    assert "# Refused:" in (folder / "pickle.yaml").read_text()
    assert run("org/pickle", name="allowed", allow_pickle=("org/*",)) == OK
    assert "KiB of weights" in (folder / "allowed.yaml").read_text()


def test_code_is_refused(hub: Hub, run: Add, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    hub.repo("org/own", {**model_files(), "config.json": json.dumps(config).encode()})
    assert "RECONCILE_ALLOW_CODE" in failed(capsys, lambda: run("org/own"), PARTIAL)


def test_a_gated_repository_is_described_as_far_as_it_can_be(
    hub: Hub, run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    hub.repo("org/gated", model_files(), gated="manual", tokens=["hf_right12345"], config=config)
    assert run("org/gated") == OK
    said = capsys.readouterr().out
    assert "accept its terms at" in said
    assert "HF_TOKEN" in said
    text = (folder / "gated.yaml").read_text()
    assert "# Gated:" in text
    assert "LlamaForCausalLM" in text
    assert spec_in(folder / "gated.yaml").engine.max_model_len == "auto"


def test_hostile_metadata_stays_in_its_place(
    hub: Hub, run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**CONFIG, "architectures": ["x\nname: evil"], "quantization_config": {"quant_method": "q\n---"}}
    hub.repo(
        "org/evil",
        {**model_files(), "config.json": json.dumps(config).encode()},
        pipeline_tag="text-generation\nsource: {repo: evil/evil}",
        tags=["license:\x1b]0;x\naliases: [other]"],
    )
    assert run("org/evil") == OK
    spec = spec_in(folder / "evil.yaml")
    assert (spec.name, spec.source.repo, spec.aliases) == ("evil", "org/evil", ())
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert len(said.splitlines()) == 2


def test_a_branch_that_moves_meanwhile_is_read_at_one_commit(hub: Hub, run: Add, folder: Path) -> None:
    first = hub.repo(REPO, model_files(seed=5))
    later = {**model_files(seed=6), "config.json": b'{"max_position_embeddings": 7}'}
    # The second look at the hub is for the list of files, the third for config.json.
    hub.fault(MoveBranch(later), path=f"/api/models/{REPO}/revision/{first}")
    assert run() == OK
    assert hub.pending == 0
    assert spec_in(folder / "tiny-model.yaml").engine.max_model_len == CONFIG["max_position_embeddings"]


def test_a_repository_that_was_renamed_is_written_with_its_new_name(
    hub: Hub, run: Add, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repo("org/New-Name", model_files())
    # The real hub redirects from the old name.
    asked = Client.info
    monkeypatch.setattr(Client, "info", lambda client, _, revision: asked(client, "org/New-Name", revision))
    assert run() == OK
    assert spec_in(folder / "tiny-model.yaml").source.repo == "org/New-Name"
    assert "the hub calls org/Tiny-Model 'org/New-Name'" in capsys.readouterr().out


def test_a_name_of_the_catalogue_is_looked_up_at_the_hub(hub: Hub, run: Add, folder: Path) -> None:
    commit = hub.repo("Qwen/Qwen3-0.6B", model_files(), pipeline_tag="text-generation")
    assert run("qwen3-0.6b") == OK
    spec = spec_in(folder / "qwen3-0.6b.yaml")
    assert spec.engine.max_model_len == CONFIG["max_position_embeddings"]
    assert spec.description
    assert commit[:8] in (folder / "qwen3-0.6b.yaml").read_text()


@pytest.mark.parametrize("repo", ["qwen3-0.6b", "Qwen/Qwen3-0.6B"])
def test_without_a_hub_a_known_model_comes_from_the_catalogue(
    run: Add, folder: Path, repo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(repo, url=NOWHERE) == OK
    assert "from the catalogue, because the hub could not be asked" in capsys.readouterr().out
    assert spec_in(folder / "qwen3-0.6b.yaml").engine.max_model_len == 32768


def test_a_busy_hub_is_no_hindrance_for_a_known_model(hub: Hub, run: Add, folder: Path) -> None:
    hub.fault(Status(429), path="/api/*", times=None)
    assert run("llama-3.1-8b-instruct") == OK
    assert "# Gated:" in (folder / "llama-3.1-8b-instruct.yaml").read_text()


def test_without_a_hub_a_pickle_of_the_catalogue_is_refused_as_well(
    run: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "RECONCILE_ALLOW_PICKLE" in failed(capsys, lambda: run("bge-m3", url=NOWHERE), PARTIAL)
    assert run("bge-m3", url=NOWHERE, allow_pickle=("BAAI/*",)) == OK


def test_without_a_hub_other_models_cannot_be_added(
    run: Add, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "does not answer" in failed(capsys, lambda: run(url=NOWHERE))
    assert not folder.exists()


def test_a_known_model_that_the_hub_denies_is_not_invented(run: Add, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not on the hub, or is private" in failed(capsys, lambda: run("phi-4"))


def test_the_hub_of_the_environment_is_asked(hub: Hub, folder: Path) -> None:
    hub.repo(REPO, model_files())
    code = (
        "import sys; from reconciler.cli.add import add; from reconciler.host.settings import Settings; "
        "options = dict(revision=None, name=None, stdout=False, force=False, output='text'); "
        "sys.exit(add(Settings(), sys.argv[1], **options))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "RECONCILE_MODELS_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code, REPO],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (OK, "")
    assert spec_in(folder / "tiny-model.yaml").source.repo == REPO


def test_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue(Settings(), "", output="text") == OK
    said = capsys.readouterr().out
    for entry in CATALOGUE:
        assert entry.repo in said
    assert said.split()[:6] == ["NAME", "TASK", "SIZE", "CONTEXT", "LICENCE", "REPO"]


def test_the_catalogue_is_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue(Settings(), "whisper turbo", output="json") == OK
    said = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["task"]) for each in said["models"]] == [("whisper-large-v3-turbo", "transcribe")]


def test_a_search_that_finds_nothing_tells_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue(Settings(), "qwne3-8b", output="text") == ERROR
    assert "did you mean qwen3-8b" in capsys.readouterr().err
    assert catalogue(Settings(), "qwne3-8b", output="json") == ERROR
    said = json.loads(capsys.readouterr().out)
    assert (said["models"], said["near"][0]) == ([], "qwen3-8b")
