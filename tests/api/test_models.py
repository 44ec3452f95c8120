"""What the API says of models, the plan and the cluster, and what its commands do."""

import dataclasses
import json
from pathlib import Path

import httpx
import pytest

from reconciler.api.answers import Answers
from reconciler.api.serve_status import log_files, shown
from reconciler.api.views import cluster_view, model_list
from reconciler.core.rollback import ALL
from reconciler.core.state import Device, Node, Replica
from reconciler.loop.by_hand import CommandRefusedError
from reconciler.loop.journal import read
from reconciler.loop.status import statuses

from .reconciler_here import Here

GIB = 2**30


async def models(api: httpx.AsyncClient) -> dict[str, dict[str, object]]:
    answer = await api.get("/api/v1/models")
    assert answer.status_code == 200
    return {row["name"]: row for row in answer.json()["models"]}


async def test_both_states_apart_with_the_reason(here: Here, api: httpx.AsyncClient) -> None:
    (here.models / "broken.yaml").write_text("source: {repo: o/m}\nengine: {max_model_len: many}\n")
    await here.loop.turn()
    found = await models(api)
    assert set(found) == {"base", "qwen", "org/big", "broken"}
    base, broken = found["base"], found["broken"]
    assert base["desired"]["application"] == base["actual"]["application"]  # type: ignore[index]
    assert (base["actual"]["state"], base["sync"]) == ("loaded", "in sync")  # type: ignore[index]
    assert (broken["desired"], broken["sync"], broken["actual"]["state"]) == (None, "invalid", "failed")  # type: ignore[index]
    assert found["qwen"]["reason"] == "on demand: a request loads it"
    answer = (await api.get("/api/v1/models")).json()
    assert answer["problems"][0].startswith("models.d/broken.yaml:2:")


async def test_the_command_line_shows_the_same(here: Here) -> None:
    assert here.loop.last is not None
    rows = {each.model: each.row() for each in statuses(here.loop.last)}
    listed = {each.name: each for each in model_list(here.loop.last, {}).models}
    assert rows.keys() == listed.keys()
    for name, row in rows.items():
        view = listed[name]
        assert (row["state"], row["sync"], row["health"]) == (view.actual.state, view.sync, view.actual.health)
        assert row["application"] == view.actual.application
        assert row["policy"] == (view.desired.policy if view.desired else None)


async def test_one_model_in_full_also_by_an_alias_and_with_a_slash(here: Here, api: httpx.AsyncClient) -> None:
    detail = (await api.get("/api/v1/models/chat")).json()
    assert (detail["name"], detail["spec"]["lifecycle"]["policy"]) == ("qwen", "on_demand")
    assert detail["text"] == (here.models / "qwen.yaml").read_text()
    assert detail["engine"]["import_path"] == "ray.serve.llm:build_openai_app"
    assert (await api.get("/api/v1/models/org/big")).json()["name"] == "org/big"
    assert (await api.get("/api/v1/models/org%2Fbig")).json()["name"] == "org/big"
    answer = await api.get("/api/v1/models/qwne")
    assert (answer.status_code, answer.json()["near"]) == (404, ["qwen"])


