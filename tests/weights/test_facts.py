"""Facts beside the loop: off the hub by a few kilobytes, off the disk, kept by commit, and never believed."""

import asyncio
import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_server import Flip, Hub, IgnoreRange, Reset, Slow, Stall, Status

from reconciler.core.choose_files import INDEX, Rules
from reconciler.core.fit.facts import Facts, FactsState, Place, facts_from_json, facts_to_json
from reconciler.core.fit.tensors import Tensor
from reconciler.core.weights import Copy, Role
from reconciler.weights import errors, headers
from reconciler.weights.facts import FactsStore
from reconciler.weights.headers import ModelFilesError, look_of_folder, parse_header, read_folder

from .repository import CHUNK, CONFIG, SHARDS, Kit, model_files, safetensors
from .test_store import until

MODEL = model_files()
LARGE = 8 * CHUNK
Header = Mapping[str, Any]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_PAUSE_SECONDS", 0.01)


def store(kit: Kit, *, rules: Rules = Rules(), **options: Any) -> FactsStore:  # noqa: B008 -- immutable
    return FactsStore(kit.folder / "state", kit.client(), kit.cache, rules, **options)


async def look(kit: Kit, place: Place | None = None, **options: Any) -> FactsState:
    """As one sees it who starts now, and waits."""
    facts = store(kit, **options)
    place = kit.copy if place is None else place
    found = (await facts.look([place], patience=20))[place]
    await facts.close()
    return found


def known(state: FactsState) -> Facts:
    assert state.facts is not None, state.problem
    return state.facts


def entry(dtype: str, *shape: int, begin: int = 0, size: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}


def file_of(header: Any, *, data: int = 0, length: int | None = None) -> bytes:
    """A safetensors file with this header, and so many zeros behind it."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + bytes(data)


def sent(hub: Hub) -> int:
    """Bytes of safetensors that the hub sent."""
    return sum(each.bytes_sent for each in hub.requests if (each.file or "").endswith(".safetensors"))


def names(facts: Facts) -> set[str]:
    return {tensor.name for tensor in facts.tensors or ()}


def folder_of(path: Path, files: Mapping[str, bytes]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


# --- off the hub --------------------------------------------------------------------------------------------


async def test_a_sharded_model_costs_kilobytes(kit: Kit) -> None:
    """16 MiB of weights, of which the first 64 KiB of each file are asked for, and nothing is downloaded."""
    commit = kit.hub.repo("org/large", model_files(size=LARGE))
    kit.hub.clear()
    found = known(await look(kit, Copy("org/large", commit)))
    assert found.config == CONFIG
    assert found.tensors is not None
    assert set(found.tensors) == {Tensor("w0", "U8", (LARGE,)), Tensor("w1", "U8", (LARGE // 2,))}
    assert sent(kit.hub) == 2 * 64 * 1024
    assert [len(kit.hub.requests_for(shard, "GET")) for shard in SHARDS] == [1, 1]
    assert not kit.cache.root.exists()


async def test_a_single_file_with_a_long_header_takes_two_requests(kit: Kit) -> None:
    header = {f"layers.{n}.weight": entry("BF16", 2, begin=4 * n, size=4) for n in range(3000)}
    content = file_of(header, data=12_000 + LARGE)
    length = struct.unpack_from("<Q", content)[0]
    commit = kit.hub.repo("org/one", {"config.json": b"{}", "model.safetensors": content})
    found = known(await look(kit, Copy("org/one", commit)))
    assert names(found) == set(header)
    assert {(tensor.dtype, tensor.shape) for tensor in found.tensors or ()} == {("BF16", (2,))}
    first, second = kit.hub.requests_for("model.safetensors", "GET")
    assert second.range_start == first.bytes_sent
    assert sent(kit.hub) == length + 8


async def test_only_what_vllm_would_load_is_read(kit: Kit) -> None:
    """Another precision, Mistral's own form, a module of sentence-transformers: no part of it."""
    files = {
        "config.json": b"{}",
        "model.safetensors": safetensors(100, 0),
        "model.fp32.safetensors": safetensors(100, 1),
        "consolidated.safetensors": safetensors(100, 2),
        "2_Dense/model.safetensors": safetensors(100, 3),
    }
    commit = kit.hub.repo("org/many", files)
    assert names(known(await look(kit, Copy("org/many", commit)))) == {"w0"}
    mistral = {"config.json": b"{}", "consolidated.safetensors": safetensors(100, 2)}
    commit = kit.hub.repo("org/mistral", mistral)
    assert names(known(await look(kit, Copy("org/mistral", commit)))) == {"w2"}


