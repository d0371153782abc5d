"""What every benchmark says about itself: machine, versions, date, command, and how far its numbers spread."""

from __future__ import annotations

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

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COUNTDOWN = ROOT / "examples" / "countdown"

_DISTRIBUTIONS = ("vllm", "torch", "triton", "numba", "numpy", "flashinfer-python")


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
    found = {"python": platform.python_version(), "nex-vllm": _commit()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """Return the checkout's commit, with ``+`` where files differ from it; ``unknown`` outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command() -> str:
    """Return the command line that made a result; of a path outside the checkout only its last part."""
    program = f"benchmarks/{Path(sys.argv[0]).name}"
    given = [Path(each).name if each.startswith(("/", "~")) else each for each in sys.argv[1:]]
    return " ".join(["python", program, *given])


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Return median, extremes and quartiles, and of how many values."""
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0], 0, values[0])
    )
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "q1": low,
        "q3": high,
        "count": len(values),
    }


def described(value: Mapping[str, float | int], digits: int = 3) -> str:
    """Return a spread as one line."""
    return (
        f"{value['median']:.{digits}f}  (min {value['min']:.{digits}f}, max {value['max']:.{digits}f}, quartiles "
        f"{value['q1']:.{digits}f} to {value['q3']:.{digits}f}, {value['count']} rounds)"
    )


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of a round: each comes first equally often."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def write_result(path: Path, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write a result file: what was measured, under what it was measured on."""
    head = {
        "benchmark": benchmark,
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({**head, **content}, indent=2) + "\n")
    partial.replace(path)
