"""What other repositories copy: workflows that give nothing away, the comment they keep, and the pre-commit hook.

The comment is kept by the real script, over real HTTP, on a server that answers as GitHub's and GitLab's do.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "ci" / "comment.py"
WORKFLOWS = sorted((ROOT / "deploy" / "github").glob("*.yml"))
MARK = "<!-- reconcile-plan -->"
BOT = "github-actions[bot]"
TOKEN = "a-token-that-nobody-may-see"

# --- the workflows ----------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    document: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    # To YAML 1.1, `on` is a boolean.
    return {"on" if key is True else key: value for key, value in document.items()}


def examples() -> list[dict[str, Any]]:
    """The workflows in the documentation."""
    page = (ROOT / "docs" / "pull-requests.md").read_text(encoding="utf-8")
    blocks = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ]
    return [
        {"on" if key is True else key: value for key, value in block.items()}
        for block in blocks
        if "jobs" in block
    ]


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", ())


def test_there_are_two_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["reconcile-comment.yml", "reconcile-plan.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_of_an_event_is_put_into_a_script(path: Path) -> None:
    scripts = [step["run"] for step in steps(load(path)) if "run" in step]
    assert scripts
    assert not [script for script in scripts if "${{" in script]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_may_do_only_what_it_names(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {}
    allowed = {
        "plan": {"contents": "read"},
        "plan-on-cluster": {"contents": "read"},
        "comment": {"actions": "read", "contents": "read", "pull-requests": "write"},
    }
    for name, job in workflow["jobs"].items():
        assert job["permissions"] == allowed[name]
        assert job["timeout-minutes"] <= 15


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_checkout_leaves_a_token_behind(path: Path) -> None:
    checkouts = [step for step in steps(load(path)) if str(step.get("uses")).startswith("actions/checkout@")]
    assert checkouts
    for step in checkouts:
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_workflow_runs_code_of_a_pull_request_with_rights(path: Path) -> None:
    text, workflow = path.read_text(encoding="utf-8"), load(path)
    assert "pull_request_target" not in text
    if set(workflow["on"]) == {"workflow_call"}:
        # Runs such code, and so has nothing.
        assert "secrets" not in text
        assert "token" not in str(list(steps(workflow)))
        assert "write" not in str([job["permissions"] for job in workflow["jobs"].values()])
        return
    assert set(workflow["on"]) == {"workflow_run"}
    refs = [
        step["with"]["ref"] for step in steps(workflow) if str(step.get("uses")).startswith("actions/checkout@")
    ]
    assert refs == ["${{ github.event.repository.default_branch }}"]
    assert not re.search(r"head_sha|head_ref|pull_request\.head|refs/pull", text)
    scripts = [step["run"].split() for step in steps(workflow) if "run" in step]
    assert [script[:3] for script in scripts] == [["python3", ".github/reconcile-comment.py", "github"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_githubs_own_and_has_a_version(path: Path) -> None:
    used = [step["uses"] for step in steps(load(path)) if "uses" in step]
    assert used
    for name in used:
        assert re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", name), name


def test_a_runner_with_access_is_not_for_forks() -> None:
    job = load(ROOT / "deploy" / "github" / "reconcile-plan.yml")["jobs"]["plan-on-cluster"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]
    (script,) = [step for step in job["steps"] if "reconcile plan" in step.get("run", "")]
    assert script["working-directory"] == "${{ runner.temp }}"


def test_the_comment_takes_the_artifacts_that_the_plan_makes() -> None:
    plan, comment = (load(ROOT / "deploy" / "github" / f"reconcile-{name}.yml") for name in ("plan", "comment"))
    made = [step["with"]["name"] for step in steps(plan) if "upload-artifact" in str(step.get("uses"))]
    (script,) = [step["run"] for step in steps(comment) if "run" in step]
    assert sorted(re.findall(r"plans/([\w-]+)/plan\.md", script)) == sorted(made)
    (download,) = [step["with"] for step in steps(comment) if "download-artifact" in str(step.get("uses"))]
    assert all(name.startswith(download["pattern"].removesuffix("*")) for name in made)


def test_the_documented_workflow_calls_this_one_and_is_the_one_that_is_followed() -> None:
    (example,) = examples()
    assert example["on"]["pull_request"]["paths"] == ["models.d/**"]
    assert example["permissions"] == {"contents": "read"}
    (job,) = example["jobs"].values()
    plan, comment = (load(ROOT / "deploy" / "github" / f"reconcile-{name}.yml") for name in ("plan", "comment"))
    assert job["uses"] == "./.github/workflows/reconcile-plan.yml"
    assert set(job.get("with", {})) <= set(plan["on"]["workflow_call"]["inputs"])
    assert comment["on"]["workflow_run"]["workflows"] == [example["name"]]


def test_gitlabs_token_is_for_the_comment_alone() -> None:
    pipeline = load(ROOT / "deploy" / "gitlab" / "reconcile-plan.yml")
    plan, comment = pipeline["reconcile-plan"], pipeline["reconcile-comment"]
    assert "PLAN_COMMENT_TOKEN" not in str(plan)
    (rule,) = comment["rules"]
    assert "$PLAN_COMMENT_TOKEN" in rule["if"]
    assert "$CI_MERGE_REQUEST_SOURCE_PROJECT_ID == $CI_MERGE_REQUEST_PROJECT_ID" in rule["if"]
    assert plan["artifacts"]["paths"] == ["plan.md"]
    assert plan["artifacts"]["when"] == "always"


# --- the script of the plan, as the workflow has it ------------------------------------------------------


def git(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, "-C", str(folder), *arguments], env=environment, check=True, capture_output=True)


@pytest.fixture
def merge(tmp_path: Path) -> Path:
    """What a runner checks out: the merge of a pull request that adds a model, changes one, and breaks one."""
    repository = tmp_path / "repository"
    models = repository / "models.d"
    models.mkdir(parents=True)
    for name in "ab":
        (models / f"{name}.yaml").write_text("source: {repo: o/m}\n")
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "base")
    git(repository, "checkout", "-q", "-b", "change")
    (models / "a.yaml").write_text("source: {repo: o/m}\ndescription: 'hello @team'\n")
    (models / "b.yaml").write_text("source: {repo: o/m}\nengin: {}\n")
    (models / "c.yaml").write_text("source: {repo: o/m}\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "change")
    git(repository, "checkout", "-q", "main")
    git(repository, "merge", "-q", "--no-ff", "change", "-m", "merge")
    return repository


def reconcile_in(folder: Path) -> Path:
    """A folder with the `reconcile` of this repository, as an installed package has it."""
    folder.mkdir(exist_ok=True)
    program = folder / "reconcile"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m reconciler "$@"\n')
    program.chmod(0o755)
    return folder


def clean_environment(tmp_path: Path) -> dict[str, str]:
    path = f"{reconcile_in(tmp_path / 'bin')}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RECONCILE_", "RAY_"))}
    return {**kept, "PATH": path, "RUNNER_TEMP": str(tmp_path / "temp"), "RECONCILE_ENGINE": "cpu"}


def test_the_workflows_own_script_makes_the_page(merge: Path, tmp_path: Path) -> None:
    workflow = load(ROOT / "deploy" / "github" / "reconcile-plan.yml")
    (step,) = [step for step in workflow["jobs"]["plan"]["steps"] if step.get("id") == "plan"]
    (tmp_path / "temp").mkdir()
    environment = {
        **clean_environment(tmp_path),
        "MODELS": "models.d",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    # As a runner starts it.
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=merge, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "models.d/b.yaml:2:1: unknown key 'engin'" in done.stdout
    page = (tmp_path / "temp" / "plan" / "plan.md").read_text(encoding="utf-8")
    assert page.startswith(f"{MARK}\n## Model files: 1 added, 1 changed, 0 removed; 1 file invalid\n")
    assert "Nobody looked at the cluster" in page
    assert "<code>models.d/b.yaml:2:1</code>: unknown key" in page
    assert "@team" not in page
    assert (tmp_path / "summary").read_text(encoding="utf-8") == page
    assert (tmp_path / "output").read_text() == "code=3\n"


# --- the comment ------------------------------------------------------------------------------------------


class Forge(ThreadingHTTPServer):
    """Comments of pull request 7, as GitHub's and GitLab's APIs keep them."""

    daemon_threads = True

    def __init__(self) -> None:
        self.comments: list[dict[str, Any]] = []
        self.pulls: list[dict[str, Any]] = [pull(7)]
        self.calls: list[tuple[str, str]] = []
        self.fault = ""
        self._next = 100
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, body: str, login: str = BOT) -> dict[str, Any]:
        self._next += 1
        comment = {"id": self._next, "body": body, "user": {"login": login}, "author": {"id": login}}
        self.comments.append(comment)
        return comment

    @property
    def own(self) -> list[str]:
        return [each["body"] for each in self.comments if each["user"]["login"] == BOT]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Forge

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path == "/user":
            return self.answer(200, {"id": BOT})
        if parts.path == "/repos/o/r/pulls":
            assert query["state"] == "open"
            return self.answer(200, [each for each in self.server.pulls if each["head"]["label"] == query["head"]])
        if parts.path not in ("/repos/o/r/issues/7/comments", "/projects/5/merge_requests/7/notes"):
            return self.answer(404, {"message": "Not Found"})
        size, page = int(query["per_page"]), int(query["page"])
        assert size <= 100
        return self.answer(200, self.server.comments[(page - 1) * size : page * size])

    def do_POST(self) -> None:
        body = self.body()
        assert urlsplit(self.path).path in ("/repos/o/r/issues/7/comments", "/projects/5/merge_requests/7/notes")
        self.answer(201, self.server.add(body["body"]))

    def do_PATCH(self) -> None:
        body = self.body()
        found = re.fullmatch(r"/repos/o/r/issues/comments/(\d+)", self.path)
        found = found or re.fullmatch(r"/projects/5/merge_requests/7/notes/(\d+)", self.path)
        comments = [each for each in self.server.comments if found and each["id"] == int(found[1])]
        if not comments:
            return self.answer(404, {"message": "Not Found"})
        # GitHub gives line ends back as a browser sends them.
        comments[0]["body"] = body["body"].replace("\n", "\r\n")
        return self.answer(200, comments[0])

    def do_PUT(self) -> None:
        self.do_PATCH()

    def do_DELETE(self) -> None:
        number = int(self.path.rpartition("/")[2])
        self.server.comments = [each for each in self.server.comments if each["id"] != number]
        self.answer(204, None)

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(found["body"]) > 65_536:
            self.answer(422, {"message": "body is too long (maximum is 65536 characters)"})
        return found

    def answer(self, status: int, value: Any) -> None:
        self.server.calls.append((self.command, self.path))
        if TOKEN not in (self.headers.get("Authorization") or self.headers.get("PRIVATE-TOKEN") or ""):
            status, value = 401, {"message": "Bad credentials"}
        if self.server.fault == "redirect":
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = b"<html>" if self.server.fault == "html" else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(0 if status == 204 else len(content)))
        self.end_headers()
        if status != 204:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def pull(
    number: int, sha: str = "c0ffee", source: str | None = "fork/r", label: str = "fork:change"
) -> dict[str, Any]:
    repo = {"full_name": source} if source else None
    return {"number": number, "head": {"sha": sha, "label": label, "repo": repo}}


@pytest.fixture
def forge() -> Iterator[Forge]:
    server = Forge()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def comment(
    forge: Forge, tmp_path: Path, text: str | bytes | None = None, *, where: str = "github", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the script as the workflow does, for a run of the fork's branch `change`."""
    page = tmp_path / "plan.md"
    if text is not None:
        page.unlink(missing_ok=True)
        page.write_bytes(text.encode() if isinstance(text, str) else text)
    event = tmp_path / "event.json"
    run = {
        "head_sha": "c0ffee",
        "head_branch": "change",
        "head_repository": {"full_name": "fork/r", "owner": {"login": "fork"}},
        "pull_requests": [],
    }
    if not event.exists():
        event.write_text(json.dumps({"workflow_run": run}))
    environment = {
        "PATH": os.environ["PATH"],
        "GITHUB_API_URL": forge.url,
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_EVENT_PATH": str(event),
        "GITHUB_TOKEN": TOKEN,
        "CI_API_V4_URL": forge.url,
        "CI_MERGE_REQUEST_PROJECT_ID": "5",
        "CI_MERGE_REQUEST_IID": "7",
        "PLAN_COMMENT_TOKEN": TOKEN,
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), where, str(tmp_path / "absent.md"), str(page)],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("where", ["github", "gitlab"])
def test_it_is_made_then_replaced_and_never_are_there_two(forge: Forge, tmp_path: Path, where: str) -> None:
    forge.add("a person's comment", "person")
    for number in range(3):
        done = comment(forge, tmp_path, f"{MARK}\n## Plan: {number} to add\n", where=where)
        assert done.returncode == 0, done.stderr
        (body,) = forge.own
        assert body.startswith(MARK)
        assert f"## Plan: {number} to add" in body
    assert [method for method, _ in forge.calls if method != "GET"] == [
        "POST",
        *["PATCH" if where == "github" else "PUT"] * 2,
    ]
    assert len(forge.comments) == 2