async def test_without_safetensors_the_config_must_do(kit: Kit) -> None:
    copy = Copy("org/old", kit.hub.repo("org/old", {"config.json": b'{"a": 1}', "pytorch_model.bin": b"pickle"}))
    found = await look(kit, copy)
    assert found.facts is None
    assert "RECONCILE_ALLOW_PICKLE" in found.problem
    allowed = known(await look(kit, copy, rules=Rules(allow_pickle=("org/*",))))
    assert (allowed.config, allowed.tensors) == ({"a": 1}, None)
    # And so it is read back.
    assert known(await look(kit, copy, ask_hub=False)).tensors is None


async def test_an_adapter(kit: Kit) -> None:
    files = {
        "adapter_config.json": b'{"r": 8}',
        "adapter_model.safetensors": safetensors(LARGE, 3),
        "config.json": b'{"of": "the base"}',
    }
    copy = Copy("org/lora", kit.hub.repo("org/lora", files), Role.ADAPTER)
    found = known(await look(kit, copy))
    assert (found.config, found.tensors) == ({"r": 8}, (Tensor("w3", "U8", (LARGE,)),))
    assert sent(kit.hub) < 100_000
    local = known(await look(kit, str(folder_of(kit.folder / "lora", files))))
    assert (local.config, local.tensors) == (found.config, found.tensors)


async def test_what_a_copy_on_disk_is_the_model_file_says(kit: Kit) -> None:
    """One repository can be a model and hold an adapter, too."""
    files = {
        "adapter_config.json": b'{"r": 8}',
        "adapter_model.safetensors": safetensors(10, 1),
        "config.json": b'{"a": 1}',
        "model.safetensors": safetensors(10, 2),
    }
    folder_of(kit.cache.snapshot("org/both", "c" * 40), files)
    for role, config, tensor in ((Role.MODEL, {"a": 1}, "w2"), (Role.ADAPTER, {"r": 8}, "w1")):
        found = known(await look(kit, Copy("org/both", "c" * 40, role), offline=True))
        assert (found.config, names(found)) == (config, {tensor})


@pytest.mark.parametrize("large_header", [False, True])
async def test_a_server_without_ranges_is_cut_off(kit: Kit, *, large_header: bool) -> None:
    """It sends the file from its beginning; not much more of it is read than was asked for."""
    header = {"w": entry("U8", LARGE, size=LARGE)}
    if large_header:
        header["__metadata__"] = {"note": "x" * 200_000}
    copy = Copy(
        "org/one",
        kit.hub.repo("org/one", {"config.json": b"{}", "model.safetensors": file_of(header, data=LARGE)}),
    )
    kit.hub.fault(IgnoreRange(), path="*.safetensors", times=None)
    assert known(await look(kit, copy)).tensors == (Tensor("w", "U8", (LARGE,)),)
    assert sent(kit.hub) < LARGE // 2


async def test_what_passes_is_tried_again_at_once(kit: Kit) -> None:
    kit.hub.fault(Status(503), path="/api/*", times=2)
    kit.hub.fault(Reset(after=100), path=SHARDS[0], times=1)
    kit.hub.fault(Stall(after=None, seconds=3), path=SHARDS[1], times=1)
    assert names(known(await look(kit))) == {"w0", "w1"}


