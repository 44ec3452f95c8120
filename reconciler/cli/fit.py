"""The command that says how much memory a model takes, and whether it fits: `reconcile fit`.

From bare facts (`--model-config config.json ...`), or from a model file whose weights are on this machine already.
Needs neither a GPU nor a cluster, and imports neither torch nor vLLM nor Ray.
"""

import asyncio
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from reconciler.cli.common import OK, PARTIAL, fail
from reconciler.cli.show import console, print_json
from reconciler.core.fit.advice import Advice, Weigh, advise, smallest_tensor_parallel
from reconciler.core.fit.architecture import Architecture, ArchitectureError, architecture_of
from reconciler.core.fit.dtypes import KV_DTYPES
from reconciler.core.fit.estimate import DEFAULT_UTILIZATION, Engine, Estimate, estimate
from reconciler.core.fit.gpus import GIB, Gpu, gpu, of_total
from reconciler.core.fit.parallel import tensor_sizes
from reconciler.core.fit.quantization import named
from reconciler.core.fit.report import TERMS, report
from reconciler.core.fit.synthesis import parameters_of, parts_of_config
from reconciler.core.fit.tensors import FIRST, Loading, Part, Split, Tensor, parts_of, scaled
from reconciler.core.fit.terms import Term
from reconciler.core.parse import parse_all
from reconciler.core.spec import ModelSpec, Task
from reconciler.core.state import Json
from reconciler.core.weights import DEFAULT_REVISION
from reconciler.host.settings import Settings
from reconciler.sources.folder import FolderSource
from reconciler.weights.cache import HubCache

_LARGEST_CONFIG = 16 * 2**20
_LARGEST_HEADER = 100 * 2**20
"""Bytes. safetensors itself refuses a larger header."""
_INDEX = "model.safetensors.index.json"
_MOST_GPUS = 1024


@dataclass(frozen=True, slots=True)
class FitOptions:
    """The options of `reconcile fit`; None where one is not given.

    Attributes:
        model_config: A config.json, for bare facts.
        weights_gib: GiB of all weights together, as loaded, over all ranks.
        parameters: Parameters of the whole model.
        quantization: Where config.json does not say it.
        tensor_parallel: None for the fewest ranks on which it fits.
        gpu_memory_gib: Of one GPU, as CUDA reports it.
        gpu: A name such as `h100-80g`, instead.
        gpus: How many alike there are.
        kv_cache_memory_gib: Of each rank, instead of what is left over.
    """

    model_config: Path | None = None
    weights_gib: float | None = None
    parameters: int | None = None
    quantization: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    enforce_eager: bool = False
    gpu_memory_gib: float | None = None
    gpu: str | None = None
    gpus: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_gib: float | None = None
    pooling: bool = False
    language_model_only: bool = False


@dataclass(frozen=True, slots=True)
class _Asked:
    """Everything an answer is made from."""

    title: str
    model: Architecture
    weigh: Weigh
    engine: Engine
    gpu: Gpu
    gpus: int
    tensor_parallel: int | None


def fit(settings: Settings, name: str | None, *, options: FitOptions, output: str) -> int:
    """Say whether a model fits: exit 0 where it does, 3 where it does not, 1 where the question makes no sense.

    Args:
        settings: Where model files and the hub's cache are.
        name: A model of the model files; None for bare facts.
        options: What was asked.
        output: `text` or `json`.
    """
    try:
        asked = _asked(settings, name, options)
        found = _estimate(asked)
        advice = advise(asked.model, asked.weigh, found, asked.gpus)
    except (ArchitectureError, ValueError, OverflowError) as error:
        fail(str(error))
    if output == "json":
        print_json(report(asked.title, asked.model, found, advice, asked.gpus))
    else:
        _show(asked, found, advice)
    return OK if found.fits else PARTIAL


