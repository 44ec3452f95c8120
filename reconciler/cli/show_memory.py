"""Memory as a person reads it: what a version takes, and each GPU as a bar, before and after a plan."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reconciler.core.plan import GpuUse, Memory
from reconciler.core.weights import in_words

_WIDTH = 20
_FULL, _FOREIGN, _EMPTY = "█", "▒", "░"
_BASIS = {
    "measured": "measured when it ran before",
    "tensors": "by its tensors",
    "config": "by its config alone",
}


def memory_in_words(memory: Memory) -> str:
    """One line: where, how much, of what, and how that is known."""
    if not memory.total:
        place = "main memory"
    else:
        share = "whole" if memory.gpus >= 1 else f"{memory.gpus:.0%} of it"
        place = f"{memory.ranks} x {memory.where} ({in_words(memory.total)}, {share})"
    surely = "" if memory.fits_safely else f", up to {in_words(memory.needed_safe)}"
    cache = f", KV cache {in_words(memory.kv_cache)} for {memory.kv_tokens:,} tokens" if memory.kv_cache else ""
    each = " each" if memory.ranks > 1 else ""
    return (
        f"{in_words(memory.needed)}{each}{surely} of {place}: weights {in_words(memory.weights)}{cache}, "
        f"context {memory.max_model_len:,}; {_BASIS[memory.basis]}"
    )


def show_gpus(out: Console, gpus: Sequence[GpuUse]) -> None:
    """A row for each GPU that a plan changes; of others, and of many, only how many there are."""
    changed = [gpu for gpu in gpus if gpu.before != gpu.after or gpu.failed]
    if not changed:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("GPU", "MEMORY", "BEFORE", "AFTER", "WITH"):
        table.add_column(heading, no_wrap=heading != "WITH", overflow="fold")
    for gpu in changed:
        name = f"{gpu.node} {gpu.index}" + (f" {gpu.name}" if gpu.name else "")
        if gpu.failed:
            table.add_row(f"[red]{escape(name)}[/]", _memory(gpu), "", "[red]failed[/]", escape(gpu.failed))
            continue
        table.add_row(
            escape(name),
            _memory(gpu),
            _bar(gpu.before, gpu.foreign),
            _bar(gpu.after, gpu.foreign),
            escape(", ".join(gpu.applications)),
        )
    out.print(table)
    if any(gpu.foreign for gpu in changed):
        out.print(f"[dim]{_FOREIGN} memory of processes that are not Ray's[/]")
    same = len(gpus) - len(changed)
    if same:
        out.print(f"[dim]{same} more GPU{'s' if same > 1 else ''} unchanged[/]")


def _memory(gpu: GpuUse) -> str:
    return in_words(gpu.total) if gpu.total else "?"


def _bar(taken: float, foreign: float) -> str:
    """`████████▒▒░░░░░░░░░░  50 %`: reserved, then foreign, then free."""
    ours = round(min(1.0, taken) * _WIDTH)
    others = min(_WIDTH - ours, round(foreign * _WIDTH))
    return f"{_FULL * ours}{_FOREIGN * others}{_EMPTY * (_WIDTH - ours - others)} {min(1.0, taken + foreign):4.0%}"