async def test_a_few_files_at_once(kit: Kit) -> None:
    shards = {f"model-{n:02}.safetensors": safetensors(10, n) for n in range(40)}
    index = json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(shards)}}).encode()
    copy = Copy("org/forty", kit.hub.repo("org/forty", {"config.json": b"{}", INDEX: index, **shards}))
    kit.hub.fault(Stall(after=0, seconds=0.1), path="*.safetensors", times=None)
    began = time.monotonic()
    assert names(known(await look(kit, copy))) == {f"w{n}" for n in range(40)}
    assert 0.5 <= time.monotonic() - began < 3


# --- beside the loop ----------------------------------------------------------------------------------------


async def test_it_is_found_out_beside_the_loop_and_stays_the_same_object(kit: Kit) -> None:
    woken: list[bool] = []
    facts = store(kit)
    facts.wake = lambda: woken.append(True)
    kit.hub.fault(Stall(after=None, seconds=2), path=SHARDS[0], times=1)
    began = time.monotonic()
    assert await facts.look([kit.copy]) == {kit.copy: FactsState()}
    assert time.monotonic() - began < 1.5
    await until(lambda: woken)
    first = known((await facts.look([kit.copy]))[kit.copy])
    kit.hub.clear()
    for _ in range(3):
        assert known((await facts.look([kit.copy], patience=1))[kit.copy]) is first
    assert kit.hub.requests == []
    assert len(woken) == 1, "looking woke the loop, which looks again"
    await facts.close()


async def test_forgetting_drops_what_is_held_and_not_what_is_written(kit: Kit) -> None:
    local = str(folder_of(kit.folder / "local", {"config.json": b"{}"}))
    facts = store(kit)
    before = await facts.look([kit.copy, local], patience=10)
    facts.forget([local])
    assert kit.copy not in facts._facts
    assert (await facts.look([local], patience=10))[local].facts is before[local].facts
    kit.hub.clear()
    again = (await facts.look([kit.copy], patience=10))[kit.copy]
    assert known(again).config == CONFIG
    assert again.facts is not before[kit.copy].facts
    assert kit.hub.requests == []
    await facts.close()


async def test_patience_ends_and_so_does_the_store_while_a_hub_hangs(kit: Kit) -> None:
    kit.hub.fault(Slow(2000), path="*.safetensors", times=None)
    facts = store(kit)
    began = time.monotonic()
    assert (await facts.look([kit.copy], patience=0.3))[kit.copy] == FactsState()
    await facts.close()
    assert time.monotonic() - began < 5
    # Nor does a thread go on reading, for which the end of the process would wait.
    await until(lambda: not any(thread.name.startswith("facts-hub") for thread in threading.enumerate()), 3)


async def test_a_hub_that_hangs_does_not_hold_up_the_disk(kit: Kit) -> None:
    kit.hub.fault(Stall(after=None, seconds=5), times=None)
    copies = [Copy(f"org/m{n}", "a" * 40) for n in range(20)]
    local = str(folder_of(kit.folder / "local", {"config.json": b"{}"}))
    facts = store(kit)
    await facts.look([*copies, local])
    await until(lambda: local in facts._facts, 2)
    assert (await facts.look([local]))[local].facts is not None
    await facts.close()


# --- what goes wrong ----------------------------------------------------------------------------------------


async def test_a_gated_model_is_a_problem_that_waits_and_can_be_forgiven(kit: Kit) -> None:
    copy = Copy("org/closed", kit.hub.repo("org/closed", MODEL, gated=True))
    now = [1000.0]
    facts = store(kit, clock=lambda: now[0])
    found = (await facts.look([copy], patience=5))[copy]
    assert "is gated: accept its terms" in found.problem
    assert found.retry_at == 1030.0
    kit.hub.clear()
    assert (await facts.look([copy], patience=5))[copy] == found
    assert kit.hub.requests == [], "it was asked again at once"
    now[0] = 1030.0
    assert (await facts.look([copy], patience=5))[copy].retry_at == 1090.0
    # Set back by a day: nobody waits for the clock to catch up.
    now[0] = 1030.0 - 86_400
    assert (await facts.look([copy], patience=5))[copy].retry_at == now[0] + 120.0
    kit.hub.repo("org/closed", MODEL, gated=False)
    facts.forgive()
    assert names(known((await facts.look([copy], patience=5))[copy])) == {"w0", "w1"}
    await facts.close()


