"""Compile every Triton kernel for GPUs that are not there, and print what the assembler reports of each as JSON.

    python -m tests.kernels.compile_program Qwen3-4B|odd DTYPE ...

The kernels are called as the engine calls them, with tensors of a real model's sizes, through Triton's own JIT: it
picks the types and adds what it knows of the arguments (which are divisible by 16), so that what is compiled is what
runs. Only the launch at the end is left out.

A program of its own, because Triton decides when it is imported whether kernels are compiled or interpreted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import JITFunction, driver

from nex_vllm.kernels.gpu import GpuReduction
from nex_vllm.kernels.gpu_tap import silu_mul_tap_gpu, tap_gpu
from nex_vllm.kernels.groups import groups_per_layer
from nex_vllm.kernels.tap import layer_number

CAPABILITIES = (80, 90, 100)
# Layers, their width and K: Qwen3-4B with the default K, and sizes of which 16 divides none.
SIZES = {"Qwen3-4B": (36, 9728, 2000), "odd": (3, 9725, 1999)}
ROWS = 3


class AbsentGpu:
    """Triton's driver of a GPU to compile for; device numbers are compute capabilities."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Return the device, under which the JIT keeps what it has compiled."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0


def compiled_kernels(dtype: torch.dtype, layers: int, width: int, top_k: int) -> dict[str, str]:
    """Return the PTX of every kernel, by name, for the current driver."""
    compiled: dict[str, str] = {}
    jit = JITFunction.run

    def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> None:
        compiled[kernel.fn.__name__] = jit(kernel, *args, warmup=True, **options).asm["ptx"]

    JITFunction.run = compile_only
    record = torch.zeros(ROWS + 1, layers * width, dtype=dtype)
    maxima = torch.zeros(ROWS + 1, layers * groups_per_layer(width), dtype=dtype)
    x = torch.zeros(ROWS, 2 * width, dtype=dtype)
    slots = torch.arange(ROWS, dtype=torch.int32)
    tap_gpu(x[:, :width].contiguous(), slots, record, maxima, layer_number(1, "cpu"))
    silu_mul_tap_gpu(x, slots, record, maxima, layer_number(1, "cpu"))
    reduction = GpuReduction(record, maxima, torch.zeros(layers * width), top_k, layers, ranks=2)
    reduction.row_sums(ROWS)
    strongest = reduction.strongest(ROWS)
    thresholds = reduction.thresholds(torch.cat([strongest, strongest], dim=1))
    reduction.row_sums_at(thresholds)
    reduction.entries(torch.arange(ROWS), thresholds)
    JITFunction.run = jit
    return compiled


def assembled(ptx: str, capability: int) -> dict[str, int]:
    """Return registers and spilled bytes, as the assembler counts them."""
    architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", source, "-o", f"{folder}/kernel"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", report)]
    (registers,) = re.findall(r"Used (\d+) registers", report)
    return {"registers": int(registers), "spilled": sum(spills)}


def main() -> None:
    """Compile everything."""
    found = {}
    sizes, *dtypes = sys.argv[1:]
    for capability in CAPABILITIES:
        driver.set_active(AbsentGpu(capability))
        for dtype in dtypes:
            for name, ptx in compiled_kernels(getattr(torch, dtype), *SIZES[sizes]).items():
                found[f"{name} {dtype} sm_{capability}"] = {
                    **assembled(ptx, capability),
                    "vector_loads": len(re.findall(r"ld\.global\S*\.v[248]\S*", ptx)),
                }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