def _asked(settings: Settings, name: str | None, options: FitOptions) -> _Asked:
    if (name is None) == (options.model_config is None):
        raise ValueError("give the name of a model, or --model-config with a config.json")
    if options.weights_gib is not None and options.parameters is not None:
        raise ValueError("--weights-gib and --parameters exclude each other")
    _positive(options)
    if name is not None:
        options, folder = _of_file(settings, name, options)
        config, tensors = _read_json(folder / "config.json"), _headers(folder)
    else:
        assert options.model_config is not None
        config, tensors = _read_json(options.model_config), None
    model = architecture_of(config)
    if options.quantization is not None and model.quantization is None:
        model = replace(model, quantization=named(options.quantization))
    if options.language_model_only:
        model = replace(model, vision=None, multimodal=False)
    engine = _engine(options)
    return _Asked(
        name or str(options.model_config),
        model,
        _weigher(options, model, engine, tensors),
        engine,
        _gpu(options),
        options.gpus or max(options.tensor_parallel or 1, 1) * engine.pipeline_parallel,
        options.tensor_parallel,
    )


def _positive(options: FitOptions) -> None:
    for field in (
        "weights_gib", "parameters", "tensor_parallel", "pipeline_parallel", "max_model_len", "max_num_seqs",
        "max_num_batched_tokens", "gpu_memory_gib", "gpus", "kv_cache_memory_gib", "gpu_memory_utilization",
    ):  # fmt: skip
        value = getattr(options, field)
        if value is not None and not 0 < value < 2**50:
            raise ValueError(f"--{field.replace('_', '-')} {value:g} makes no sense")
    if (options.gpu_memory_utilization or 0) > 1:
        raise ValueError("--gpu-memory-utilization is a share, more than 0 and at most 1")
    if max(options.gpus or 1, options.tensor_parallel or 1, options.pipeline_parallel or 1) > _MOST_GPUS:
        raise ValueError(f"more than {_MOST_GPUS} GPUs make no sense")
    if options.kv_cache_dtype is not None and options.kv_cache_dtype not in KV_DTYPES:
        raise ValueError(f"--kv-cache-dtype is one of {', '.join(KV_DTYPES)}")


def _engine(options: FitOptions) -> Engine:
    return Engine(
        max_model_len=options.max_model_len or 0,
        max_num_seqs=options.max_num_seqs or 0,
        max_num_batched_tokens=options.max_num_batched_tokens or 0,
        dtype=options.dtype or "",
        kv_cache_dtype=options.kv_cache_dtype or "auto",
        gpu_memory_utilization=options.gpu_memory_utilization or DEFAULT_UTILIZATION,
        kv_cache_memory_bytes=int((options.kv_cache_memory_gib or 0) * GIB),
        enforce_eager=options.enforce_eager,
        tensor_parallel=options.tensor_parallel or 1,
        pipeline_parallel=options.pipeline_parallel or 1,
        expert_parallel=options.expert_parallel,
        pooling=options.pooling,
    )


def _gpu(options: FitOptions) -> Gpu:
    if options.gpu_memory_gib is not None:
        return of_total(int(options.gpu_memory_gib * GIB), name=options.gpu or "")
    if options.gpu is not None:
        return gpu(options.gpu)
    raise ValueError("say on what: --gpu NAME (h100-80g, l4, rtx-4090, ...) or --gpu-memory-gib X")


def _weigher(options: FitOptions, model: Architecture, engine: Engine, tensors: list[Tensor] | None) -> Weigh:
    """The weights, by what is known best: a given total, the tensors on disk, or the config alone."""
    dtype = engine.dtype if engine.dtype not in ("", "auto") else model.dtype or "bfloat16"
    loading = Loading(
        dtype="bfloat16" if dtype in ("float32", "float") and not engine.dtype else dtype,
        language_model_only=options.language_model_only,
        pooling=options.pooling,
    )

    def weigh(wanted: Architecture) -> tuple[Part, ...]:
        if tensors is not None and wanted is model:
            return parts_of(tensors, wanted, loading)
        parts = parts_of_config(wanted, loading)
        total = sum(part.bytes for part in parts)
        if options.weights_gib is not None and wanted is model:
            return scaled(parts, options.weights_gib * GIB)
        if options.parameters is not None:
            usual = parameters_of(wanted)
            if options.parameters > usual and wanted.quantization is not None:
                # What a config does not describe is a tower or the like, which is not quantised.
                return (*parts, Part(2.0 * (options.parameters - usual), Split.EVENLY, FIRST))
            return scaled(parts, total * options.parameters / usual)
        return parts

    return weigh