async def test_a_hub_that_wants_us_to_slow_down_is_left_alone_for_so_long(kit: Kit) -> None:
    kit.hub.fault(Status(429, {"Retry-After": "600"}), times=None)
    found = await look(kit, clock=lambda: 0.0)
    assert "limits how often" in found.problem
    assert found.retry_at == 600.0
    assert len(kit.hub.requests) == 1


@pytest.mark.parametrize(("repo", "said"), [("org/none", "is not on the hub"), ("org/model", "has no revision")])
async def test_what_is_not_there(kit: Kit, repo: str, said: str) -> None:
    assert said in (await look(kit, Copy(repo, "b" * 40))).problem


async def test_a_hub_that_is_not_there(kit: Kit) -> None:
    kit.hub.close()
    assert "does not answer" in (await look(kit)).problem


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has 0 bytes"),
    "cut off in the length": (b"\x01\x02", "it has 2 bytes"),
    "a header as long as the world": (file_of(b"{}", length=2**63), "names a header of 9223372036854775808"),
    "a header longer than the file": (file_of(b"{}", length=3), "names a header of 3"),
    "no header": (file_of(b""), "no JSON"),
    "cut off in the header": (file_of(b'{"w": {"dtype'), "no JSON"),
    "a list": (file_of([]), "no JSON object"),
    "nested without end": (file_of(b"[" * 100_000), "no JSON"),
    "not in UTF-8": (file_of(b'{"\xff": 1}'), "no JSON"),
    "no entry": (file_of({"w": 3}), "no entry"),
    "another dtype": (file_of({"w": entry("F7", 1, size=1)}, data=1), "dtype F7 is not known"),
    "no dtype": (file_of({"w": {**entry("U8", 1, size=1), "dtype": ["U8"]}}, data=1), "no dtype"),
    "a negative shape": (file_of({"w": entry("U8", -1, -1, size=1)}, data=1), "no shape"),
    "a true shape": (file_of({"w": {**entry("U8", size=1), "shape": [True]}}, data=1), "no shape"),
    "a huge shape": (file_of({"w": entry("U8", 2**40, 2**40, size=1)}, data=1), "no shape"),
    "a nested shape": (
        file_of(b'{"w": {"dtype": "U8", "data_offsets": [0, 0], "shape": ' + b"[" * 500 + b"]" * 500 + b"}}"),
        "no shape",
    ),
    "more than it holds": (file_of({"w": entry("F32", 1000, 1000, size=4)}, data=4), "not those of its shape"),
    "outside of the file": (file_of({"w": entry("F32", 10, 10, size=400)}, data=4), "outside of the file"),
    "no place": (file_of({"w": {"dtype": "U8", "shape": [0]}}), "no place"),
    "a place in words": (
        file_of({"w": {**entry("U8", 1, size=1), "data_offsets": ["0", "1"]}}, data=1),
        "no place",
    ),
    "half a surrogate": (file_of(b'{"\\ud800": 1}'), "cannot be printed"),
    "an endless number": (file_of(b'{"w": ' + b"9" * 5000 + b"}"), "no JSON"),
}


@pytest.mark.parametrize("kind", list(LIES))
async def test_a_header_that_lies_is_a_problem_in_words(kit: Kit, kind: str) -> None:
    """Off the hub and off the disk alike."""
    content, said = LIES[kind]
    files = {"config.json": b"{}", "model.safetensors": content}
    copy = Copy("org/lies", kit.hub.repo("org/lies", files))
    remote = await look(kit, copy)
    local = await look(kit, str(folder_of(kit.folder / "lies", files)))
    for state, where in ((remote, str(copy)), (local, str(kit.folder / "lies"))):
        assert state.facts is None
        assert said in state.problem
        assert state.problem.startswith(where)
        assert "model.safetensors is no safetensors file" in state.problem
        assert "fetch it again" in state.problem
        assert state.retry_at is not None
    assert sent(kit.hub) <= len(content)


