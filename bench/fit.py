"""How far the memory estimate is from what vLLM logged at real start-ups, by term and by family of models.

    python -m bench.fit --data vllm_startup_logs.csv --facts model_facts.json [--output json]

The rows come from vLLM 0.5 to 0.31. A row that lacks a number is left out of that term alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.fit_compare import Measured, Verdict, measure
from bench.fit_rows import read


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _line(title: str, measured: Sequence[Measured]) -> str:
    errors = [abs(m.error) for m in measured]
    worst = max(measured, key=lambda m: abs(m.error))
    beyond = sum(m.beyond for m in measured)
    bound = str(beyond) if any(m.bound is not None for m in measured) else "-"
    return (
        f"{title:<34} {len(measured):>4}  {median(errors):>7.2%}  {_percentile(errors, 0.9):>7.2%}  "
        f"{abs(worst.error):>8.2%}  {bound:>6}"
    )


def report(measured: Sequence[Measured], verdicts: Sequence[Verdict], rows: int) -> str:
    """The table as text."""
    lines = [
        f"{rows} rows",
        "",
        f"{'term, family':<34} {'rows':>4}  {'median':>7}  {'p90':>7}  {'worst':>8}  beyond",
    ]
    for term in dict.fromkeys(m.term for m in measured):
        chosen = [m for m in measured if m.term == term]
        lines.append(_line(term, chosen))
        lines += [
            _line(f"  {name}", [m for m in chosen if m.family == name])
            for name in sorted({m.family for m in chosen})
        ]
    lines += ["", "Fitted terms, on the rows they were not fitted on (every second row of the file):"]
    for term in ("footprint", "CUDA graphs", "activation"):
        held_out = [m for m in measured if m.term == term and m.held_out]
        lines += [_line(f"  {term}", held_out)] if held_out else []
    lines += ["", "Rows beyond their bound:"]
    lines += [
        f"  {m.row:>4} {m.term:<10} {m.model:<44} {m.estimated:.4g} for {m.logged:.4g} ({m.error:+.1%})  {m.why}"
        for m in measured
        if m.beyond
    ] or ["  none"]
    lines += ["", "Rows that failed to start:"]
    for verdict in verdicts:
        said = {True: "FITS, WRONGLY", False: "does not fit", None: "not judged"}[verdict.fits]
        lines.append(f"  {verdict.row:>4} {verdict.model:<44} {verdict.outcome:<18} {said}: {verdict.reason}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit 1 where a row that failed is said to fit."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="vllm_startup_logs.csv")
    parser.add_argument("--facts", type=Path, required=True, help="model_facts.json")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args(arguments)
    rows = read(options.data)
    measured, verdicts = measure(rows, json.loads(options.facts.read_text(encoding="utf-8")))
    if options.output == "json":
        print(
            json.dumps(
                {"measured": [asdict(m) for m in measured], "failed": [asdict(v) for v in verdicts]}, indent=2
            )
        )
    else:
        print(report(measured, verdicts, len(rows)))
    return 1 if any(verdict.fits for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
