"""From one command to served models, and on through a day of edits, crashes and mistakes, on the real stack.

The tests of this file stand in an order: each starts from where the one before left the system.
"""

import asyncio
import ipaddress
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest
from hub_server import Hub, Reset
from lora import adapter_files
from stack import LOAD_SECONDS, Stack
from traffic import Traffic

pytestmark = pytest.mark.e2e

CHAT, EMBED = "tiny-chat", "all-minilm-l6-v2"


def chat_file(stack: Stack, name: str, *, context: int = 512, path: str = "", more: str = "") -> str:
    weights = path or str(stack.state / "demo" / "weights" / "tiny-chat")
    return (
        f"name: {name}\n"
        f"source: {{path: {weights}}}\n"
        f"engine: {{max_model_len: {context}, kv_cache_memory_gib: 0.25, args: {{enforce_eager: true}}}}\n"
        "resources: {accelerator: cpu}\n"
        "lifecycle: {policy: pinned}\n"
        f"{more}"
    )


def test_one_command_serves_two_models(stack: Stack) -> None:
    """A fresh folder and one command end in two models that the front door lists as loaded."""
    stack.wait_loaded(CHAT, EMBED)
    output = stack.log.read_text()
    assert "curl" in output
    assert "noise" in output


def test_the_openai_client_needs_no_special_option(stack: Stack) -> None:
    """The official client lists, chats, streams and embeds, without a word about who serves."""
    client = openai.OpenAI(base_url=stack.url, api_key="none")
    assert {CHAT, EMBED} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(CHAT).id == CHAT
    answer = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "Hello"}], max_tokens=8
    )
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 8
    stream = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "Hello"}], max_tokens=8, stream=True
    )
    assert [chunk for chunk in stream if chunk.choices][-1].choices[0].finish_reason in ("length", "stop")
    texts = ["a cat", "a kitten", "a tax form"]
    vectors = [row.embedding for row in client.embeddings.create(model=EMBED, input=texts).data]
    assert {len(vector) for vector in vectors} == {384}
    assert _cosine(vectors[0], vectors[1]) > _cosine(vectors[0], vectors[2]) + 0.3


async def test_the_async_openai_client_works_too(stack: Stack) -> None:
    """The same, asynchronously and at once."""
    async with openai.AsyncOpenAI(base_url=stack.url, api_key="none") as client:
        models = [model.id async for model in client.models.list()]
        assert {CHAT, EMBED} <= set(models)
        chat, vectors = await asyncio.gather(
            client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "Hi"}], max_tokens=4),
            client.embeddings.create(model=EMBED, input="a cat"),
        )
        assert chat.choices[0].message.content is not None
        assert len(vectors.data[0].embedding) == 384
        stream = await client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "Hi"}], max_tokens=4, stream=True
        )
        assert [chunk async for chunk in stream]


