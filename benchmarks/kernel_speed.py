"""How fast selection, reduction and taps are, beside what torch and flashinfer do, in alternating rounds.

    python benchmarks/kernel_speed.py [--rounds 25] [--rows 64 256] [--json FILE]

On the CPU: one thread, ours beside ``torch.topk`` of the same rows (which selects and reduces nothing) and beside the
naive reference. On a GPU: beside ``torch.topk`` and, where it is installed, ``flashinfer.top_k``, with the second-level
cache flushed before every call. Ours is measured there with the maxima that the taps leave, as the engine runs it, and
once more together with a pass over the record that makes these maxima. The floor is the record's bytes over the
bandwidth of a large copy, bytes read and written, measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, check_result_path, described, device_kind, spread, write_result
from kernel_cases import CPU_CASES, GPU_CASES, Case, Filled, fill, gated, reduce_with
from timing import alternate, summary
from tqdm import tqdm

from nex_vllm.kernels import naive
from nex_vllm.kernels.groups import GROUP, groups_per_layer
from nex_vllm.kernels.tap import layer_number, silu_mul_tap, tap

COPY_BYTES = 4 << 30
OURS, WITH_PASS = "ours", "ours with pass"
TAP_LAYERS, TAP_WIDTH = 36, 9728
# Batch rows, and how many of them are recorded: decode steps, and a prefill of which the last rows are.
TAP_SIZES = ((3, 3), (24, 24), (96, 96), (384, 384), (2048, 24))


def copy_bandwidth(rounds: int) -> dict[str, Any]:
    """Measure a large copy on the GPU; GB/s, bytes read and written."""
    source = torch.empty(COPY_BYTES // 4, dtype=torch.int32, device="cuda").fill_(1)
    target = torch.empty_like(source)
    times = alternate({"copy": lambda: target.copy_(source)}, rounds, "cuda")["copy"]
    return {"bytes": 2 * COPY_BYTES, "gb_per_s": spread([2 * COPY_BYTES / 1e6 / each for each in times])}


def _maxima_pass(filled: Filled, case: Case) -> Callable[[], Any]:
    """Return what makes the maxima from the record: one pass over it, compiled."""
    record, maxima = filled.record[: case.rows], filled.maxima[: case.rows]
    assert case.width % GROUP == 0, "groups of a layer lie side by side"

    @torch.compile(dynamic=False)
    def largest(record: torch.Tensor) -> torch.Tensor:
        return record.view(len(record), -1, GROUP).amax(dim=2).clamp_min(0)

    torch.testing.assert_close(largest(record), maxima, rtol=0, atol=0)
    return lambda: largest(record)


def flashinfer_top_k(record: torch.Tensor, top_k: int) -> Callable[[], Any] | None:
    """Return flashinfer's selection of these rows, None where it is not installed or cannot run here."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    try:
        import flashinfer

        flashinfer.top_k(record, top_k)
    except Exception as error:  # it compiles when it is called first, and needs tools for that
        print(f"flashinfer.top_k cannot run here: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return lambda: flashinfer.top_k(record, top_k)


def select_reduce(case: Case, device: str, rounds: int, gb_per_s: float | None) -> dict[str, Any]:
    """Measure one size."""
    filled = fill(case, device)
    record = filled.record[: case.rows]
    ours = reduce_with("gpu" if device == "cuda" else "cpu", filled, case)
    reference = reduce_with("naive", filled, case)
    checked = min(case.rows, 64)
    torch.testing.assert_close(ours.row_sums(checked), reference.row_sums(checked), rtol=2e-5, atol=0)
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: ours.row_sums(case.rows),
        "torch.topk": lambda: torch.topk(record, case.top_k, dim=1, sorted=False),
    }
    if device == "cuda":
        make_maxima = _maxima_pass(filled, case)
        calls[WITH_PASS] = lambda: (make_maxima(), ours.row_sums(case.rows))
        theirs = flashinfer_top_k(record, case.top_k)
        if theirs is not None:
            calls["flashinfer.top_k"] = theirs
    else:
        calls["naive"] = lambda: reference.row_sums(case.rows)
    times = alternate(calls, rounds, device)
    result: dict[str, Any] = {
        **case.described(),
        **summary(times, *(name for name in (OURS, WITH_PASS) if name in times)),
    }
    if gb_per_s is not None:
        floor = case.record_bytes / gb_per_s / 1e6
        result["record_bytes"] = case.record_bytes
        result["floor_milliseconds"] = floor
        result["share_of_copy"] = {name: spread([floor / each for each in times[name]]) for name in (OURS, WITH_PASS)}
    return result