def test_what_is_up_to_date_is_left_alone(forge: Forge, tmp_path: Path) -> None:
    for text in ("one", "two", "two"):
        assert comment(forge, tmp_path, text).returncode == 0
    assert [method for method, _ in forge.calls if method != "GET"] == ["POST", "PATCH"]


def test_it_is_found_behind_a_hundred_others(forge: Forge, tmp_path: Path) -> None:
    for _ in range(150):
        forge.add("talk", "person")
    comment(forge, tmp_path, "one")
    for _ in range(150):
        forge.add("talk", "person")
    comment(forge, tmp_path, "two")
    (body,) = forge.own
    assert "two" in body


def test_two_that_are_there_become_one(forge: Forge, tmp_path: Path) -> None:
    for _ in range(2):
        forge.add(f"{MARK}\nold")
    comment(forge, tmp_path, "new")
    (body,) = forge.own
    assert "new" in body


def test_a_persons_comment_with_the_mark_is_not_touched(forge: Forge, tmp_path: Path) -> None:
    decoy = forge.add(f"{MARK}\nmine", "mallory")
    forge.add(f"the bot quotes {MARK}")
    comment(forge, tmp_path, "plan")
    assert decoy["body"] == f"{MARK}\nmine"
    assert len(forge.own) == 2