async def test_headers_without_end_are_not_read(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_HEADERS", 300_000)
    content = file_of({"__metadata__": {"note": "x" * 200_000}})
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
    files = {"config.json": b"{}", INDEX: index, SHARDS[0]: content, SHARDS[1]: content}
    local = folder_of(kit.folder / "endless", files)
    with pytest.raises(ModelFilesError, match="no known one has"):
        read_folder(local)
    assert "no known one has" in (await look(kit, Copy("org/endless", kit.hub.repo("org/endless", files)))).problem
    monkeypatch.setattr(headers, "_MAX_TENSORS", 10)
    with pytest.raises(ModelFilesError, match="more than 10 tensors"):
        parse_header(b"[" * 31, 100, "it")
    monkeypatch.setattr(headers, "MAX_FILES", 1)
    with pytest.raises(ModelFilesError, match="2 files of weights"):
        read_folder(local)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../b.safetensors", "", "..", "a\\b", "a\0b"]
)
async def test_an_index_that_leads_out_is_refused(kit: Kit, name: str) -> None:
    """CVE-2026-69112."""
    files = {**MODEL, INDEX: json.dumps({"weight_map": {"w0": SHARDS[0], "w1": name}}).encode()}
    for path in ("original/consolidated.00.pth", "onnx/model.onnx"):
        del files[path]
    copy = Copy("org/evil", kit.hub.repo("org/evil", files))
    kit.hub.clear()
    assert "leads out" in (await look(kit, copy)).problem
    assert sent(kit.hub) == 0
    assert "leads out of the folder" in (await look(kit, str(folder_of(kit.folder / "evil", files)))).problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe\xfd", "is no JSON"),
        (b'"' + b"x" * (16 * CHUNK) + b'"', "more than 16.0 MiB"),
    ],
)
async def test_a_config_that_is_none(kit: Kit, content: bytes, said: str) -> None:
    files = {"config.json": content, "model.safetensors": safetensors(10, 0)}
    for place in (
        Copy("org/odd", kit.hub.repo("org/odd", files)),
        str(folder_of(kit.folder / "odd", files)),
    ):
        found = await look(kit, place)
        assert said in found.problem
        assert "config.json" in found.problem


async def test_a_config_that_was_changed_on_the_way_is_not_believed(kit: Kit) -> None:
    kit.hub.fault(Flip(3), path="config.json", times=None)
    assert "other content than the hub listed" in (await look(kit)).problem


async def test_a_model_in_mistrals_form_alone_has_no_config(kit: Kit) -> None:
    files = {"params.json": b"{}", "consolidated.safetensors": safetensors(10, 0)}
    found = await look(kit, Copy("org/params", kit.hub.repo("org/params", files)))
    assert "has no config.json" in found.problem


# --- the cache on disk, and offline -------------------------------------------------------------------------


async def test_offline_what_is_in_the_cache_does(kit: Kit) -> None:
    kit.fetch()
    online = known(await look(kit, read_only=True))
    kit.hub.clear()
    offline = known(await look(kit, offline=True, read_only=True))
    assert (offline.config, set(offline.tensors or ())) == (online.config, set(online.tensors or ()))
    assert kit.hub.requests == []


async def test_what_is_in_the_cache_is_asked_of_nobody(kit: Kit) -> None:
    kit.fetch()
    kit.hub.clear()
    assert names(known(await look(kit))) == {"w0", "w1"}
    assert kit.hub.requests == []