def test_errors_are_openais(stack: Stack) -> None:
    """An unknown model is a 404 with near names; the client raises what it raises against OpenAI."""
    client = openai.OpenAI(base_url=stack.url, api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tiny-chatt", messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.code == "model_not_found"
    assert CHAT in caught.value.message


def test_a_converged_system_has_nothing_to_do(stack: Stack) -> None:
    """A dry run on a converged system says so and exits 0, also with --detailed-exitcode; so does converging."""
    plan, code = stack.plan()
    assert (plan["changes"], plan["held"], plan["refused"], plan["steps"], code) == ([], [], [], [], 0)
    text = stack.reconcile("--dry-run")
    assert text.returncode == 0
    assert "Nothing to do" in text.stdout
    assert stack.reconcile().returncode == 0


def test_what_a_start_took_is_measured(stack: Stack) -> None:
    """The size of the cache that vLLM logged is in the lock file, under the model's own key."""

    def measured() -> list[dict[str, Any]]:
        return [event for event in stack.events("model.measured") if event["model"] == CHAT]

    stack.wait_for(measured, "it is measured")
    assert measured()[0]["kv_capacity"] == 524_288
    entries = json.loads((stack.state / "fit.lock.json").read_text())["entries"]
    assert 524_288 in [entry["measured"].get("kv_tokens") for entry in entries]
    assert {entry["key"]["vllm"] for entry in entries} == {"0.29.0"}


def test_a_model_is_weighed_before_it_is_loaded(stack: Stack) -> None:
    """A plan for counted GPUs of 24 GiB says what a model would take, and shows the GPU before and after."""
    file = chat_file(stack, "weighed").replace("accelerator: cpu", "accelerator: gpu")
    plan, _ = stack.plan({"weighed": file}, SIMULATED_GPU_MEMORY_GIB="24")
    (change,) = plan["changes"]
    memory = change["memory"]
    assert (memory["basis"], memory["ranks"], memory["fits_safely"]) == ("tensors", 1, True)
    on_disk = sum(
        path.stat().st_size for path in (stack.state / "demo" / "weights").glob("tiny-chat/*.safetensors")
    )
    # Its tensors, and the table of rotary embeddings that vLLM makes.
    assert 0.99 * on_disk < memory["weights"] < 1.3 * on_disk
    assert memory["kv_cache"] == 2**28
    assert memory["kv_tokens"] == 524_288
    (gpu,) = plan["gpus"]
    assert (gpu["total"], gpu["before"]) == (24 * 2**30, 0.0)
    assert gpu["after"] == memory["gpus"] > memory["needed"] / gpu["total"]
    large = file.replace("kv_cache_memory_gib: 0.25", "kv_cache_memory_gib: 23.9")
    plan, _ = stack.plan({"weighed": large}, SIMULATED_GPU_MEMORY_GIB="24")
    assert [held["kind"] for held in plan["held"]] == ["does not fit"]


def test_nothing_listens_beyond_loopback(stack: Stack) -> None:
    """Of everything that was started, nothing can be reached from another machine."""
    ours = _processes_of(stack)
    assert len(ours) > 8, "the processes of the stack were not found"
    exposed = [
        f"{process.name()} ({process.pid}) on {connection.laddr.ip}:{connection.laddr.port}"
        for process in ours
        for connection in _connections(process)
        if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip)
    ]
    # One gRPC port of each replica, which no setting binds to loopback; it asks for the token (docs/security.md).
    unexpected = [line for line in exposed if not line.startswith("ray::ServeRepli")]
    assert unexpected == []


async def test_what_cannot_fit_is_held_and_fails_as_foretold_when_it_is_forced(stack: Stack) -> None:
    """Too small a cache for one request: held with the size that would do; forced, vLLM says the same."""
    file = chat_file(stack, "cramped").replace("kv_cache_memory_gib: 0.25", "kv_cache_memory_gib: 0.0002")
    stack.write("cramped", file)
    stack.wait_for(
        lambda: [event["kind"] for event in stack.events("model.held")] == ["does not fit"], "it is held"
    )
    assert not [event for event in stack.events("model.start") if event["model"] == "cramped"]
    plan, code = stack.plan()
    (held,) = plan["held"]
    assert code == 3
    assert "one request of 512 tokens" in held["reason"]
    (advice,) = held["advice"]
    explained = stack.reconcile("fit", "cramped", "--output", "json")
    assert explained.returncode == 3
    assert json.loads(explained.stdout)["advice"] == [advice]
    enough, _ = stack.plan({"cramped": file.replace("0.0002", advice.split()[-1])})
    assert enough["held"] == []

    assert stack.reconcile("--force").returncode == 3
    failed = [event for event in stack.events("model.failed") if event["model"] == "cramped"]
    assert "KV cache" in failed[-1]["reason"]
    (stack.models / "cramped.yaml").unlink()
    stack.wait_for(lambda: not stack.plan()[0]["held"], "it is forgotten")
    for _ in range(120):
        if not any(name.startswith("cramped-") for name in (await stack.serve_instance())["applications"]):
            return
        await asyncio.sleep(0.5)
    raise AssertionError("it is still being removed")


