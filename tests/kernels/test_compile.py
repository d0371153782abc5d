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
def test_every_kernel_compiles_without_spills(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_program"],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    kernels = {name.split()[0] for name in found}
    assert len(kernels) == 8
    assert len(found) == 8 * 3 * 3, "every kernel for three types and three architectures"
    assert {name: figures for name, figures in found.items() if figures["spilled"]} == {}
    assert max(figures["registers"] for figures in found.values()) <= 255