@pytest.mark.parametrize("there", [(), ("config.json",), ("config.json", INDEX, SHARDS[0])])
async def test_a_part_of_a_copy_is_not_taken_for_the_whole(kit: Kit, there: tuple[str, ...]) -> None:
    """A download that is under way, or was stopped: offline it is a problem, else the hub says the rest."""
    folder_of(kit.cache.snapshot("org/model", kit.commit), {name: MODEL[name] for name in there})
    kit.hub.clear()
    found = await look(kit, offline=True, clock=lambda: 1000.0)
    assert found.facts is None
    assert found.problem
    assert found.retry_at == 1030.0
    unasked = await look(kit, ask_hub=False)
    assert unasked.facts is None
    assert kit.hub.requests == []
    assert names(known(await look(kit))) == {"w0", "w1"}


async def test_a_copy_that_may_be_a_part_does_only_offline_and_is_not_kept(kit: Kit) -> None:
    """Without an index nobody can tell by the disk alone whether more files belong to it."""
    files = {"config.json": b"{}", **{f"part-{n}.safetensors": safetensors(10, n) for n in range(2)}}
    copy = Copy("org/parts", kit.hub.repo("org/parts", files))
    folder_of(kit.cache.snapshot("org/parts", copy.commit), {name: files[name] for name in list(files)[:2]})
    assert names(known(await look(kit, copy, offline=True))) == {"w0"}
    assert names(known(await look(kit, copy))) == {"w0", "w1"}


async def test_a_damaged_copy_is_read_off_the_hub_instead(kit: Kit) -> None:
    kit.fetch()
    blob = (kit.cache.snapshot("org/model", kit.commit) / SHARDS[0]).resolve()
    blob.write_bytes(b"\xff" * 100)
    assert "no safetensors file" in (await look(kit, offline=True)).problem
    assert names(known(await look(kit))) == {"w0", "w1"}


async def test_who_may_not_ask_knows_nothing_and_wakes_nobody(kit: Kit) -> None:
    woken: list[bool] = []
    facts = store(kit, ask_hub=False)
    facts.wake = lambda: woken.append(True)
    kit.hub.clear()
    for _ in range(3):
        assert await facts.look([kit.copy], patience=5) == {kit.copy: FactsState()}
    assert (kit.hub.requests, woken) == ([], [])
    await facts.close()


# --- remembered ---------------------------------------------------------------------------------------------


def remembered(kit: Kit, role: str = "model") -> Path:
    return kit.folder / "state" / "facts" / f"org--model@{kit.commit}.{role}.json"


async def test_what_was_found_out_is_kept_for_the_next_start(kit: Kit) -> None:
    first = known(await look(kit))
    assert remembered(kit).stat().st_mode & 0o777 == 0o600
    kit.hub.close()
    again = known(await look(kit, offline=True))
    assert (again.config, set(again.tensors or ())) == (first.config, set(first.tensors or ()))


def _as(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(change(json.loads(content))).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-10],
        lambda _: b"",
        lambda _: b"\xff\x00",
        lambda _: b"[" * 100_000,
        lambda _: b"[]",
        _as(lambda data: {**data, "version": 0}),
        _as(lambda data: {**data, "config": []}),
        _as(lambda data: {key: value for key, value in data.items() if key != "tensors"}),
        _as(lambda data: {**data, "tensors": {}}),
        _as(lambda data: {**data, "tensors": [["U8", [1]]]}),
        _as(lambda data: {**data, "tensors": [["U9", [1], ["w"]]]}),
        _as(lambda data: {**data, "tensors": [["U8", [-1], ["w"]]]}),
        _as(lambda data: {**data, "tensors": [["U8", 1, ["w"]]]}),
        _as(lambda data: {**data, "tensors": [["U8", [1], "w"]]}),
        _as(lambda data: {**data, "tensors": [["U8", [1], [None]]]}),
    ],
)
async def test_a_damaged_file_reads_as_absent_and_is_mended(kit: Kit, damage: Callable[[bytes], bytes]) -> None:
    good = known(await look(kit))
    file = remembered(kit)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    kit.hub.clear()
    found = known(await look(kit))
    assert (found.config, set(found.tensors or ())) == (good.config, set(good.tensors or ()))
    assert kit.hub.requests
    assert json.loads(file.read_bytes()) is not None
    kit.hub.clear()
    assert known(await look(kit)).config == CONFIG
    assert kit.hub.requests == []