def test_starting_twice_is_harmless(stack: Stack) -> None:
    """A second start finds the first and leaves it alone."""
    before = stack.reconciler_pid()
    again = subprocess.run(
        ["./start.sh", "--cpu", "--demo"],
        env=stack.environment,
        cwd=stack.folder,
        executable=str(Path(__file__).resolve().parents[2] / "start.sh"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    assert "runs already" in again.stdout
    assert stack.reconciler_pid() == before


async def test_a_foreign_application_is_put_beside_ours(stack: Stack) -> None:
    """Somebody else deploys an application of their own; the tests after this one must not touch it."""
    instance = await stack.serve_instance()
    foreign = {
        "name": "greeter",
        "route_prefix": "/greeter",
        "import_path": "foreign_app:build",
        "args": {"greeting": "Hello"},
    }
    ours = [app["deployed_app_config"] for app in instance["applications"].values()]
    token = (stack.state / "ray-token").read_text().strip()
    body = {
        "proxy_location": instance["proxy_location"],
        "http_options": instance["http_options"],
        "applications": [*ours, foreign],
    }
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.put(f"{stack.dashboard}/api/serve/applications/", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()

    for _ in range(120):
        if (await stack.serve_instance())["applications"]["greeter"]["status"] == "RUNNING":
            return
        await asyncio.sleep(0.5)
    pytest.fail("the foreign application did not come up")


def test_edits_under_load_and_kills_in_the_middle(stack: Stack) -> None:
    """Edits of every kind, each announced by its plan, with the reconciler killed in the middle of each.

    Two models answer streams without a pause all the while: not one request fails or is cut, the second model's
    engine is never touched, and nothing is ever loaded twice.
    """
    steady = "steady"
    added = chat_file(stack, steady)
    assert stack.planned({steady: added}) == {steady: "add"}
    stack.write(steady, added)
    stack.wait_loaded(steady)
    pids = stack.status()[steady]["pids"]

    with Traffic(stack.url, [CHAT, steady]) as traffic:
        stack.wait_for(lambda: min(traffic.answered(CHAT), traffic.answered(steady)) > 2, "traffic flows")

        def crash_and_return(in_the_middle: str) -> None:
            """Kill the reconciler, see that streams go on without it, and let it come back."""
            stack.kill_reconciler()
            before = traffic.answered(steady)
            stack.wait_for(lambda: traffic.answered(steady) > before + 1, f"streams go on ({in_the_middle})")
            stack.start_reconciler()
            stack.wait_for(lambda: stack.reconciler_pid() is not None, "the reconciler is back")

        # 1. The first model's context length changes: a new version beside the old one.
        old = stack.status()[CHAT]["application"]
        starts = len(stack.events("model.start"))
        text = (stack.models / f"{CHAT}.yaml").read_text()
        assert "max_model_len: 512" in text
        changed = text.replace("max_model_len: 512", "max_model_len: 384")
        plan, code = stack.plan({CHAT: changed})
        assert [(c["model"], c["action"], c["order"]) for c in plan["changes"]] == [(CHAT, "replace", "beside")]
        assert [(f["path"], f["effect"]) for f in plan["changes"][0]["fields"]] == [
            ("engine.max_model_len", "new engine")
        ]
        assert code == 2, "changes are pending"
        stack.write(CHAT, changed)
        stack.wait_starts(starts + 1, "the new version starts")
        crash_and_return("while the new version loads")
        stack.wait_loaded(CHAT)
        new = stack.status()[CHAT]["application"]
        assert (old, new) == (plan["changes"][0]["old"], plan["changes"][0]["new"])
        assert [e["application"] for e in stack.events("model.start")][starts:] == [new], "loaded twice"

        # 2. A third model is added.
        third_file = chat_file(stack, "third", context=256)
        assert stack.planned({"third": third_file}) == {"third": "add"}
        stack.write("third", third_file)
        stack.wait_starts(starts + 2, "the third model starts")
        crash_and_return("while the third model loads")
        stack.wait_loaded("third")
        assert len(stack.events("model.start")) == starts + 2, "loaded twice"

        # 3. A fourth with a broken path is added: held and explained, and nothing else happens.
        broken = chat_file(stack, "fourth", path="/nowhere/at/all")
        plan, code = stack.plan({"fourth": broken})
        assert ([held["model"] for held in plan["held"]], plan["changes"], code) == (["fourth"], [], 3)
        assert "/nowhere/at/all" in plan["held"][0]["reason"]
        stack.write("fourth", broken)
        crash_and_return("with a broken file")
        stack.wait_for(lambda: stack.status()["fourth"]["state"] == "failed", "the broken one is reported")
        _expect_unavailable(stack, "fourth", "/nowhere/at/all")

        # 4. The second gets an alias: no engine is touched.
        aliased = chat_file(stack, steady, more="aliases: [steady-alias]\n")
        plan, _ = stack.plan({steady: aliased})
        assert [(c["model"], c["action"]) for c in plan["changes"]] == [(steady, "front door")]
        assert [f["path"] for f in plan["changes"][0]["fields"]] == ["aliases"]
        stack.write(steady, aliased)
        stack.wait_for(lambda: _chats(stack, "steady-alias"), "the alias answers")
        crash_and_return("after an alias")
        stack.wait_for(lambda: _chats(stack, "steady-alias"), "the alias answers")

        # 5. One file is made invalid: its model stays as it is.
        third = stack.status()["third"]["application"]
        stack.write("third", "name: third\nsource: {path: x}\nengine: {max_model_len: lots}\n")
        # Nothing is carried out for an invalid file, so there is time to look at the plan afterwards.
        result = stack.reconcile("--dry-run", "--output", "json")
        dry = json.loads(result.stdout)
        assert result.returncode == 3
        assert {held["model"] for held in dry["plan"]["held"]} == {"third", "fourth"}
        assert dry["plan"]["changes"] == []
        assert "third.yaml:3:" in dry["problems"][0]
        crash_and_return("with an invalid file")
        assert stack.status()["third"]["application"] == third
        assert _chats(stack, "third")

        # 6. One is deleted (the invalid one, after it was mended).
        stack.write("third", third_file)
        assert stack.planned({"third": None}) == {"third": "remove"}
        (stack.models / "third.yaml").unlink()
        stack.wait_for(lambda: bool(stack.events("traffic.stopped")), "the third loses its traffic")
        crash_and_return("while the third is removed")
        stack.wait_for(lambda: "third" not in stack.status(), "the third is gone", 90)
        (stack.models / "fourth.yaml").unlink()

        assert traffic.answered(CHAT) > 20
        assert traffic.answered(steady) > 20
    assert traffic.failures() == []
    assert stack.status()[steady]["pids"] == pids, "the second model's engine was touched"
    started = {event["model"] for event in stack.events("model.start")} - {"cramped"}
    assert started == {CHAT, EMBED, steady, "third"}


async def test_the_foreign_application_was_not_touched(stack: Stack) -> None:
    """After all those PUTs, somebody else's application runs in the process it started in."""
    greeter = (await stack.serve_instance())["applications"]["greeter"]
    replicas = greeter["deployments"]["Greeter"]["replicas"]
    assert [replica["state"] for replica in replicas] == ["RUNNING"]
    assert greeter["deployments"]["Greeter"].get("recent_dead_replicas", []) == []
    url = f"http://127.0.0.1:{stack.ports['SERVE_PORT']}/greeter?name=world"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert await answer.text() == "Hello, world"


def test_an_empty_folder_unloads_nothing(stack: Stack) -> None:
    """All files gone at once is a mistake until a flag says otherwise: exit 4, and everything goes on serving."""
    aside = stack.folder / "aside"
    stack.models.rename(aside)
    try:
        unreadable = stack.reconcile("--dry-run")
        assert unreadable.returncode == 4, unreadable.stdout
        stack.models.mkdir()
        empty = stack.reconcile("--dry-run")
        assert empty.returncode == 4, empty.stdout
        assert "--dangerous-allow-removals" in empty.stdout
        assert stack.reconcile().returncode == 4
        assert _chats(stack, CHAT)
        stack.models.rmdir()
    finally:
        aside.rename(stack.models)
    assert stack.reconcile().returncode == 0


def test_the_edge_is_started_again(stack: Stack) -> None:
    """HAProxy dies: it is back within seconds, with its routes, without a hand."""
    pid = int((stack.state / "edge" / "edge.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    stack.wait_for(lambda: _chats(stack, CHAT), "the front door is back", 30)
    assert int((stack.state / "edge" / "edge.pid").read_text().split()[0]) != pid


def test_a_model_from_the_hub_ends_in_a_served_answer(stack: Stack, hub: Hub) -> None:
    """A file that names a repository: fetched, verified, served offline; its adapter under a name of its own."""
    stack.wait_loaded(CHAT)
    weights = stack.state / "demo" / "weights" / CHAT
    model = {path.name: path.read_bytes() for path in weights.iterdir() if path.is_file()}
    commit = hub.repo("org/tiny", {**model, "pytorch_model.bin": b"pickle", "README.md": b"# tiny"})
    adapter = hub.repo("org/tiny-lora", adapter_files())
    file = (
        "name: from-hub\n"
        "source: {repo: org/tiny}\n"
        "adapters: [{name: from-hub-lora, repo: org/tiny-lora}]\n"
        "engine: {max_model_len: 256, max_lora_rank: 8, kv_cache_memory_gib: 0.25, args: {enforce_eager: true}}\n"
        "resources: {accelerator: cpu}\n"
        "lifecycle: {policy: pinned}\n"
    )
    plan, code = stack.plan({"from-hub": file})
    assert code == 2
    (change,) = plan["changes"]
    wanted = {"org/tiny": commit, "org/tiny-lora": adapter}
    assert {each["repo"]: each["commit"] for each in change["downloads"]} == wanted
    assert all(each["total"] and not each["done"] for each in change["downloads"]), json.dumps(change)
    assert not (stack.folder / "hf" / "hub").exists(), "a dry run wrote something"

    # The first meets the one who reads the tensors' headers, the second the download.
    hub.fault(Reset(after=100_000), path="model.safetensors", times=2)
    stack.write("from-hub", file)
    stack.wait_loaded("from-hub")
    assert hub.pending == 0
    row = stack.status()["from-hub"]
    assert {(each["repo"], each["commit"], each["phase"]) for each in row["weights"]} == {
        ("org/tiny", commit, "ready"),
        ("org/tiny-lora", adapter, "ready"),
    }
    assert {event["repo"] for event in stack.events("download.finished")} == set(wanted)
    client = openai.OpenAI(base_url=stack.url, api_key="none", max_retries=0)
    answers = {
        name: client.completions.create(model=name, prompt="the quick", max_tokens=8, temperature=0)
        .choices[0]
        .text
        for name in (CHAT, "from-hub", "from-hub-lora")
    }
    assert answers["from-hub"] == answers[CHAT], "these are the same weights"
    assert answers["from-hub-lora"] != answers["from-hub"], "the adapter changes nothing"
    assert {"from-hub", "from-hub-lora"} <= {listed.id for listed in client.models.list()}
    asked = {request.file for request in hub.requests if request.repo == "org/tiny" and request.file}
    assert asked.isdisjoint({"pytorch_model.bin", "README.md"})

    # The branch moves: a note, and nothing else, until the file says that it is to be followed.
    first = row["application"]
    moved = hub.repo("org/tiny", {**model, "generation_config.json": b'{"max_new_tokens": 7}'})
    hub.clear()
    plan, code = stack.plan()
    assert (plan["changes"], code) == ([], 0)
    assert [f"{commit[:8]} -> {moved[:8]}" in note["text"] for note in plan["notes"]] == [True]
    tracked = file.replace("{repo: org/tiny}", "{repo: org/tiny, track: true}")
    plan, _ = stack.plan({"from-hub": tracked})
    (change,) = plan["changes"]
    assert change["cause"] == f"revision main moved: {commit[:8]} -> {moved[:8]}"
    stack.write("from-hub", tracked)
    stack.wait_loaded("from-hub")
    row = stack.status()["from-hub"]
    assert row["application"] != first
    assert moved in {each["commit"] for each in row["weights"]}
    assert hub.requests_for("model.safetensors", "GET") == [], "what did not change was fetched again"

    (stack.models / "from-hub.yaml").unlink()
    stack.wait_for(lambda: "from-hub" not in stack.status(), "it is gone", 90)


def test_without_room_for_two_the_old_version_goes_first_and_comes_back(stack: Stack) -> None:
    """One counted GPU, one model of 0.75: a change is done in turn, and undone when the new version fails."""

    def gpu_file(context: int) -> str:
        text = chat_file(stack, "solo", context=context).replace("accelerator: cpu", "accelerator: gpu")
        return text.replace("engine: {", "engine: {gpu_memory_utilization: 0.75, ")

    stack.write("solo", gpu_file(512))
    stack.wait_loaded("solo")
    first = stack.status()["solo"]["application"]

    plan, _ = stack.plan({"solo": gpu_file(640)})
    assert [(c["model"], c["action"], c["order"]) for c in plan["changes"]] == [("solo", "replace", "in turn")]
    stack.write("solo", gpu_file(640))
    stack.wait_loaded("solo")
    second = stack.status()["solo"]["application"]
    assert second != first

    # More context than the model has positions: vLLM refuses it.
    stack.write("solo", gpu_file(999_999))

    def failed() -> list[dict[str, Any]]:
        return [event for event in stack.events("model.failed") if event["model"] == "solo"]

    stack.wait_for(failed, "the new version fails", LOAD_SECONDS)
    reason = failed()[-1]["reason"]
    assert "max_model_len" in reason, "the reason is vLLM's own"
    stack.wait_for(
        lambda: stack.status()["solo"]["application"] == second, "the old version is back", LOAD_SECONDS
    )
    stack.wait_for(lambda: _chats(stack, "solo"), "and answers")
    plan, code = stack.plan()
    assert code == 3
    assert [(held["model"], held["kind"]) for held in plan["held"]] == [("solo", "failed")]
    assert "max_model_len" in plan["held"][0]["reason"]
    attempts = len(failed())

    # A second model of 0.75 GPU has no room at all, and is told so instead of waiting for ever.
    plan, _ = stack.plan({"other": gpu_file(512).replace("name: solo", "name: other")})
    assert ("other", "no room") in [(held["model"], held["kind"]) for held in plan["held"]]

    # Back to what works: nothing is started, because it runs.
    stack.write("solo", gpu_file(640))
    stack.wait_for(lambda: stack.plan()[1] == 0, "nothing is left to do")
    assert stack.status()["solo"]["application"] == second
    assert len(failed()) == attempts, "the failed version was tried again"


def test_stop_ends_what_was_started_and_nothing_else(stack: Stack) -> None:
    """`./start.sh --stop` leaves no process of ours, and leaves a bystander alone."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        assert _processes_of(stack)
        stack.stop()
        stack.wait_for(lambda: not _processes_of(stack), "everything of ours is gone", 30)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def _cosine(left: list[float], right: list[float]) -> float:
    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    return float(dot(left, right) / (dot(left, left) * dot(right, right)) ** 0.5)


def _chats(stack: Stack, model: str) -> bool:
    client = openai.OpenAI(base_url=stack.url, api_key="none", max_retries=0, timeout=60)
    try:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
    except openai.OpenAIError:
        return False
    return True


def _expect_unavailable(stack: Stack, model: str, reason: str) -> None:
    client = openai.OpenAI(base_url=stack.url, api_key="none", max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["Retry-After"]) > 0
    assert reason in caught.value.message


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections(kind="inet"))
    except psutil.NoSuchProcess:
        return []


def _is_loopback(address: str) -> bool:
    """Also in the form that a dual-stack socket has on a machine with IPv6: `::ffff:127.0.0.1`."""
    ip = ipaddress.ip_address(address)
    return ip.is_loopback or (ip.version == 6 and ip.ipv4_mapped is not None and ip.ipv4_mapped.is_loopback)


def _processes_of(stack: Stack) -> list[psutil.Process]:
    """Every process that carries the stack's state folder in its environment or command line."""
    found: list[psutil.Process] = []
    marks: tuple[Any, ...] = (str(stack.state),)
    for process in psutil.process_iter():
        try:
            text = " ".join([*process.cmdline(), *process.environ().values()])
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(mark in text for mark in marks):
            found.append(process)
    return found