def test_which_pull_request_it_is_comes_from_the_event_alone(forge: Forge, tmp_path: Path) -> None:
    forge.pulls = [
        pull(1, sha="bad"),
        pull(2, source="other/r"),
        pull(3, source=None),
        pull(4, label="person:change"),
        pull(7),
    ]
    done = comment(forge, tmp_path, '{"number": 1}\nPR: 1\n')
    assert done.returncode == 0, done.stderr
    assert len(forge.own) == 1
    assert ("POST", "/repos/o/r/issues/7/comments") in forge.calls


@pytest.mark.parametrize("pulls", [[], [pull(7, sha="newer")]])
def test_a_pull_request_that_moved_on_has_no_comment(
    forge: Forge, tmp_path: Path, pulls: list[dict[str, Any]]
) -> None:
    forge.pulls = pulls
    done = comment(forge, tmp_path, "plan")
    assert (done.returncode, forge.comments) == (0, [])
    assert "a newer run" in done.stdout


def test_where_two_are_of_one_commit_none_is_guessed(forge: Forge, tmp_path: Path) -> None:
    forge.pulls = [pull(7), pull(8)]
    done = comment(forge, tmp_path, "plan")
    assert (done.returncode, forge.comments) == (1, [])
    assert "2 pull requests" in done.stderr


