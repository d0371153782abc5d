"""What is promised about speed, and what the result files say about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Seen:
    """One measured figure.

    Attributes:
        label: which size or side.
        median: over rounds.
        low: lowest round.
        high: highest round.
        lower_end: of the median's 95 % bootstrap interval.
        source: name of the result file.
    """

    label: str
    median: float
    low: float
    high: float
    lower_end: float
    source: str


@dataclass(frozen=True)
class Target:
    """One line of the table: a figure must reach ``must`` and should reach ``aim``.

    Attributes:
        where: device, model and size.
        figure: what is compared with what.
        must: the least that is acceptable.
        aim: what is hoped for.
        read: finds the figures in a folder of results; the lowest counts.
    """

    where: str
    figure: str
    must: float
    aim: float
    read: Callable[[Path], list[Seen]]

    def verdict(self, seen: list[Seen]) -> str:
        """Say what is reached for certain: by the lower ends of the intervals, not by medians that may be chance."""
        if not seen:
            return "not yet measured"
        lowest = min(each.lower_end for each in seen)
        return "aim reached" if lowest >= self.aim else "must reached" if lowest >= self.must else "not shown"


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """Return a result file's content, None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _seen(label: str, value: dict[str, Any], source: str) -> Seen:
    # Results from before there were intervals: their lowest round is below any interval's end.
    lower_end, _ = value.get("interval", (value["min"], value["max"]))
    return Seen(label, value["median"], value["min"], value["max"], lower_end, source)


def _overhead(name: str, sides: dict[str, str], least: int, most: int, label: str) -> Callable[[Path], list[Seen]]:
    """Return what reads the ratios to plain of some sides, by what they are called, at some numbers of sequences."""

    def read(folder: Path) -> list[Seen]:
        content = load(folder, name) or {"levels": []}
        return [
            _seen(f"{label}{called}{level['sequences']} sequences", level["ratio"][side], name)
            for level in content["levels"]
            if least <= level["sequences"] <= most
            for side, called in sides.items()
            if side in level["ratio"]
        ]

    return read


def _together(*reads: Callable[[Path], list[Seen]]) -> Callable[[Path], list[Seen]]:
    return lambda folder: [each for read in reads for each in read(folder)]


def _sizes(folder: Path, name: str, **wanted: Any) -> Iterator[dict[str, Any]]:
    for size in (load(folder, name) or {"select_reduce": []})["select_reduce"]:
        if all(size[key] == value for key, value in wanted.items()):
            yield size


def _kernel_ratio(name: str, own: str, other: str, **wanted: Any) -> Callable[[Path], list[Seen]]:
    """Return what reads how many times as long as ours another selection takes."""

    def read(folder: Path) -> list[Seen]:
        return [
            _seen(f"{size['rows']} rows", size["times_as_long_as"][own][other], name)
            for size in _sizes(folder, name, **wanted)
            if other in size["times_as_long_as"].get(own, {})
        ]

    return read


def _share(folder: Path) -> list[Seen]:
    sizes = _sizes(folder, "kernels-gpu", **_GPU_ROWS)
    return [_seen(f"{size['rows']} rows", size["share_of_copy"]["ours with pass"], "kernels-gpu") for size in sizes]


_RATIO = "tokens/s, selecting / plain"
_IDLE = {"installed": "installed, ", "idle": "NEX on, nobody asks, "}
_COUNTDOWN, _QWEN_CPU = "overhead-cpu-countdown-decode", "overhead-cpu-qwen3-0.6b-decode"
_QWEN_GPU = "overhead-gpu-qwen3-4b-decode"
_GPU_ROWS = {"neurons": 350_208, "dtype": "bfloat16"}
_GPU_SIZE = "GPU, select-reduce, 64 to 1,024 rows of 350,208 bf16"

# On a GPU ours is judged with the pass that makes the maxima counted in: it then starts from what others start from.
TARGETS = (
    Target("CPU, shipped model, n = 3, 8 prompts at once", _RATIO, 0.90, 0.97,
           _overhead(_COUNTDOWN, {"selecting": ""}, 24, 24, "")),
    Target("CPU, Qwen3-0.6B shape", _RATIO, 0.97, 0.99,
           _overhead(_QWEN_CPU, {"selecting": ""}, 0, 10**6, "")),
    Target("CPU and GPU, installed but not asked for", "tokens/s, not asked / plain", 0.995, 1.000,
           _together(_overhead(_COUNTDOWN, _IDLE, 0, 10**6, "CPU, "), _overhead(_QWEN_GPU, _IDLE, 0, 10**6, "GPU, "))),
    Target("GPU, Qwen3-4B shape, 24 to 384 sequences", _RATIO, 0.98, 0.997,
           _overhead(_QWEN_GPU, {"selecting": ""}, 24, 384, "")),
    Target("GPU, same, 3 sequences", _RATIO, 0.97, 0.99,
           _overhead(_QWEN_GPU, {"selecting": ""}, 3, 3, "")),
    Target(_GPU_SIZE, "share of measured copy bandwidth", 0.5, 0.8, _share),
    Target("GPU, same", "time, flashinfer.top_k / ours", 2, 5,
           _kernel_ratio("kernels-gpu", "ours with pass", "flashinfer.top_k", **_GPU_ROWS)),
    Target("GPU, same", "time, torch.topk / ours", 8, 20,
           _kernel_ratio("kernels-gpu", "ours with pass", "torch.topk", **_GPU_ROWS)),
    Target("CPU, select-reduce, 30 rows of 86,016 bf16, one thread", "time, torch.topk / ours", 8, 20,
           _kernel_ratio("kernels-cpu", "ours", "torch.topk", rows=30, neurons=86_016, dtype="bfloat16")),
)  # fmt: skip
