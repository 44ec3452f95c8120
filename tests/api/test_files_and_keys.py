"""Changing model files and keys through the API."""

import time

import httpx
import pytest

from reconciler.api.answers import Answers
from reconciler.core.keys import Scope
from reconciler.loop.by_hand import CommandRefusedError

from .reconciler_here import FILES, Here


async def test_a_file_is_changed_by_whoever_saw_it(here: Here, api: httpx.AsyncClient) -> None:
    seen = (await api.get("/api/v1/files/models.d/base.yaml")).json()
    assert seen["text"] == FILES["base"]
    text = FILES["base"].replace("1024", "2048")
    path, match = "/api/v1/files/base.yaml", {"If-Match": f'"{seen["digest"]}"'}
    preview = (await api.put(path, json={"text": text}, headers=match, params={"dry_run": True})).json()
    assert ("+engine: {max_model_len: 2048" in preview["diff"], preview["written"]) == (True, False)
    assert (here.models / "base.yaml").read_text() == FILES["base"]
    done = (await api.put(path, json={"text": text}, headers=match)).json()
    assert done["written"]
    assert (here.models / "base.yaml").read_text() == text
    assert (here.state / done["backup"]).read_text() == FILES["base"]
    again = await api.put(path, json={"text": text + "\n"}, headers=match)
    assert again.status_code == 412
    assert (await api.put(path, json={"text": text})).status_code == 412  # There is one, which nobody named.


async def test_a_new_file_and_its_removal(here: Here, api: httpx.AsyncClient) -> None:
    path = "/api/v1/files/new.yaml"
    assert (await api.put(path, json={"text": FILES["base"]})).json()["written"]
    listed = (await api.get("/api/v1/files")).json()["files"]
    assert [each["path"] for each in listed] == [
        f"models.d/{name}.yaml" for name in ("base", "big", "new", "qwen")
    ]
    assert (await api.delete(path)).status_code == 412
    match = {"If-Match": (await api.get(path)).json()["digest"]}
    assert not (await api.delete(path, headers=match, params={"dry_run": True})).json()["written"]
    assert (await api.delete(path, headers=match)).json()["written"]
    assert not (here.models / "new.yaml").exists()
    assert (await api.get(path)).status_code == 404
    assert (await api.delete(path, headers=match)).status_code == 404


async def test_a_file_with_mistakes_is_refused_by_line(here: Here, api: httpx.AsyncClient) -> None:
    wrong = {"text": "source: {repo: o/m}\nengine: {max_model_len: many}\n"}
    preview = (await api.put("/api/v1/files/w.yaml", json=wrong, params={"dry_run": True})).json()
    assert preview["problems"][0].startswith("models.d/w.yaml:2:")
    answer = await api.put("/api/v1/files/w.yaml", json=wrong)
    assert (answer.status_code, "w.yaml:2:" in answer.json()["error"]) == (422, True)
    assert not (here.models / "w.yaml").exists()


@pytest.mark.parametrize(
    "path", ["../x.yaml", "a/b.yaml", ".x.yaml", "x.txt", "..%2F..%2Fx.yaml", "%00.yaml", "x"]
)
async def test_nothing_outside_the_folder(here: Here, api: httpx.AsyncClient, path: str) -> None:
    answer = await api.put(f"/api/v1/files/{path}", json={"text": "a: 1"})
    assert answer.status_code in (400, 404, 405)
    assert sorted(each.name for each in here.models.iterdir()) == ["base.yaml", "big.yaml", "qwen.yaml"]


async def test_the_page_changes_a_models_file_by_the_models_name(here: Here) -> None:
    answers = Answers(here.context)
    digest = (await here.context.edits.read("qwen.yaml")).digest
    text = FILES["qwen"].replace("1024", "2048")
    assert "2048" in (await answers.edit_preview("chat", text, digest)).diff
    assert (await answers.edit("chat", text, digest, author="ann")).written
    for change in (
        answers.edit("chat", text + "\n", digest, author="ann"),
        answers.remove("chat", digest, author="ann"),
    ):
        with pytest.raises(CommandRefusedError, match="changed by somebody else") as refused:
            await change
        assert refused.value.status == 409
    digest = (await here.context.edits.read("qwen.yaml")).digest
    assert (await answers.remove("chat", digest, author="ann")).written
    assert not (here.models / "qwen.yaml").exists()


async def test_a_key_is_made_shown_once_and_revoked(here: Here, api: httpx.AsyncClient) -> None:
    asked = {"name": "ci", "models": ["qwen"], "requests_per_minute": 60, "expires": time.time() + 3600}
    answer = await api.post("/api/v1/keys", json=asked)
    assert answer.status_code == 201
    made = answer.json()
    kept = here.kept(made["secret"])
    assert kept.scopes == {Scope.INFERENCE}
    assert (kept.models, kept.requests_per_minute) == (frozenset({"qwen"}), 60)
    listed = await api.get("/api/v1/keys")
    assert made["secret"] not in listed.text
    assert kept.digest not in listed.text
    assert listed.json()["keys"][-1] == made["key"]
    assert (await api.post("/api/v1/keys", json=asked)).status_code == 409
    gone = (await api.delete(f"/api/v1/keys/{made['key']['fingerprint']}")).json()
    assert gone["revoked"] is not None
    assert here.keys.ring().find(made["secret"], time.time()) is None
    assert (await api.delete("/api/v1/keys/ci")).status_code == 404


async def test_keys_that_cannot_be_kept_are_a_problem(
    here: Here, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reconciler.host.key_file.write_atomic", full)
    answer = await api.post("/api/v1/keys", json={"name": "x"})
    assert (answer.status_code, "No space left" in answer.json()["error"]) == (500, True)
