"""Memory in a plan, as a person reads it."""

import io
import re

import pytest
from rich.console import Console

from reconciler.cli.show_memory import memory_in_words, show_gpus
from reconciler.core.fit.gpus import GIB
from reconciler.core.plan import GpuUse, Memory

MEMORY = Memory(
    where="h100", total=80 * GIB, ranks=2, gpus=1.0, needed=70 * GIB, needed_safe=75 * GIB, weights=60 * GIB,
    kv_cache=5 * GIB, kv_tokens=12345, max_model_len=8192, basis="tensors", fits_safely=True,
)  # fmt: skip


def replaced(**changes: object) -> Memory:
    fields = {name: getattr(MEMORY, name) for name in MEMORY.__dataclass_fields__}
    return Memory(**{**fields, **changes})


def shown(*gpus: GpuUse) -> str:
    out = io.StringIO()
    show_gpus(Console(file=out, width=200, color_system=None), gpus)
    return out.getvalue()


def test_one_line_says_where_how_much_and_how_that_is_known() -> None:
    line = memory_in_words(MEMORY)
    assert line == (
        "70.0 GiB each of 2 x h100 (80.0 GiB, whole): weights 60.0 GiB, KV cache 5.0 GiB for 12,345 tokens, "
        "context 8,192; by its tensors"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fits_safely": False}, "70.0 GiB each, up to 75.0 GiB of"),
        ({"ranks": 1, "gpus": 0.25}, "70.0 GiB of 1 x h100 (80.0 GiB, 25% of it)"),
        ({"basis": "measured"}, "measured when it ran before"),
        ({"kv_cache": 0}, "weights 60.0 GiB, context"),
        ({"total": 0, "where": "main memory", "ranks": 1}, "70.0 GiB of main memory: weights"),
    ],
)
def test_what_differs_is_said(changes: dict[str, object], said: str) -> None:
    assert said in memory_in_words(replaced(**changes))


def test_bars_show_what_changes_and_count_the_rest() -> None:
    text = shown(
        GpuUse("box", 0, "H100", 80 * GIB, 0.25, 0.75, applications=("a-1", "b-2")),
        GpuUse("box", 1, "H100", 80 * GIB, 0.5, 0.5),
    )
    assert re.search(r"box 0 H100 +80\.0 GiB +█{5}░{15} +25% +█{15}░{5} +75% +a-1, b-2", text)
    assert "box 1" not in text
    assert "1 more GPU unchanged" in text


def test_memory_of_others_is_part_of_a_bar() -> None:
    text = shown(GpuUse("box", 0, "L4", 22 * GIB, 0.0, 0.5, foreign=0.25))
    assert "▒▒▒▒▒░░░░░░░░░░░░░░░  25%" in text
    assert "██████████▒▒▒▒▒░░░░░  75%" in text
    assert "not Ray's" in text


def test_a_failed_gpu_is_always_shown_with_its_reason() -> None:
    text = shown(GpuUse("box", 3, "L4", 22 * GIB, 0.0, 0.0, failed="it is lost: reboot"))
    assert "box 3 L4" in text
    assert "failed" in text
    assert "it is lost: reboot" in text


def test_where_nothing_changes_there_is_no_table() -> None:
    assert shown(GpuUse("box", 0, "L4", 22 * GIB, 0.5, 0.5)) == ""