async def test_load_pin_unload_and_what_became_of_it(here: Here, api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/models/chat/load", json={"seconds": 600})
    assert answer.json()["model"] == "qwen"
    assert answer.json()["until"] == pytest.approx(here.loop.world.now + 600, abs=5)
    assert here.loop.wakes == 0  # The store wakes the loop that it was given; this one takes turns when told.
    await here.loop.reconcile_now(here.loop.options)
    qwen = (await models(api))["qwen"]
    assert qwen["actual"]["state"] == "loaded"  # type: ignore[index]
    assert qwen["override"]["kind"] == "load"  # type: ignore[index]
    assert qwen["last"]["what"] == "load"  # type: ignore[index]
    history = (await api.get("/api/v1/history", params={"model": "qwen", "limit": 3})).json()["entries"]
    assert history[0] == qwen["last"]
    assert history[0]["text"].startswith("qwen load: ")
    assert (await api.post("/api/v1/models/qwen/unload")).status_code == 200
    refused = await api.post("/api/v1/models/base/unload")
    assert refused.status_code == 409
    assert "pinned by its file" in refused.json()["error"]
    assert (await api.post("/api/v1/models/qwen/load", json={"seconds": "soon"})).status_code == 422
    assert (await api.post("/api/v1/models/qwen/load", json={"hours": 1})).status_code == 422


async def test_suspend_and_resume_one_and_all(here: Here, api: httpx.AsyncClient) -> None:
    done = (await api.post("/api/v1/models/base/suspend", json={"reason": "by me"})).json()
    assert (done["model"], "by me" in done["text"]) == ("base", True)
    await here.loop.turn()
    assert "by me" in str((await models(api))["base"]["suspended"])
    assert (await api.post("/api/v1/models/base/resume")).status_code == 200
    assert (await api.post("/api/v1/models/base/resume")).status_code == 409
    assert (await api.post("/api/v1/suspend", json={"seconds": 60})).json()["model"] is None
    assert [each.model for each in here.loop.suspensions.active()] == [ALL]
    assert (await api.post("/api/v1/resume")).json()["text"] == "1 suspensions have ended"


async def test_rollback_to_the_version_before_and_its_end(here: Here, api: httpx.AsyncClient) -> None:
    before = (here.models / "base.yaml").read_text()
    (here.models / "base.yaml").write_text(before.replace("1024", "2048"))
    answer = await api.post("/api/v1/reconcile")
    assert answer.json()["plan"]["settled"] is True
    done = (await api.post("/api/v1/models/base/rollback", json={"reason": "worse"})).json()
    assert done["model"] == "base"
    await here.loop.reconcile_now(here.loop.options)
    assert (await api.get("/api/v1/models/base")).json()["spec"]["engine"]["max_model_len"] == 1024
    assert (await api.post("/api/v1/models/base/rollback", json={"end": True})).status_code == 200
    assert (await api.post("/api/v1/models/base/rollback", json={"end": True})).status_code == 409
    assert (await api.post("/api/v1/models/nobody/rollback")).status_code == 409
    assert (await api.post("/api/v1/models/bas/rollback")).json()["near"] == ["base"]


async def test_pull_says_what_there_is_to_fetch(api: httpx.AsyncClient) -> None:
    assert "nothing to fetch" in (await api.post("/api/v1/models/qwen/pull")).json()["text"]
    assert (await api.post("/api/v1/models/nobody/pull")).status_code == 404


async def test_a_plan_is_applied_only_while_it_is_the_plan(here: Here, api: httpx.AsyncClient) -> None:
    (here.models / "new.yaml").write_text((here.models / "base.yaml").read_text())
    seen = (await api.get("/api/v1/plan", params={"fresh": True})).json()
    assert [change["action"] for change in seen["plan"]["changes"]] == ["add"]
    assert "new" in seen["text"]
    (here.models / "more.yaml").write_text((here.models / "base.yaml").read_text())
    stale = await api.post("/api/v1/apply", json={"plan": seen["plan"]})
    assert (stale.status_code, "changed" in stale.json()["error"]) == (409, True)
    seen = (await api.get("/api/v1/plan", params={"fresh": True})).json()
    answer = await api.post("/api/v1/apply", json={"plan": seen["plan"]})
    assert (answer.status_code, answer.json()["plan"]["changes"]) == (200, [])
    assert (await models(api))["new"]["actual"]["state"] == "loaded"  # type: ignore[index]
    for plan in ({}, {"revision": "r"}, {**seen["plan"], "changes": [1]}, {**seen["plan"], "base": {}}):
        assert (await api.post("/api/v1/apply", json={"plan": plan})).status_code == 400


async def test_a_button_applies_the_plan_by_its_digests(here: Here) -> None:
    answers = Answers(here.context)
    base = (await answers.plan()).plan["base"]
    done = await answers.apply_plan(base["desired"], base["observed"])
    assert (done.text, here.loop.wakes) == ("it is being carried out", 1)
    with pytest.raises(CommandRefusedError, match="another one by now") as refused:
        await answers.apply_plan(base["desired"], "x")
    assert refused.value.status == 409


async def test_without_the_lease_nothing_is_written(
    here: Here, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here.lease, "holds", lambda: False)
    for path, body in (("reconcile", {}), ("apply", {"plan": (await api.get("/api/v1/plan")).json()["plan"]})):
        assert (await api.post(f"/api/v1/{path}", json=body)).status_code == 503, path


async def test_before_the_first_look_everything_says_so(here: Here, api: httpx.AsyncClient) -> None:
    here.loop.last = None
    for path in ("models", "models/qwen", "plan", "cluster", "source", "models/qwen/metrics", "models/qwen/logs"):
        answer = await api.get(f"/api/v1/{path}")
        assert (answer.status_code, "first look" in answer.json()["error"]) == (503, True), path


async def test_each_gpu_with_its_models_now_and_afterwards(here: Here) -> None:
    (here.models / "new.yaml").write_text((here.models / "base.yaml").read_text())
    devices = (Device(0, "GPU-a", "H100", 80 * GIB), Device(1, "GPU-b", "H100", 80 * GIB, foreign=GIB))
    observe = here.loop.world.observe

    def with_devices(desired: object) -> object:
        found = observe(desired)  # type: ignore[arg-type]
        apps = {
            name: dataclasses.replace(app, replicas=(Replica("r1", "RUNNING", 7, "n1"),))
            for name, app in found.applications.items()
        }
        nodes = (Node("n1", 2, 0, "H100", devices, "big-host"),)
        return dataclasses.replace(found, nodes=nodes, applications=apps)

    here.loop.world.observe = with_devices  # type: ignore[method-assign, assignment]
    look = await here.loop.look_apart()
    node = cluster_view(look).nodes[0]
    first, second = node.devices
    assert (node.host, first.total, second.foreign) == ("big-host", 80 * GIB, GIB)
    assert [(use.model, use.bytes, use.pending) for use in first.models] == [("base", 40 * GIB, "")]
    after = [(use.model, use.pending) for gpu in node.devices for use in gpu.after]
    assert after == [("base", ""), ("new", "coming")]
    base = next(each for each in model_list(look, {}).models if each.name == "base")
    replica = base.actual.replicas[0]
    assert (replica.id, replica.node, replica.gpus, replica.pid) == ("r1", "big-host", (0,), 7)


async def test_serve_itself_without_secrets(here: Here, api: httpx.AsyncClient) -> None:
    answer = (await api.get("/api/v1/serve")).json()["instance"]
    assert "RUNNING" in json.dumps(answer)
    instance = {
        "applications": {
            "a": {
                "message": "failed for hf_abcdefghijk",
                "deployed_app_config": {"runtime_env": {"env_vars": {"HF_TOKEN": "x1y2"}}, "api_key": "k9"},
                "deployments": {"d": {"replicas": [{"replica_id": "1", "log_file_path": "/serve/r.log"}, {}]}},
                "max_num_batched_tokens": 5,
            }
        }
    }
    text = json.dumps(shown(instance))
    assert not any(secret in text for secret in ("hf_abc", "x1y2", "k9"))
    assert shown(instance)["applications"]["a"]["max_num_batched_tokens"] == 5
    assert log_files(instance, "a") == {"1": "/serve/r.log"}
    assert log_files(instance, "b") == {}


async def test_the_rest(here: Here, api: httpx.AsyncClient) -> None:
    source = (await api.get("/api/v1/source")).json()
    assert (source["kind"], source["place"]) == ("folder", str(here.models))
    assert (await api.get("/api/v1/downloads")).json() == {"copies": [], "revisions": []}
    catalogue = (await api.get("/api/v1/catalogue", params={"query": "qwen3-0.6b"})).json()["models"]
    assert catalogue[0]["repo"] == "Qwen/Qwen3-0.6B"
    assert len((await api.get("/api/v1/catalogue")).json()["models"]) > 30
    assert (await api.post("/api/v1/sync")).json()["text"].startswith("the folder is watched")
    assert (await api.get("/api/v1/models/qwen/metrics")).json()["series"][0]["points"] == [1.0, None]
    assert (await api.get("/api/v1/models/org/big/metrics")).status_code == 404
    assert (await api.get("/api/v1/models/qwen/logs")).json() == {"lines": []}
    assert (await api.get("/api/v1/nothing")).json() == {"error": "Not Found", "near": []}
    answer = await api.patch("/api/v1/models")
    assert (answer.status_code, answer.json()["error"]) == (405, "Method Not Allowed")
    too_large = await api.post("/api/v1/suspend", content=b"x" * (4 * 2**20 + 1))
    assert too_large.status_code == 413


async def test_a_fault_of_ours_is_a_problem_and_logged(
    here: Here, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here.loop.source, "read", None)
    answer = await api.get("/api/v1/files")
    assert (answer.status_code, set(answer.json())) == (500, {"error", "near"})


async def test_the_journal_is_read_again_when_it_grows(here: Here, api: httpx.AsyncClient) -> None:
    entries = (await api.get("/api/v1/history", params={"limit": 1000})).json()["entries"]
    assert len(entries) == len(read(here.state)) > 0
    here.loop.journal.command("sync", "", "by a test")
    newest = (await api.get("/api/v1/history", params={"limit": 1})).json()["entries"][0]
    assert newest["what"] == "sync"
    folder: Path = here.state / "journal"
    (folder / "journal.jsonl").unlink()
    (folder / "journal.jsonl").mkdir()
    assert (await api.get("/api/v1/history")).status_code == 500
