"""The operations on the record, naive and compiled, on data built to break them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nex_vllm.kernels.choice import implementation
from nex_vllm.kernels.cpu import entries_cpu, masses_cpu, tap_cpu
from nex_vllm.kernels.select_reduce import keep_strongest, kept_entries, masses_naive
from nex_vllm.kernels.tap import tap, tap_naive


def _kept_by_definition(row: np.ndarray, top_k: int) -> set[int]:
    """Spec section 1, word by word."""
    masses = np.maximum(row, 0)
    if top_k >= len(masses):
        return set(np.flatnonzero(masses > 0).tolist())
    threshold = sorted(masses, reverse=True)[top_k - 1]
    return {i for i, mass in enumerate(masses) if mass >= threshold and mass > 0}


HOSTILE = {
    "random": lambda rng: rng.normal(size=(5, 300)),
    "all equal": lambda rng: np.ones((3, 300)),
    "all zero": lambda rng: np.zeros((3, 300)),
    "all negative": lambda rng: -rng.uniform(1, 2, size=(3, 300)),
    "fewer positive than K": lambda rng: np.where(rng.uniform(size=(4, 300)) < 0.02, 1.0, -1.0),
    "many ties at the threshold": lambda rng: rng.integers(-2, 4, size=(6, 300)).astype(float),
    "huge and tiny": lambda rng: 10.0 ** rng.uniform(-30, 30, size=(4, 300)),
}


@pytest.mark.parametrize("top_k", [1, 7, 50, 299, 300, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("list_kept", [kept_entries, entries_cpu])
@pytest.mark.parametrize("name", HOSTILE)
def test_kept_neurons_are_those_of_the_definition(name: str, list_kept: Any, dtype: torch.dtype, top_k: int) -> None:
    rng = np.random.default_rng(1)
    values = HOSTILE[name](rng)
    record = torch.tensor(values, dtype=torch.float32).clamp(-6e4, 6e4).to(dtype)
    counts, columns, masses = list_kept(record, top_k)
    start = 0
    for row, count in zip(record.float().numpy(), counts.tolist(), strict=True):
        found = columns[start : start + count].tolist()
        assert found == sorted(_kept_by_definition(row, top_k))
        np.testing.assert_array_equal(masses[start : start + count].numpy(), row[found])
        start += count
    assert start == len(columns)


@pytest.mark.parametrize("top_k", [1, 20, 299, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HOSTILE)
def test_compiled_masses_equal_the_naive_ones(name: str, dtype: torch.dtype, top_k: int) -> None:
    rng = np.random.default_rng(4)
    record = torch.tensor(HOSTILE[name](rng), dtype=torch.float32).clamp(-6e4, 6e4).to(dtype)
    weights = torch.tensor(rng.uniform(-1, 1, record.shape[1]), dtype=torch.float32)
    expected = masses_naive(record, weights, top_k)
    torch.testing.assert_close(masses_cpu(record, weights, top_k), expected, rtol=1e-12, atol=1e-30)
    # A second call finds nothing of the first in its buffers.
    torch.testing.assert_close(masses_cpu(record, weights, top_k), expected, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_makes_the_masses_not_a_number(dtype: torch.dtype, negative: bool) -> None:
    record = torch.ones(2, 50, dtype=dtype)
    bits, width = (torch.int32, 32) if dtype == torch.float32 else (torch.int16, 16)
    # All ones is a NaN with the sign bit; without that bit it still is one.
    record.view(bits)[1, 7] = -1 if negative else (1 << (width - 1)) - 1
    assert bool(torch.signbit(record[1, 7])) == negative
    for masses in (masses_naive, masses_cpu):
        found = masses(record, torch.ones(50), 5)
        assert torch.isfinite(found[0]).all()
        assert torch.isnan(found[1]).all()
    for list_kept in (kept_entries, entries_cpu):
        _, _, values = list_kept(record, 5)
        assert torch.isnan(values).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_compiled_tap_equals_the_naive_one(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    h = torch.tensor(rng.normal(size=(9, 24)), dtype=dtype)
    slots = torch.tensor([3, -1, 0, -1, -1, 2, 1, -1, 4, -1, -1], dtype=torch.int32)
    records = [torch.full((6, 60), -7.0, dtype=dtype) for _ in range(2)]
    for copy, record in zip((tap_naive, tap_cpu), records, strict=True):
        copy(h, slots, record, 30)
    # The last row takes what is skipped.
    torch.testing.assert_close(records[0][:-1], records[1][:-1], rtol=0, atol=0)
    assert not (records[1][:-1] == -7.0).all()


def test_the_choice_depends_on_device_type_and_library_alone() -> None:
    assert implementation("cpu", torch.bfloat16, has_numba=True) == "cpu"
    assert implementation("cpu", torch.bfloat16, has_numba=False) == "naive"
    assert implementation("cuda", torch.bfloat16, has_numba=True) == "naive"
    assert implementation("cpu", torch.float64, has_numba=True) == "naive"


def test_masses_are_weighted_sums_over_the_kept_entries() -> None:
    rng = np.random.default_rng(2)
    record = torch.tensor(rng.normal(size=(9, 400)), dtype=torch.float32)
    weights = torch.tensor(rng.uniform(-1, 1, 400), dtype=torch.float32)
    found = masses_naive(record, weights, 20)
    for row, (pos, absolute, total) in zip(record.numpy(), found.tolist(), strict=True):
        kept = _kept_by_definition(row, 20)
        w = {i: float(weights[i]) for i in kept}
        assert pos == pytest.approx(sum(float(row[i]) * max(w[i], 0) for i in kept))
        assert absolute == pytest.approx(sum(float(row[i]) * abs(w[i]) for i in kept))
        assert total == pytest.approx(sum(float(row[i]) for i in kept))


def test_nothing_is_kept_of_a_row_without_positive_activation() -> None:
    assert not keep_strongest(torch.full((2, 50), -1.0), 5).any()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_tap_copies_the_marked_rows_and_nothing_else(compiled: bool) -> None:
    def layer(h: torch.Tensor, slots: torch.Tensor, record: torch.Tensor) -> torch.Tensor:
        doubled = h * 2
        tap(doubled, slots, record, 6)
        return doubled + 1

    run = torch.compile(layer, fullgraph=True, dynamic=True) if compiled else layer
    for tokens in (5, 3):
        h = torch.arange(tokens * 4, dtype=torch.float32).reshape(tokens, 4)
        slots = torch.full((8,), -1, dtype=torch.int32)
        slots[0], slots[2] = 1, 0
        record = torch.full((3, 16), -7.0)
        address = record.data_ptr()
        out = run(h, slots, record)
        torch.testing.assert_close(out, h * 2 + 1)
        assert record.data_ptr() == address, "written in place, into the buffer that the reduction reads"
        expected = torch.full((3, 16), -7.0)
        expected[1, 6:10], expected[0, 6:10] = h[0] * 2, h[2] * 2
        torch.testing.assert_close(record, expected)


def test_a_tap_without_marked_rows_writes_nothing() -> None:
    record = torch.full((2, 8), -7.0)
    tap_naive(torch.ones(3, 4), torch.full((8,), -1, dtype=torch.int32), record, 0)
    assert (record[:-1] == -7.0).all(), "only the last row, which is nobody's"