def taps_gpu(tokens: int, marked: int, rounds: int) -> dict[str, Any]:
    """Measure what a layer's tap adds to its activation; each call is the next layer's."""
    record = torch.zeros((marked + 1, TAP_LAYERS * TAP_WIDTH), dtype=torch.bfloat16, device="cuda")
    maxima = torch.zeros((marked + 1, TAP_LAYERS * groups_per_layer(TAP_WIDTH)), dtype=torch.bfloat16, device="cuda")
    x = torch.randn((tokens, 2 * TAP_WIDTH), device="cuda").to(torch.bfloat16)
    slots = torch.full((tokens,), -1, dtype=torch.int32, device="cuda")
    slots[tokens - marked :] = torch.arange(marked, dtype=torch.int32, device="cuda")
    layers = itertools.cycle([layer_number(layer, "cuda") for layer in range(TAP_LAYERS)])

    @torch.compile(dynamic=False)
    def silu_mul(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate.float()).mul(up.float()).to(x.dtype)

    times = alternate(
        {
            "plain": lambda: silu_mul(x),
            "fused": lambda: silu_mul_tap(x, slots, record, maxima, next(layers)),
            "separate": lambda: tap(silu_mul(x), slots, record, maxima, next(layers)),
        },
        rounds,
        "cuda",
    )
    added = {
        name: spread([(each - plain) * 1e3 for each, plain in zip(times[name], times["plain"], strict=True)])
        for name in ("fused", "separate")
    }
    return {
        "tokens": tokens,
        "marked": marked,
        "width": TAP_WIDTH,
        "dtype": "bfloat16",
        "milliseconds": {name: spread(values) for name, values in times.items()},
        "added_microseconds_per_layer": added,
    }


def taps_cpu(rounds: int) -> dict[str, Any]:
    """Measure one layer's tap of the rows of a step, beside the naive one."""
    from nex_vllm.kernels.cpu import tap_cpu

    case = CPU_CASES[1]
    filled = fill(case, "cpu")
    h = gated(case.rows, case.width, case.dtype, "cpu", seed=9)
    slots = torch.arange(case.rows, dtype=torch.int32)
    arguments = (h, slots, filled.record, filled.maxima, layer_number(3, "cpu"))
    times = alternate({OURS: lambda: tap_cpu(*arguments), "naive": lambda: naive.tap(*arguments)}, rounds, "cpu")
    return {
        "tokens": case.rows,
        "marked": case.rows,
        "width": case.width,
        "dtype": case.dtype_name,
        **summary(times, OURS),
    }


def show(result: dict[str, Any], label: str) -> None:
    """Print one size's figures."""
    print(label)
    for name, value in result["milliseconds"].items():
        print(f"  {name:>16}: {described(value, 4)} ms")
    for name, value in result.get("share_of_copy", {}).items():
        print(f"  {name:>16}: {described(value)} of the copy's bandwidth")


def main() -> None:
    """Measure, print, and write after every size what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = device_kind()
    device = "cuda" if kind == "gpu" else "cpu"
    parser.add_argument("--rounds", type=int, default=25, help="counted rounds (25)")
    parser.add_argument("--rows", type=int, nargs="+", help="select and reduce sizes of so many rows only (all)")
    parser.add_argument("--json", type=Path, default=RESULTS / f"kernels-{kind}.json", help="result file")
    options = parser.parse_args()
    check_result_path(parser, options.json)
    cases = [case for case in (GPU_CASES if kind == "gpu" else CPU_CASES) if case.rows in (options.rows or [case.rows])]
    content: dict[str, Any] = {"select_reduce": [], "taps": []}
    gb_per_s = None
    if device == "cuda":
        content["copy"] = copy_bandwidth(options.rounds)
        gb_per_s = content["copy"]["gb_per_s"]["median"]
        print(f"copy: {described(content['copy']['gb_per_s'], 0)} GB/s")
    else:
        torch.set_num_threads(1)
        content["threads"] = 1
    for case in tqdm(cases, desc="sizes", file=sys.stderr):
        result = select_reduce(case, device, options.rounds, gb_per_s)
        show(result, f"{case.rows} rows of {case.neurons} {case.dtype_name}, K = {case.top_k}")
        content["select_reduce"].append(result)
        write_result(options.json, "kernels", content)
    on_gpu = device == "cuda"
    content["taps"] = [taps_gpu(*size, options.rounds) for size in TAP_SIZES] if on_gpu else [taps_cpu(options.rounds)]
    for taps in content["taps"]:
        show(taps, f"tap of a layer, {taps['tokens']} tokens, {taps['marked']} recorded, width {taps['width']}")
    write_result(options.json, "kernels", content)


if __name__ == "__main__":
    main()