def test_an_artifact_puts_no_markup_into_the_comment(forge: Forge, tmp_path: Path) -> None:
    hostile = (
        "@org/team fixes #12 GH-3 http://evil.example www.evil.example [click](//evil) ![](http://x/y.png) "
        "&#64;you &commat;all <img src=x> <a href=x>y</a> <!-- hidden --> <details open onclick=x>\n"
        "/merge\n  /label x\n- /close\n[ref]: http://evil.example\n<details><summary>fine</summary>\n\x00\u202e"
    )
    assert comment(forge, tmp_path, hostile).returncode == 0
    (body,) = forge.own
    text = body.removeprefix(MARK)
    assert not re.search(r"[@!](?=\w)|(?<!&)#(?=\w)|://|www\.|[\[\]]|GH-\d|<(?!/?(details|summary|sub)>)", text)
    assert not re.search(r"^\s*(- )?/", text, re.MULTILINE)
    assert not re.search(r"&(?!(amp|lt|gt|#8203|#91|#93);)", text)
    assert "<details><summary>fine</summary>" in text
    # Where no section that is left open can hide it.
    assert "author can change" in text.strip().splitlines()[0]


@pytest.mark.parametrize("size", [70_000, 5_000_000])
@pytest.mark.parametrize("line", ["<details>x\n", "@a", "é\n"])
def test_a_long_artifact_is_cut(forge: Forge, tmp_path: Path, size: int, line: str) -> None:
    done = comment(forge, tmp_path, line * (size // len(line)))
    assert done.returncode == 0, done.stderr
    (body,) = forge.own
    assert len(body) <= 65_536
    assert "Cut here" in body


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "empty", "absent"])
def test_what_is_no_page_is_not_posted(forge: Forge, tmp_path: Path, kind: str) -> None:
    page = tmp_path / "plan.md"
    if kind == "link":
        (tmp_path / "secret").write_text("secret")
        page.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(page)
    elif kind == "folder":
        page.mkdir()
    elif kind == "empty":
        page.write_text(f"{MARK}\n \n")
    done = comment(forge, tmp_path)
    assert (done.returncode, forge.comments) == (1, [])
    assert "plan.md" in done.stderr


