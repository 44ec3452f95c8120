"""What `reconcile fit` found, as a person reads it."""

from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from reconciler.cli.show import console
from reconciler.core.fit.advice import Advice
from reconciler.core.fit.architecture import Architecture
from reconciler.core.fit.estimate import Estimate
from reconciler.core.fit.gpus import GIB
from reconciler.core.fit.parallel import tensor_sizes
from reconciler.core.fit.report import TERMS
from reconciler.core.fit.terms import Term
from reconciler.core.main_memory import PROCESSES
from reconciler.core.plan import Memory
from reconciler.core.state import Json
from reconciler.core.target import Fit

_FEW_GPUS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What was asked about, and what was found.

    Attributes:
        title: The model's name, or the file.
        gpus: How many alike there are.
        notes: What else there is to know: where the numbers come from, what is free now.
    """

    title: str
    model: Architecture
    found: Estimate
    advice: tuple[Advice, ...]
    gpus: int
    notes: tuple[str, ...] = ()


def show_fit(answer: Answer) -> None:
    """Terms, totals, valid sizes, and whether it fits."""
    out, found = console(), answer.found
    engine = found.engine
    on = f"{found.gpu.name + ', ' if found.gpu.name else ''}{found.gpu.total / GIB:.2f} GiB"
    ranks = f"tensor parallel {engine.tensor_parallel}"
    if engine.pipeline_parallel > 1:
        ranks += f", pipeline parallel {engine.pipeline_parallel}"
    kind = escape(answer.model.model_type or "model")
    out.print(f"[bold]{escape(answer.title)}[/] ({kind}) on {answer.gpus} x {escape(on)}, {ranks}")
    out.print(_terms(found))
    out.print(
        f"max_model_len {engine.max_model_len}, max_num_seqs {engine.max_num_seqs}, max_num_batched_tokens "
        f"{engine.max_num_batched_tokens}, gpu_memory_utilization {engine.gpu_memory_utilization:g}, KV "
        f"{found.kv_bytes_per_token} bytes a token"
    )
    _show_sizes(answer)
    for note in answer.notes:
        out.print(escape(note))
    if not found.fits:
        out.print(f"[bold red]Does not fit:[/] {escape(found.reason)}")
    elif not found.fits_safely:
        out.print(f"[bold yellow]Fits, barely:[/] {escape(found.reason)}")
    else:
        out.print("[bold green]Fits.[/]")
    for each in answer.advice:
        out.print(f"  it would with {escape(str(each))}")
    if not found.fits and not answer.advice:
        out.print("  no single change makes it fit; a larger GPU, or more of them, would")


def main_memory_report(title: str, memory: Memory, fit: Fit, free: int | None) -> Json:
    """The same of a model on the CPU engine; each `_gib` is GiB (2**30 bytes) of main memory."""
    reason = fit.misfit
    if not reason and free is not None and memory.needed > free:
        reason = f"{memory.needed / GIB:.2f} GiB are needed, and {free / GIB:.2f} GiB are free"
    return {
        "model": title,
        "where": "main memory",
        "weights_gib": round(memory.weights / GIB, 4),
        "kv_cache_gib": round(memory.kv_cache / GIB, 4),
        "processes_gib": round(PROCESSES / GIB, 4),
        "needed_gib": round(memory.needed / GIB, 4),
        "free_gib": None if free is None else round(free / GIB, 4),
        "kv_tokens": memory.kv_tokens,
        "max_model_len": memory.max_model_len,
        "basis": memory.basis,
        "fits": not reason,
        "reason": reason,
        "advice": list(fit.advice),
    }


def show_main_memory(row: Json) -> None:
    """The same for a person."""
    out = console()
    out.print(f"[bold]{escape(row['model'])}[/] on the CPU engine, in main memory")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GiB")
    table.add_column("", justify="right")
    for key, title in (("weights_gib", "weights"), ("kv_cache_gib", "KV cache"), ("processes_gib", "processes")):
        table.add_row(title, f"{row[key]:.2f}")
    table.add_row("in all", f"{row['needed_gib']:.2f}", style="bold")
    table.add_row("free now", "?" if row["free_gib"] is None else f"{row['free_gib']:.2f}")
    table.add_row("KV cache, tokens", str(row["kv_tokens"]))
    table.add_row("context", str(row["max_model_len"]))
    out.print(table)
    out.print("[bold green]Fits.[/]" if row["fits"] else f"[bold red]Does not fit:[/] {escape(row['reason'])}")
    for each in row["advice"]:
        out.print(f"  it would with {escape(each)}")


def _terms(found: Estimate) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GiB PER GPU")
    table.add_column("EXPECTED", justify="right")
    table.add_column("SAFE", justify="right")
    for name, title in TERMS:
        term: Term = getattr(found, name)
        if name == "available_kv" and not found.needed_kv:
            term = Term(0, 0)  # A model without a cache takes nothing of what is left.
        table.add_row(title, *_gib(term))
    table.add_row("in all", *_gib(found.footprint), style="bold")
    table.add_row("least it needs", *_gib(found.minimum))
    table.add_row("KV cache, tokens", str(found.kv_tokens.expected), str(found.kv_tokens.safe))
    table.add_row("longest context", str(found.longest.expected), str(found.longest.safe))
    return table


def _gib(term: Term) -> tuple[str, str]:
    return f"{term.expected / GIB:.2f}", f"{term.safe / GIB:.2f}"


def _show_sizes(answer: Answer) -> None:
    parallel = answer.found.engine.expert_parallel
    sizes = tensor_sizes(answer.model, max(answer.gpus, _FEW_GPUS), expert_parallel=parallel)
    valid = ", ".join(str(size.size) for size in sizes if not size.rule)
    out = console()
    out.print(f"Valid tensor-parallel sizes: {valid}")
    for size in sizes:
        if size.rule and size.size & (size.size - 1) == 0:
            out.print(f"[dim]  not {size.size}: {escape(size.rule)}[/]")
