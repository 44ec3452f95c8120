"""Geometry of the page's pictures: bars of GPU memory and small charts, as attributes of SVG elements. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reconciler.api.schemas import ClusterView, GpuUse, GpuView, SeriesView

WIDTH, HEIGHT = 240, 48
"""Of a chart, in its own units."""
COLOURS = 8
"""Of models in the bars; with more models they come again."""
_MARGIN = 2


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar, in percent of it."""

    x: float
    width: float
    label: str
    size: int
    css: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One measure over time. `lines` are the points of polylines: one for each stretch without a gap."""

    name: str
    unit: str
    lines: tuple[str, ...]
    latest: float | None
    """The newest value; None where nothing was measured lately."""
    most: float
    summary: str


def chart_of(series: SeriesView) -> Chart:
    """The chart of a series; its scale begins at zero."""
    known = [point for point in series.points if point is not None]
    most = max(known, default=0.0)
    scale = max(most, 1e-9)
    step = WIDTH / max(1, len(series.points) - 1)
    stretches: list[list[str]] = [[]]
    for index, point in enumerate(series.points):
        if point is None:
            stretches.append([])
            continue
        y = HEIGHT - _MARGIN - max(0.0, point) / scale * (HEIGHT - 2 * _MARGIN)
        stretches[-1].append(f"{index * step:.1f},{y:.1f}")
    # A single point is no line; drawn to itself, with round ends, it is a dot.
    lines = [points if len(points) > 1 else points * 2 for points in stretches if points]
    latest = series.points[-1] if series.points else None
    summary = f"now {number(latest)} {series.unit}, at most {number(most)}" if known else "nothing measured"
    return Chart(series.name, series.unit, tuple(map(" ".join, lines)), latest, most, summary)


def number(value: float | None) -> str:
    """A measure, with three digits that matter."""
    if value is None:
        return "–"  # noqa: RUF001 -- a dash, where there is no number
    if abs(value) >= 1000:  # noqa: PLR2004 -- from here on digits behind the point say nothing
        return f"{value:,.0f}"
    return f"{value:.3g}"


def colours_of(cluster: ClusterView) -> dict[str, str]:
    """The CSS class of each model that is, or will be, on a GPU."""
    uses = (use for node in cluster.nodes for gpu in node.devices for use in (*gpu.models, *gpu.after))
    return {model: f"c{index % COLOURS}" for index, model in enumerate(sorted({use.model for use in uses}))}


def bar_of(gpu: GpuView, uses: Iterable[GpuUse], colours: Mapping[str, str]) -> tuple[Part, ...]:
    """The pieces of a GPU's bar: first what is not Ray's, then the models as they are listed."""
    pieces = [("other processes", gpu.foreign, "foreign")] if gpu.foreign else []
    pieces += [(use.model, use.bytes, f"{colours[use.model]} {use.pending}".strip()) for use in uses]
    total = max(1, gpu.total, sum(size for _, size, _ in pieces))
    parts, x = [], 0.0
    for label, size, css in pieces:
        width = 100 * size / total
        parts.append(Part(round(x, 3), round(width, 3), label, size, css))
        x += width
    return tuple(parts)