def test_bytes_that_are_no_text_do_no_harm(forge: Forge, tmp_path: Path) -> None:
    assert comment(forge, tmp_path, b"\xff\xfe plan \x80").returncode == 0
    assert "plan" in forge.own[0]


@pytest.mark.parametrize(
    ("fault", "more", "said"),
    [
        ("", {"GITHUB_TOKEN": "wrong"}, "HTTP 401"),
        ("", {"GITHUB_TOKEN": ""}, "GITHUB_TOKEN is not set"),
        ("", {"GITHUB_API_URL": "http://127.0.0.1:9"}, "refused"),
        ("", {"GITHUB_EVENT_PATH": "/dev/null"}, "not that of a workflow_run"),
        ("redirect", {}, "HTTP 302"),
        ("html", {}, "Expecting value"),
    ],
)
def test_a_forge_that_does_not_do_it_is_an_error_that_says_so(
    forge: Forge, tmp_path: Path, fault: str, more: dict[str, str], said: str
) -> None:
    forge.fault = fault
    done = comment(forge, tmp_path, "plan", **more)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "/elsewhere" not in [path for _, path in forge.calls]


# --- pre-commit -------------------------------------------------------------------------------------------


def hook() -> dict[str, Any]:
    (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    return dict(found)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("models.d/a.yaml", True),
        ("models.d/a.yml", True),
        ("models.d/README.md", False),
        ("models.d/.a.yaml", False),
        ("models.d/examples/a.yaml", False),
        ("other/models.d/a.yaml", False),
        ("models.d/a.yaml.bak", False),
    ],
)
def test_the_hook_is_for_the_files_that_a_reconciler_reads(file: str, wanted: bool) -> None:
    assert bool(re.search(hook()["files"], file)) is wanted


def test_the_hook_is_installed_and_run_as_pre_commit_does() -> None:
    found = hook()
    assert (found["id"], found["language"], found["pass_filenames"]) == ("reconcile-validate", "python", True)
    # Else files that claim one name might come to different runs.
    assert found["require_serial"] is True
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'{found["entry"].split()[0]} = "reconciler.cli.main:main"' in scripts


def run_hook(repository: Path, tmp_path: Path, *files: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*hook()["entry"].split(), *files],
        cwd=repository, env=clean_environment(tmp_path), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_hook_fails_on_one_invalid_file_and_says_where(merge: Path, tmp_path: Path) -> None:
    done = run_hook(merge, tmp_path, "models.d/a.yaml", "models.d/b.yaml")
    # Whatever is not 0 stops the commit.
    assert done.returncode == 3
    assert done.stdout.startswith("error models.d/b.yaml:2:1: unknown key 'engin'")


def test_the_hook_passes_valid_files_and_finds_a_name_that_two_claim(merge: Path, tmp_path: Path) -> None:
    assert run_hook(merge, tmp_path, "models.d/a.yaml", "models.d/c.yaml").returncode == 0
    (merge / "models.d" / "c.yaml").write_text("name: a\nsource: {repo: o/m}\n")
    done = run_hook(merge, tmp_path, "models.d/a.yaml", "models.d/c.yaml")
    assert done.returncode == 3
    assert "models.d/c.yaml:1:7: the name 'a' is also claimed by models.d/a.yaml" in done.stdout
