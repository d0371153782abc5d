"""Selection, reduction and tap on the CPU, one thread, beside ``torch.topk`` of the same rows.

    pytest benchmarks/test_kernels_cpu.py [--benchmark-json FILE]

For figures to report use ``benchmarks/kernel_speed.py``, which measures the same in alternating rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel_cases import CPU_CASES, Case, fill, gated, reduce_with

from nex_vllm.kernels import naive
from nex_vllm.kernels.cpu import tap_cpu
from nex_vllm.kernels.tap import layer_number

IDS = [f"{case.rows}x{case.neurons}-{case.dtype_name}" for case in CPU_CASES]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CPU_CASES, ids=IDS)
def test_select_reduce(benchmark: Callable[..., Any], case: Case) -> None:
    """Time ours, and check what it returns."""
    filled = fill(case, "cpu")
    ours = reduce_with("cpu", filled, case)
    expected = reduce_with("naive", filled, case).row_sums(case.rows)
    torch.testing.assert_close(benchmark(ours.row_sums, case.rows), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", CPU_CASES, ids=IDS)
def test_torch_topk(benchmark: Callable[..., Any], case: Case) -> None:
    """Time the library's selection alone."""
    record = fill(case, "cpu").record[: case.rows]
    benchmark(torch.topk, record, case.top_k, dim=1, sorted=False)


@pytest.mark.parametrize("tap", [tap_cpu, naive.tap])
def test_tap(benchmark: Callable[..., Any], tap: Callable[..., None]) -> None:
    """Time one layer's tap of 30 rows."""
    case = CPU_CASES[1]
    filled = fill(case, "cpu")
    h = gated(case.rows, case.width, case.dtype, "cpu", seed=9)
    slots = torch.arange(case.rows, dtype=torch.int32)
    benchmark(tap, h, slots, filled.record, filled.maxima, layer_number(3, "cpu"))
    torch.testing.assert_close(filled.record[: case.rows, 3 * case.width : 4 * case.width], h, rtol=0, atol=0)