async def test_one_who_only_reads_writes_nothing(kit: Kit) -> None:
    assert names(known(await look(kit, read_only=True))) == {"w0", "w1"}
    assert not (kit.folder / "state").exists()
    assert not kit.cache.root.exists()


async def test_a_state_directory_that_cannot_be_written_is_no_problem(kit: Kit) -> None:
    (kit.folder / "state").write_bytes(b"a file")
    assert names(known(await look(kit))) == {"w0", "w1"}


def test_json_there_and_back() -> None:
    tensors = (Tensor("a", "BF16", (2, 3)), Tensor("ü", "F4", ()), Tensor("b", "BF16", (2, 3)))
    facts = Facts({"x": [1, {"y": None}], "s": "\ud800"}, tensors)
    text = json.dumps(facts_to_json(facts))
    back = facts_from_json(json.loads(text.encode("ascii")))
    assert back.config == facts.config
    assert set(back.tensors or ()) == set(tensors)
    assert facts_from_json(facts_to_json(Facts({}, None))).tensors is None
    assert back != facts, "facts are compared by identity"


# --- local folders ------------------------------------------------------------------------------------------


def change_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a": 2}')


def change_in_place(folder: Path) -> None:
    """The same size: only the time tells."""
    with (folder / "config.json").open("r+b") as file:
        file.write(b'{"a": 3}')


def change_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(safetensors(2000, 7))


def change_by_rename(folder: Path) -> None:
    """Neither size nor time tells: only the inode does."""
    old = (folder / "model.safetensors").stat()
    (folder / "new").write_bytes(safetensors(1000, 8))
    os.utime(folder / "new", ns=(old.st_atime_ns, old.st_mtime_ns))
    (folder / "new").replace(folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_size == old.st_size


def change_to_shards(folder: Path) -> None:
    (folder / SHARDS[0]).write_bytes(safetensors(10, 1))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w1": SHARDS[0]}}))


@pytest.mark.parametrize(
    "change", [change_config, change_in_place, change_weights, change_by_rename, change_to_shards]
)
async def test_changes_in_a_folder_are_seen(kit: Kit, change: Callable[[Path], None]) -> None:
    folder = folder_of(
        kit.folder / "local", {"config.json": b'{"a": 1}', "model.safetensors": safetensors(1000, 0)}
    )
    place, woken = str(folder), list[bool]()
    facts = store(kit)
    facts.wake = lambda: woken.append(True)
    first = known((await facts.look([place], patience=5))[place])
    (folder / "README.md").write_text("of no matter")
    for _ in range(3):
        assert known((await facts.look([place], patience=5))[place]) is first
    assert len(woken) == 1
    change(folder)
    # A turn that does not wait has the old ones, and is woken for the new.
    assert known((await facts.look([place]))[place]) is first
    await until(lambda: len(woken) == 2)
    second = known((await facts.look([place], patience=5))[place])
    whole = read_folder(folder)
    assert (second.config, second.tensors) == (whole.config, whole.tensors)
    assert (second.config, second.tensors) != (first.config, first.tensors)
    assert not (kit.folder / "state").exists()
    await facts.close()


async def test_a_folder_that_is_broken_and_mended(kit: Kit) -> None:
    """A problem is told once, and gone as soon as the folder looks otherwise, whatever the pause."""
    folder, woken, now = kit.folder / "local", list[bool](), [1000.0]
    place = str(folder)
    facts = store(kit, clock=lambda: now[0])
    facts.wake = lambda: woken.append(True)
    found = (await facts.look([place], patience=5))[place]
    assert found.problem == f"{place}: No such file or directory; check the path and its permissions"
    for _ in range(3):
        assert (await facts.look([place], patience=5))[place] == found
    assert len(woken) == 1
    folder_of(folder, {"config.json": b"{"})
    assert "is no JSON" in (await facts.look([place], patience=5))[place].problem
    folder_of(folder, {"config.json": b"{}"})
    assert known((await facts.look([place], patience=5))[place]).tensors is None
    await facts.close()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), None),
        (("model.safetensors", "model.fp32.safetensors", "consolidated.safetensors"), {"w0"}),
        (("a.safetensors", "b.safetensors", "consolidated.safetensors"), {"w0", "w1"}),
        (("consolidated-1.safetensors", "consolidated-2.safetensors"), {"w0", "w1"}),
    ],
)
def test_which_files_of_a_folder_are_the_model(
    tmp_path: Path, files: tuple[str, ...], expected: set[str] | None
) -> None:
    folder = folder_of(
        tmp_path / "m", {"config.json": b"{}", **{name: safetensors(10, n) for n, name in enumerate(files)}}
    )
    found = read_folder(folder)
    assert (None if found.tensors is None else names(found)) == expected