def _estimate(asked: _Asked) -> Estimate:
    if asked.tensor_parallel is None:
        for safely in (True, False):
            found = smallest_tensor_parallel(
                asked.model, asked.weigh, asked.engine, asked.gpu, asked.gpus, safely=safely
            )
            if found is not None:
                return found
    tp = asked.tensor_parallel or 1
    return estimate(asked.model, asked.weigh(asked.model), replace(asked.engine, tensor_parallel=tp), asked.gpu)


def _of_file(settings: Settings, name: str, options: FitOptions) -> tuple[FitOptions, Path]:
    """The options with what the model file says where they are silent, and the folder of its weights."""
    if not settings.models_dir.is_dir():
        fail(f"{settings.models_dir} is no folder of model files")
    snapshot = asyncio.run(FolderSource(settings.models_dir).read())
    if snapshot.unreadable:
        fail(snapshot.unreadable)
    parsed = parse_all(snapshot.files)
    if name not in parsed.valid:
        fail(
            f"no valid model file declares {name!r}; `reconcile validate` says what is wrong with those there are"
        )
    spec = parsed.valid[name].spec
    engine, args, tp = spec.engine, spec.engine.args, spec.resources.tensor_parallel

    def number(value: float | str) -> int | None:
        return None if isinstance(value, str) else int(value)

    share, space = engine.gpu_memory_utilization, engine.kv_cache_memory_gib
    filled = replace(
        options,
        quantization=options.quantization or engine.quantization,
        tensor_parallel=options.tensor_parallel or number(tp),
        pipeline_parallel=options.pipeline_parallel or number(spec.resources.pipeline_parallel),
        expert_parallel=options.expert_parallel or args.get("enable_expert_parallel") is True,
        max_model_len=options.max_model_len or number(engine.max_model_len),
        max_num_seqs=options.max_num_seqs or number(engine.max_num_seqs),
        max_num_batched_tokens=options.max_num_batched_tokens or number(engine.max_num_batched_tokens),
        dtype=options.dtype or engine.dtype,
        kv_cache_dtype=options.kv_cache_dtype or engine.kv_cache_dtype,
        enforce_eager=options.enforce_eager or args.get("enforce_eager") is True,
        gpu_memory_utilization=options.gpu_memory_utilization or (share if isinstance(share, float) else None),
        kv_cache_memory_gib=options.kv_cache_memory_gib or (space if isinstance(space, float) else None),
        pooling=options.pooling or spec.task not in (Task.GENERATE, Task.TRANSCRIBE),
        language_model_only=options.language_model_only or args.get("language_model_only") is True,
    )
    return filled, _folder(settings, spec)


def _folder(settings: Settings, spec: ModelSpec) -> Path:
    source = spec.source
    if source.path is not None:
        return (settings.models_dir / source.path).absolute()
    assert source.repo is not None
    cache, revision = HubCache(settings.hub_cache_folder), source.revision or DEFAULT_REVISION
    commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else cache.commit_of(source.repo, revision)
    folder = cache.snapshot(source.repo, commit) if commit else None
    if folder is None or not (folder / "config.json").exists():
        fail(
            f"{source.repo} at {revision} is not in the hub's cache ({settings.hub_cache_folder}); "
            "`reconcile pull` fetches it, and --model-config takes a config.json alone"
        )
    return folder


def _read_json(path: Path) -> Json:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_CONFIG + 1)
        # Cut off, a file too large to be what it is called is no JSON either.
        data = json.loads(content[:_LARGEST_CONFIG])
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if isinstance(data, dict):
        return data
    raise ValueError(f"{path} is no JSON object")


