"""Compile every Triton kernel for GPUs that are not there, and print what the assembler says of each as JSON.

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

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from nex_vllm.kernels import gpu_select, gpu_tap
from nex_vllm.kernels.tap import GROUP

CAPABILITIES = (80, 90, 100)
TYPES = {0: ("*i16", "*bf16"), 1: ("*i16", "*fp16"), 2: ("*i32", "*fp32")}
"""By kind: pointers to patterns, and to values of the model's type."""

POINTERS = {
    "weights": "*fp32", "out": "*fp64", "listed": "*i32", "least": "*i32", "counts": "*i32", "slots": "*i32",
    "layer": "*i32", "starts": "*i64", "out_columns": "*i64", "out_masses": "*fp32",
}  # fmt: skip
PATTERNS = {"record", "maxima", "values"}
KERNELS = (
    (gpu_tap.tap_kernel, {"BLOCK": gpu_tap._BLOCK}, gpu_tap._WARPS, {"h": "pattern"}),
    (gpu_tap.silu_mul_tap_kernel, {"BLOCK": gpu_tap._BLOCK}, gpu_tap._WARPS, {"x": "value", "h": "value"}),
    (gpu_select.select_reduce_kernel, {"TILE": gpu_select._TILE}, gpu_select._WARPS, {}),
    (gpu_select.strongest_kernel, {"TILE": gpu_select._TILE}, gpu_select._WARPS, {"out": "pattern"}),
    (gpu_select.thresholds_kernel, {"TILE": gpu_select._TILE}, gpu_select._WARPS, {"out": "*i32"}),
    (gpu_select.reduce_kernel, {"TILE": gpu_select._TILE}, gpu_select._WARPS, {}),
    (gpu_select.count_kernel, {"TILE": gpu_select._TILE}, gpu_select._WARPS, {}),
    (gpu_select.flush_kernel, {"TILE": gpu_select._TILE}, gpu_select._WARPS, {}),
)


def _compile(kernel: Any, sizes: dict[str, int], warps: int, types: dict[str, str], kind: int, capability: int) -> str:
    """Return the PTX of one kernel."""
    pattern, value = TYPES[kind]
    constants = {"KIND": kind, "GROUP": GROUP, **sizes}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in types:
            signature[name] = {"pattern": pattern, "value": value}.get(types[name], types[name])
        elif name in PATTERNS:
            signature[name] = pattern
        else:
            signature[name] = POINTERS.get(name, "i32")
    used = {name: constant for name, constant in constants.items() if name in kernel.arg_names}
    source = ASTSource(kernel, signature, used)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    ptx: str = compiled.asm["ptx"]
    return ptx


def _assemble(ptx: str, capability: int) -> dict[str, int]:
    """Return registers and spilled bytes, as the assembler counts them."""
    architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={architecture}",
            str(source),
            "-o",
            f"{folder}/kernel",
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    (registers,) = re.findall(r"Used (\d+) registers", said)
    return {"registers": int(registers), "spilled": sum(spills)}


def main() -> None:
    """Compile everything."""
    found = {}
    for kernel, sizes, warps, types in KERNELS:
        for kind in TYPES:
            for capability in CAPABILITIES:
                ptx = _compile(kernel, sizes, warps, types, kind, capability)
                found[f"{kernel.__name__} kind {kind} sm_{capability}"] = _assemble(ptx, capability)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
