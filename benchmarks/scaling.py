"""How the cost of selection and reduction grows: per step against rows, neurons and K, as one picture.

    python benchmarks/scaling.py [--rounds 15] [--axes rows neurons top_k] [--out FOLDER]

All points are measured in alternating rounds of one process; on the CPU on one thread. The picture shows medians, the
least-squares line and the expected line, which ends in the largest point. For rows it starts in the origin: twice the
rows, twice the time. For neurons and K, each of which explains only a part of a row's time, it starts in the smallest
point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, check_result_path, device_kind, machine, spread, write_result
from kernel_cases import Case, Filled, fill, reduce_with
from timing import alternate


@dataclass(frozen=True)
class Axis:
    """One quantity that is varied, and the sizes it takes."""

    name: str
    label: str
    cases: tuple[Case, ...]

    @property
    def sizes(self) -> list[int]:
        """The values on the axis."""
        return [int(getattr(case, self.name)) for case in self.cases]


def axes(kind: str) -> tuple[Axis, ...]:
    """Return what is varied around one step: of Qwen3-0.6B on the CPU, of Qwen3-4B on a GPU."""
    rows: tuple[int, ...]
    layers: tuple[int, ...]
    if kind == "gpu":
        base = Case(96, 36, 9728, 2000, torch.bfloat16)
        rows, layers = (1, 32, 64, 132, 192, 264, 384, 512, 768, 1024), (4, 8, 12, 18, 24, 36, 48)
    else:
        base = Case(30, 28, 3072, 2000, torch.bfloat16)
        rows, layers = (1, 4, 8, 16, 30, 48, 64, 96), (8, 14, 21, 28, 42, 56, 84, 112)
    top_ks = (125, 250, 500, 1000, 2000, 4000, 8000)
    return (
        Axis("rows", "rows in the step", tuple(replace(base, rows=each) for each in rows)),
        Axis("neurons", "neurons of all layers", tuple(replace(base, layers=each) for each in layers)),
        Axis("top_k", "K, neurons kept per row", tuple(replace(base, top_k=each) for each in top_ks)),
    )


def measure(every: list[Axis], kind: str, rounds: int) -> dict[Case, list[float]]:
    """Measure every size once per round; milliseconds."""
    device = "cuda" if kind == "gpu" else "cpu"
    filled: dict[tuple[int, int], Filled] = {}
    calls: dict[str, Callable[[], Any]] = {}
    cases = {str(case): case for axis in every for case in axis.cases}
    for name, case in cases.items():
        if (case.rows, case.layers) not in filled:
            filled[case.rows, case.layers] = fill(case, device)
        operations = reduce_with(kind, filled[case.rows, case.layers], case)
        calls[name] = partial(operations.row_sums, case.rows)
    return {cases[name]: values for name, values in alternate(calls, rounds, device).items()}


def fitted(axis: Axis, medians: list[float]) -> dict[str, float]:
    """Return the least-squares line, how much of the variance it explains, and the expected line."""
    x, y = np.array(axis.sizes, dtype=float), np.array(medians)
    slope, intercept = np.polyfit(x, y, 1)
    rest = ((y - (intercept + slope * x)) ** 2).sum()
    through = (0.0, 0.0) if axis.name == "rows" else (x[0], y[0])
    expected = (y[-1] - through[1]) / (x[-1] - through[0])
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "r_squared": float(1 - rest / ((y - y.mean()) ** 2).sum()),
        "expected_slope": float(expected),
        "expected_intercept": float(through[1] - expected * through[0]),
    }


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw all axes beside each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    size = (5 * len(results), 4.2)
    figure, panels = plt.subplots(1, len(results), figsize=size, squeeze=False, layout="constrained")
    for panel, result in zip(panels[0], results, strict=True):
        sizes = np.array(result["sizes"], dtype=float)
        medians = np.array([each["median"] for each in result["milliseconds"]])
        quartiles = np.array([[each["q1"], each["q3"]] for each in result["milliseconds"]])
        line, fit = np.array([0.0, sizes.max()]), result["fit"]
        panel.plot(line, fit["expected_intercept"] + fit["expected_slope"] * line, "--", color="0.6", label="expected")
        panel.plot(
            line,
            fit["intercept"] + fit["slope"] * line,
            color="tab:blue",
            label=f"least squares, R² = {fit['r_squared']:.4f}",
        )
        errors = np.abs(quartiles.T - medians)
        panel.errorbar(sizes, medians, errors, fmt="o", color="tab:orange", capsize=3, label="median and quartiles")
        panel.set(xlabel=result["label"], ylabel="milliseconds per step", title=result["fixed"], xlim=0, ylim=0)
        panel.ticklabel_format(axis="x", style="plain")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panel.grid(alpha=0.3)
        panel.legend(loc="upper left", fontsize=8)
    described = machine()
    where = "one thread of " + described["processor"] if described["device"] == "cpu" else described["device"]
    figure.suptitle(f"Selection and reduction per step, bfloat16, {where}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds (15)")
    parser.add_argument(
        "--axes",
        nargs="+",
        choices=["rows", "neurons", "top_k"],
        default=["rows", "neurons", "top_k"],
        help="what to vary (all)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    kind = device_kind()
    check_result_path(parser, options.out / f"scaling-{kind}.json")
    if kind == "cpu":
        torch.set_num_threads(1)
    every = [axis for axis in axes(kind) if axis.name in options.axes]
    times = measure(every, kind, options.rounds)
    results = []
    for axis in every:
        spreads = [spread(times[case]) for case in axis.cases]
        held = {
            "rows": f"{axis.cases[0].rows:,} rows",
            "neurons": f"{axis.cases[0].neurons:,} neurons",
            "top_k": f"K = {axis.cases[0].top_k:,}",
        }
        fit = fitted(axis, [float(each["median"]) for each in spreads])
        fixed = ", ".join(text for name, text in held.items() if name != axis.name)
        results.append(
            {
                "axis": axis.name,
                "label": axis.label,
                "fixed": fixed,
                "sizes": axis.sizes,
                "milliseconds": spreads,
                "fit": fit,
            }
        )
        print(f"{axis.label}: {fit['slope']:.3g} ms each, {fit['intercept']:.3g} ms fixed, R2 {fit['r_squared']:.4f}")
    write_result(options.out / f"scaling-{kind}.json", "scaling", {"dtype": "bfloat16", "axes": results})
    draw(results, options.out / f"scaling-{kind}.png")


if __name__ == "__main__":
    main()