def test_what_two_files_hold_counts_once(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "a.safetensors": safetensors(10, 0), "b.safetensors": safetensors(10, 0)}
    assert read_folder(folder_of(tmp_path / "m", files)).tensors == (Tensor("w0", "U8", (10,)),)


def test_a_folder_that_lacks_files_of_its_index(tmp_path: Path) -> None:
    files = {"config.json": b"{}", INDEX: json.dumps({"weight_map": {"w": "a.safetensors"}}).encode()}
    folder = folder_of(tmp_path / "m", files)
    with pytest.raises(ModelFilesError, match=r"names 'a\.safetensors', which is not there: fetch the rest"):
        read_folder(folder)
    (folder / "a.safetensors").symlink_to(folder / "nowhere")
    with pytest.raises(ModelFilesError, match="which is not there"):
        read_folder(folder)
    assert {row[0] for row in look_of_folder(folder)} == {"config.json", INDEX}


@pytest.mark.parametrize(
    "index", [b"{}", b'{"weight_map": {}}', b'{"weight_map": {"w": 1}}', b'{"weight_map": []}']
)
def test_an_index_that_is_none(tmp_path: Path, index: bytes) -> None:
    folder = folder_of(tmp_path / "m", {"config.json": b"{}", INDEX: index, "a.safetensors": safetensors(1, 0)})
    with pytest.raises(ModelFilesError, match="is no index of weights"):
        read_folder(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "n\0l"):
        with pytest.raises(ModelFilesError, match="check the path"):
            read_folder(path)
        assert look_of_folder(path) == ()
    with pytest.raises(ModelFilesError, match=r"has no config\.json"):
        read_folder(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelFilesError, match=r"has no config\.json"):
        read_folder(tmp_path)


async def test_a_large_model_does_not_hold_up_the_loop(kit: Kit) -> None:
    """60,000 tensors in 40 files, read off the disk, written, and read back, while the loop goes on."""
    per_file, files = 1500, {"config.json": json.dumps(CONFIG).encode()}
    for n in range(40):
        rows = {
            f"model.layers.{n}.mlp.experts.{e}.down_proj.weight": entry("U8", 7, 3, begin=21 * e, size=21)
            for e in range(per_file)
        }
        files[f"model-{n:05}.safetensors"] = file_of(rows, data=21 * per_file)
    weight_map = {name: name for name in files if name.endswith(".safetensors")}
    files[INDEX] = json.dumps({"weight_map": weight_map}).encode()
    folder_of(kit.cache.snapshot("org/model", kit.commit), files)
    for least in (10, 3):
        facts = store(kit, ask_hub=False)
        await facts.look([kit.copy])
        turns = 0
        while facts._looking:
            await asyncio.sleep(0.001)
            turns += 1
        assert len(names(known((await facts.look([kit.copy]))[kit.copy]))) == 60_000
        assert turns >= least
        await facts.close()
        shutil.rmtree(kit.cache.root, ignore_errors=True)