def _headers(folder: Path) -> list[Tensor] | None:
    """The tensors of a model's folder; None where it has no safetensors."""
    index = folder / _INDEX
    if index.exists():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index} is no index of weights")
        files = sorted(set(names.values()))
        for name in files:
            # CVE-2026-69112: an index may name any path.
            if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{index} names {name!r:.80}, which leads out of the folder")
        paths = [folder / name for name in files]
    else:
        paths = sorted(folder.glob("*.safetensors"))
        plain = [path for path in paths if not path.name.startswith("consolidated")]
        paths = [path for path in plain if path.name == "model.safetensors"] or plain or paths
    return [tensor for path in paths for tensor in _header(path)] or None


def _header(path: Path) -> Iterator[Tensor]:
    """The entries of a safetensors header: eight bytes of length, and so much JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(f"{path} is no safetensors file: its header has {length} bytes")
            data = json.loads(file.read(length))
        for name, entry in data.items():
            if name != "__metadata__":
                shape = tuple(entry["shape"])
                if not all(isinstance(size, int) and 0 <= size < 2**40 for size in shape):
                    raise ValueError(f"{path}: {name!r:.80} has no shape")
                yield Tensor(name, str(entry["dtype"]), shape)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (struct.error, KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError):
        raise ValueError(f"{path} is no safetensors file") from None


def _show(asked: _Asked, found: Estimate, advice: tuple[Advice, ...]) -> None:
    out, engine, model = console(), found.engine, asked.model
    on = f"{found.gpu.name + ', ' if found.gpu.name else ''}{found.gpu.total / GIB:.2f} GiB"
    ranks = f"tensor parallel {engine.tensor_parallel}"
    if engine.pipeline_parallel > 1:
        ranks += f", pipeline parallel {engine.pipeline_parallel}"
    out.print(
        f"[bold]{escape(asked.title)}[/] ({escape(model.model_type or 'model')}) on {asked.gpus} x {on}, {ranks}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GiB PER GPU")
    table.add_column("EXPECTED", justify="right")
    table.add_column("SAFE", justify="right")
    for name, title in TERMS:
        term: Term = getattr(found, name)
        if name == "available_kv" and not found.needed_kv:
            term = Term(0, 0)  # A model without a cache takes nothing of what is left.
        table.add_row(title, f"{term.expected / GIB:.2f}", f"{term.safe / GIB:.2f}")
    table.add_row(
        "in all", f"{found.footprint.expected / GIB:.2f}", f"{found.footprint.safe / GIB:.2f}", style="bold"
    )
    table.add_row("least it needs", f"{found.minimum.expected / GIB:.2f}", f"{found.minimum.safe / GIB:.2f}")
    table.add_row("KV cache, tokens", str(found.kv_tokens.expected), str(found.kv_tokens.safe))
    table.add_row("longest context", str(found.longest.expected), str(found.longest.safe))
    out.print(table)
    out.print(
        f"max_model_len {engine.max_model_len}, max_num_seqs {engine.max_num_seqs}, max_num_batched_tokens "
        f"{engine.max_num_batched_tokens}, gpu_memory_utilization {engine.gpu_memory_utilization:g}, KV "
        f"{found.kv_bytes_per_token} bytes a token"
    )
    _show_sizes(asked, engine.expert_parallel)
    if not found.fits:
        out.print(f"[bold red]Does not fit:[/] {escape(found.reason)}")
    elif not found.fits_safely:
        out.print(f"[bold yellow]Fits, barely:[/] {escape(found.reason)}")
    else:
        out.print("[bold green]Fits.[/]")
    for each in advice:
        out.print(f"  it would with {escape(str(each))}")
    if not found.fits and not advice:
        out.print("  no single change makes it fit; a larger GPU, or more of them, would")


def _show_sizes(asked: _Asked, expert_parallel: bool) -> None:
    sizes = tensor_sizes(asked.model, max(asked.gpus, 8), expert_parallel=expert_parallel)
    valid = ", ".join(str(size.size) for size in sizes if not size.rule)
    out = console()
    out.print(f"Valid tensor-parallel sizes: {valid}")
    for size in sizes:
        if size.rule and size.size & (size.size - 1) == 0:
            out.print(f"[dim]  not {size.size}: {escape(size.rule)}[/]")
