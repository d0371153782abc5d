"""Every Triton kernel compiles for the GPUs in use, without one being here, and keeps its values in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("sizes", "dtypes"),
    [
        ("Qwen3-4B", ["bfloat16"]),
        pytest.param("Qwen3-4B", ["float16", "float32"], marks=pytest.mark.slow),
        pytest.param("odd", ["bfloat16", "float16", "float32"], marks=pytest.mark.slow),
    ],
)
def test_every_kernel_compiles_without_spills(sizes: str, dtypes: list[str], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_program", sizes, *dtypes],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert len({name.split()[0] for name in found}) == 8
    assert len(found) == 8 * 3 * len(dtypes), "every kernel for every type and three architectures"
    assert {name: figures for name, figures in found.items() if figures["spilled"]} == {}
    if sizes == "Qwen3-4B":
        # What the JIT knows of real sizes was used: a tap reads several neurons at a time.
        assert all(figures["vector_loads"] for name, figures in found.items() if name.startswith("tap_kernel"))
