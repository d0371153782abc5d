"""What every result file records: commit, date, command, machine and versions, and how far its numbers spread."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COUNTDOWN = ROOT / "examples" / "countdown"

_DISTRIBUTIONS = ("nex-vllm", "vllm", "torch", "triton", "numba", "numpy", "flashinfer-python")


def device_kind() -> str:
    """Return ``gpu`` where torch sees one, else ``cpu``; result files are named by it."""
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def machine() -> dict[str, Any]:
    """Describe the machine by its parts, never by its name or a path."""
    import torch

    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": cores,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def versions() -> dict[str, str]:
    """Return the versions of what is measured and of what it runs on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str, root: Path) -> str:
    """Return what git prints; nothing outside of a checkout."""
    run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else ""


def changed_files(root: Path = ROOT) -> list[str]:
    """Return the files that differ from the commit, one line of ``git status`` each; results themselves do not count.

    Benchmarks are run one after the other, and each writes a result before the next one starts.
    """
    return _git("status", "--porcelain", "--", ".", ":!benchmarks/results", root=root).splitlines()


def commit(root: Path = ROOT) -> str:
    """Return the checkout's commit, with ``+`` where files differ from it; ``unknown`` outside of git."""
    return (_git("rev-parse", "HEAD", root=root) or "unknown") + ("+" if changed_files(root) else "")


def check_result_path(parser: argparse.ArgumentParser, path: Path | None, root: Path = ROOT) -> None:
    """End the program if a result would be kept in the repository while no commit says what was measured."""
    changed = changed_files(root)
    if path is not None and path.resolve().is_relative_to(root) and changed:
        parser.error(
            f"{path} would not say what was measured: {len(changed)} files differ from the commit ({changed[0]}); "
            "commit or stash them, or name a place outside of the repository"
        )


def command() -> str:
    """Return the command line that made a result; of a path outside the checkout only its last part."""
    program = f"benchmarks/{Path(sys.argv[0]).name}"
    given = [Path(each).name if each.startswith(("/", "~")) else each for each in sys.argv[1:]]
    return " ".join(["python", program, *given])


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(np.asarray(values, dtype=float), (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, its 95 % interval, extremes and quartiles, and of how many values."""
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0], 0, values[0])
    )
    return {
        "median": statistics.median(values),
        "interval": median_interval(values),
        "min": min(values),
        "max": max(values),
        "q1": low,
        "q3": high,
        "count": len(values),
    }


def described(value: Mapping[str, Any], digits: int = 3) -> str:
    """Return a spread as one line."""
    return (
        f"{value['median']:.{digits}f}  (min {value['min']:.{digits}f}, max {value['max']:.{digits}f}, quartiles "
        f"{value['q1']:.{digits}f} to {value['q3']:.{digits}f}, {value['count']} rounds)"
    )


def rotated(names: Sequence[str], round_index: int) -> list[str]:
    """Return the names in the order of a round: each comes first equally often."""
    start = round_index % len(names)
    return [*names[start:], *names[:start]]


def write_result(path: Path, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write a result file: how and on what it was measured, then what was measured."""
    head = {
        "benchmark": benchmark,
        "commit": commit(),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({**head, **content}, indent=2) + "\n")
    partial.replace(path)
