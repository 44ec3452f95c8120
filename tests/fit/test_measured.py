"""Measurements: what they hold for, what an estimate takes from them, and the file they are kept in."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.fit.architecture import architecture_of
from reconciler.core.fit.engine import Engine, with_defaults
from reconciler.core.fit.estimate import estimate
from reconciler.core.fit.extras import Known
from reconciler.core.fit.gpus import GIB, gpu
from reconciler.core.fit.measured import (
    Key,
    Measured,
    entries_from_json,
    entries_to_json,
    key_of,
    known_of,
    look_up,
    updated,
)
from reconciler.core.fit.synthesis import parts_of_config
from reconciler.core.fit.tensors import Loading
from reconciler.core.state import Application, Json, Replica, Status
from reconciler.loop.measuring import FILE, Measuring
from reconciler.ray_serve.client import ServeClient

from . import configs

LOGS = Path(__file__).parents[1] / "unit" / "start_logs"
KEY = Key(
    "org/model@" + 40 * "a", "0.29.0", "h100-80g", 85 * 10**9, max_model_len=8192, max_num_batched_tokens=8192
)
FULL = Measured(
    weights=15 * GIB,
    activation=2 * GIB,
    graphs=GIB // 8,
    graphs_captured=GIB // 4,
    non_torch=GIB // 3,
    available_kv=50 * GIB,
    kv_tokens=400_000,
    load_seconds=61.0,
    at=100.0,
)


def config(*, env: dict[str, str] | None = None, **kwargs: Any) -> Json:
    llm = {"engine_kwargs": kwargs, "runtime_env": {"env_vars": {"RECONCILE_MODEL": "m", **(env or {})}}}
    return {"name": "m-1", "args": {"llm_configs": [llm]}}


def key(made: Json, engine: Engine | None = None) -> Key:
    found = key_of(made, model="m", vllm="0.29.0", gpu="l4", gpu_total=GIB, engine=engine)
    assert found is not None
    return found


# --- keys -------------------------------------------------------------------------------------------------


def test_a_key_says_what_a_measurement_holds_for() -> None:
    found = key(config(max_model_len=4096, tensor_parallel_size=2, dtype="float16", enforce_eager=True))
    assert found == Key(
        "m", "0.29.0", "l4", GIB, tensor_parallel=2, dtype="float16", max_model_len=4096, enforce_eager=True,
        rest=found.rest,
    )  # fmt: skip


def test_the_share_of_the_gpu_and_the_size_of_the_cache_are_no_part_of_it() -> None:
    plain = key(config(max_model_len=4096))
    assert key(config(max_model_len=4096, gpu_memory_utilization=0.5)) == plain
    assert key(config(max_model_len=4096, kv_cache_memory_bytes=GIB)) == plain


@pytest.mark.parametrize(
    "other",
    [
        config(max_model_len=8192),
        config(max_model_len=4096, max_num_seqs=8),
        config(max_model_len=4096, kv_cache_dtype="fp8"),
        config(max_model_len=4096, enable_lora=True),
        config(max_model_len=4096, env={"VLLM_ATTENTION_BACKEND": "FLASHINFER"}),
    ],
)
def test_every_other_setting_is(other: Json) -> None:
    assert key(other) != key(config(max_model_len=4096))


def test_variables_that_are_not_vllms_are_no_part_of_it() -> None:
    assert key(config(env={"RECONCILE_BASIS": "1234"})) == key(config())


def test_sizes_that_are_being_decided_are_looked_up_as_they_would_be_recorded() -> None:
    engine = Engine(max_model_len=4096, max_num_seqs=64, max_num_batched_tokens=2048, tensor_parallel=2)
    sizes: Json = {"max_model_len": 4096, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
    recorded = config(**sizes, tensor_parallel_size=2, pipeline_parallel_size=1, gpu_memory_utilization=0.83)
    assert key(config(max_model_len=512), engine) == key(recorded)


@pytest.mark.parametrize("wrong", [{}, {"args": []}, config(max_model_len="long"), config(max_num_seqs=[1])])
def test_a_configuration_that_makes_no_sense_has_no_key(wrong: Json) -> None:
    assert key_of(wrong, model="m", vllm="v", gpu="", gpu_total=0) is None


# --- looking up -------------------------------------------------------------------------------------------


def test_the_same_settings_give_everything() -> None:
    assert look_up({KEY: FULL}, KEY) == FULL
    assert known_of(FULL) == Known(15 * GIB, 2 * GIB, GIB // 8, GIB // 3)


@pytest.mark.parametrize(
    "changed",
    [
        replace(KEY, max_model_len=1024),
        replace(KEY, max_num_seqs=4),
        replace(KEY, max_num_batched_tokens=2048),
        replace(KEY, enforce_eager=True),
    ],
)
def test_with_another_context_or_a_smaller_batch_the_weights_are_still_known_and_only_they(changed: Key) -> None:
    found = look_up({KEY: FULL}, changed)
    assert found == Measured(weights=15 * GIB, at=100.0)
    assert known_of(found) == Known(weights=15 * GIB)


@pytest.mark.parametrize(
    "changed",
    [
        replace(KEY, model="org/model@" + 40 * "b"),
        replace(KEY, vllm="0.30.0"),
        replace(KEY, gpu="l4"),
        replace(KEY, tensor_parallel=2),
        replace(KEY, dtype="float16"),
        replace(KEY, quantization="fp8"),
        replace(KEY, rest="lora"),
        replace(KEY, max_num_batched_tokens=16384),  # some models hold buffers for the batch
    ],
)
def test_with_anything_else_changed_nothing_is_known(changed: Key) -> None:
    assert look_up({KEY: FULL}, changed) is None


def test_of_several_the_newest_weights_count() -> None:
    older, newer = replace(FULL, weights=1, at=1.0), replace(FULL, weights=2, at=2.0)
    entries = {replace(KEY, max_num_seqs=1): newer, replace(KEY, max_num_seqs=2): older}
    assert look_up(entries, KEY) == Measured(weights=2, at=2.0)


def test_a_start_on_the_cpu_says_nothing_that_an_estimate_takes() -> None:
    assert known_of(Measured(available_kv=GIB, kv_tokens=5, load_seconds=27.0)) is None


def test_with_several_stages_the_weights_stay_an_estimate() -> None:
    assert known_of(FULL, pipeline_parallel=2) == Known(activation=2 * GIB, cuda_graph=GIB // 8)


def test_a_cache_of_fixed_size_does_not_make_forget_what_was_profiled_before() -> None:
    fixed = Measured(weights=16 * GIB, available_kv=4 * GIB, at=200.0)
    assert updated(FULL, fixed) == replace(FULL, weights=16 * GIB, available_kv=4 * GIB, at=200.0)
    assert updated(None, fixed) == fixed


def test_an_estimate_takes_what_was_measured_off_the_cache_and_nothing_else() -> None:
    model, on = architecture_of(configs.QWEN3_06B), gpu("h100-80g")
    parts, engine = parts_of_config(model, Loading()), with_defaults(model, Engine(max_model_len=8192), on)
    guessed = estimate(model, parts, engine, on)
    found = estimate(model, parts, engine, on, known_of(FULL))
    assert found.available_kv.expected == guessed.requested - (15 * GIB + 2 * GIB + GIB // 8 + GIB // 3)
    assert found.available_kv.safe < found.available_kv.expected
    assert found.kv_tokens.expected < guessed.kv_tokens.expected


# --- the file ---------------------------------------------------------------------------------------------

SIZES = st.none() | st.integers(0, 2**60)
MEASURED = st.builds(
    Measured, weights=SIZES, activation=SIZES, graphs=SIZES, graphs_captured=SIZES, non_torch=SIZES,
    available_kv=SIZES, kv_tokens=SIZES, load_seconds=st.none() | st.floats(0, 1e12), at=st.floats(0, 1e12),
)  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS = st.builds(Key, NAMES, NAMES, NAMES, st.integers(0, 2**60), st.integers(0, 2**10), dtype=NAMES, rest=NAMES)


@given(st.dictionaries(KEYS, MEASURED, max_size=5))
def test_what_is_written_is_what_is_read(entries: dict[Key, Measured]) -> None:
    assert entries_from_json(json.loads(json.dumps(entries_to_json(entries)))) == entries


@pytest.mark.parametrize("data", [None, [], {}, {"version": 2, "entries": []}, {"version": 1, "entries": {}}])
def test_what_is_no_such_file_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="no measurements"):
        entries_from_json(data)


@pytest.mark.parametrize(
    "row",
    [
        7,
        {},
        {"key": asdict(KEY)},
        {"key": asdict(KEY), "measured": {"weights": -1}},
        {"key": asdict(KEY), "measured": {"weights": 2**70}},
        {"key": asdict(KEY), "measured": {"load_seconds": float("nan")}},
        {"key": {**asdict(KEY), "model": 2000 * "x"}, "measured": {}},
    ],
)
def test_a_row_that_makes_no_sense_is_left_out(row: object) -> None:
    rows = entries_to_json({KEY: FULL})["entries"]
    assert entries_from_json({"version": 1, "entries": [row, *rows]}) == {KEY: FULL}


class Logs(ServeClient):
    """A client whose logs are what a real engine printed."""

    def __init__(self, *names: str) -> None:
        super().__init__("http://127.0.0.1:1")
        self.asked: list[str] = []
        self._texts = [(LOGS / f"{name}.log").read_text(encoding="utf-8") for name in names]

    async def start_logs(self, actor_id: str, *, most: int = 2**20) -> list[str]:
        """Of any actor."""
        self.asked.append(actor_id)
        return [text[:most] for text in self._texts]


def application(state: str = "RUNNING") -> Application:
    replicas = (Replica("r0", "STOPPING", actor_id="old"), Replica("r1", state, actor_id="new"))
    return Application("m-1", Status.RUNNING, model="m", replicas=replicas)


async def test_a_measurement_is_kept_across_restarts_under_the_version_that_ran(tmp_path: Path) -> None:
    client = Logs("ray_replica", "ray_rank0", "ray_rank1")
    asked = replace(KEY, vllm="0.28.0")
    found = await Measuring(tmp_path, wall_clock=lambda: 7.0).measure(application(), asked, client)
    assert found == Measured(available_kv=GIB // 4, kv_tokens=1_048_576, load_seconds=27.0, at=7.0)
    assert client.asked == ["new"]
    again = Measuring(tmp_path)
    assert again.measured(KEY) == found
    assert again.measured(asked) is None
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


async def test_nothing_is_kept_where_the_logs_say_nothing(tmp_path: Path) -> None:
    measuring = Measuring(tmp_path)
    assert await measuring.measure(application(), KEY, Logs()) is None
    assert await measuring.measure(application("STARTING"), KEY, Logs("cpu")) is None
    assert not (tmp_path / FILE).exists()


async def test_known_is_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(entries_to_json({KEY: FULL})))
    measuring = Measuring(tmp_path)
    assert measuring.known(KEY) == known_of(FULL)
    assert measuring.known(replace(KEY, max_model_len=1)) == Known(weights=15 * GIB)
    assert measuring.known(replace(KEY, vllm="1")) is None


async def test_the_file_stays_small_and_the_oldest_make_room(tmp_path: Path) -> None:
    many = {replace(KEY, max_num_seqs=number): replace(FULL, at=float(number)) for number in range(500)}
    (tmp_path / FILE).write_text(json.dumps(entries_to_json(many)))
    measuring = Measuring(tmp_path, wall_clock=lambda: 1000.0)
    await measuring.measure(application(), replace(KEY, max_num_seqs=1), Logs("cpu"))
    await measuring.measure(application(), replace(KEY, max_num_seqs=900), Logs("cpu"))
    kept = entries_from_json(json.loads((tmp_path / FILE).read_text()))
    assert len(kept) == 500
    assert replace(KEY, max_num_seqs=0) not in kept  # the oldest
    assert kept[replace(KEY, max_num_seqs=1)].at == 1000.0  # measured again just now


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "\x00" * 10, '{"version": 1, "entries": [' + 5_000_000 * " "]
)
async def test_a_damaged_file_costs_only_what_it_held(tmp_path: Path, text: str) -> None:
    file = tmp_path / FILE
    file.write_text(text)
    measuring = Measuring(tmp_path)
    assert measuring.measured(KEY) is None
    assert (tmp_path / f"{FILE}.damaged").read_text() == text
    assert await measuring.measure(application(), KEY, Logs("cpu")) is not None
    assert Measuring(tmp_path).measured(KEY) is not None
