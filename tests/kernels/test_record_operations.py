"""Selection and reduction, naive, compiled and in Triton, on data built to break them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nex_vllm.kernels.choice import implementation
from tests.kernels.operations import DTYPES, INTERPRETED, NAMES, SLOW_IF_INTERPRETED, all_rows, cases, recorded

Settings = list[tuple[torch.dtype, int]]


def _kept_by_definition(row: np.ndarray, top_k: int) -> set[int]:
    """Spec section 1, word by word."""
    masses = np.maximum(row, 0)
    if top_k >= len(masses):
        return set(np.flatnonzero(masses > 0).tolist())
    threshold = sorted(masses, reverse=True)[top_k - 1]
    return {i for i, mass in enumerate(masses) if mass >= threshold and mass > 0}


def _neighbours(rng: np.random.Generator) -> np.ndarray:
    """Values that differ in their last bit only, in bfloat16 and in float32."""
    last_bits = rng.integers(0, 4, size=(2, 300)).astype(np.int32)
    last_bits[1:] <<= 16
    return (last_bits + np.float32(1.0).view(np.int32)).view(np.float32)


HOSTILE = {
    "random": lambda rng: rng.normal(size=(2, 300)),
    "all equal": lambda rng: np.ones((3, 300)),
    "all zero": lambda rng: np.zeros((3, 300)),
    "all negative": lambda rng: -rng.uniform(1, 2, size=(2, 300)),
    "fewer positive than K": lambda rng: np.where(rng.uniform(size=(2, 300)) < 0.02, 1.0, -1.0),
    "many ties at the threshold": lambda rng: rng.integers(-2, 4, size=(2, 300)).astype(float),
    "huge and tiny": lambda rng: 10.0 ** rng.uniform(-30, 30, size=(2, 300)),
    "one giant": lambda rng: np.where(np.arange(300) == 137, 5e4, rng.normal(size=(2, 300)) * 1e-3),
    "last bits": _neighbours,
    "one row": lambda rng: rng.normal(size=(1, 300)),
    "one neuron": lambda rng: np.array([[1.0], [-1.0]]),
    "smallest numbers": lambda rng: np.where(rng.uniform(size=(2, 300)) < 0.5, 1e-45, 3e-45),
}


@pytest.mark.parametrize(("name", "settings"), cases(7, 1, 299, 300, 10**6))
@pytest.mark.parametrize("data", HOSTILE)
def test_kept_neurons_are_those_of_the_definition(data: str, name: str, settings: Settings) -> None:
    values = HOSTILE[data](np.random.default_rng(1))
    for dtype, top_k in settings:
        record, operations = recorded(name, values, dtype, top_k)
        counts, columns, masses = operations.entries(all_rows(record))
        start = 0
        for row, count in zip(record.float().cpu().numpy(), counts.tolist(), strict=True):
            found = columns[start : start + count].tolist()
            assert found == sorted(_kept_by_definition(row, top_k)), f"{dtype}, K = {top_k}"
            np.testing.assert_array_equal(masses[start : start + count].cpu().numpy(), row[found])
            start += count
        assert start == len(columns)


@pytest.mark.parametrize(("name", "settings"), cases(20, 1, 299, 10**6, 50))
@pytest.mark.parametrize("data", HOSTILE)
def test_row_sums_are_weighted_sums_over_the_kept_neurons(data: str, name: str, settings: Settings) -> None:
    rng = np.random.default_rng(4)
    values = HOSTILE[data](rng)
    weights = rng.uniform(-1, 1, values.shape[1]).astype(np.float32)
    for dtype, top_k in settings:
        record, operations = recorded(name, values, dtype, top_k, weights=torch.from_numpy(weights))
        found = operations.row_sums(len(record)).cpu().numpy().copy()
        for row, sums in zip(record.double().cpu().numpy(), found, strict=True):
            kept = sorted(_kept_by_definition(row, top_k))
            parts = row[kept] * weights[kept]
            expected = [np.maximum(parts, 0).sum(), np.abs(parts).sum(), row[kept].sum()]
            np.testing.assert_allclose(sums, expected, rtol=2e-6, atol=1e-40, err_msg=f"{dtype}, K = {top_k}")
        # A second call finds nothing of the first in its buffers.
        np.testing.assert_array_equal(operations.row_sums(len(record)).cpu().numpy(), found)


@pytest.mark.parametrize(("name", "settings"), cases(20, 1, 150, 10**3))
@pytest.mark.parametrize("data", [data for data in HOSTILE if data != "one neuron"])
def test_parts_of_a_row_agree_on_what_the_whole_row_keeps(data: str, name: str, settings: Settings) -> None:
    ranks = 3
    rng = np.random.default_rng(6)
    values = torch.tensor(HOSTILE[data](rng), dtype=torch.float32)
    if name == "gpu" and INTERPRETED:
        values = values[-1:]
    weights = torch.tensor(rng.uniform(-1, 1, values.shape[1]), dtype=torch.float32)
    for dtype, top_k in settings:
        record, whole = recorded("naive", values, dtype, top_k, weights=weights)
        # As tensor parallelism shards one layer: neighbouring units to each rank.
        parts = [
            recorded(name, part, dtype, top_k, weights=part_weights, ranks=ranks)
            for part, part_weights in zip(values.chunk(ranks, 1), weights.chunk(ranks), strict=True)
        ]
        gathered = torch.cat([operations.strongest(len(values)) for _, operations in parts], dim=1)
        assert gathered.shape[1] <= ranks * top_k, "K values per rank and row travel, whatever the ties"
        thresholds = [operations.thresholds(gathered) for _, operations in parts]
        sums = [each.row_sums_at(own) for (_, each), own in zip(parts, thresholds, strict=True)]
        expected = whole.row_sums(len(values)).to(gathered.device)
        torch.testing.assert_close(torch.stack(sums).sum(dim=0), expected, rtol=2e-6, atol=1e-40)
        counts = [each.entries(all_rows(part), own)[0] for (part, each), own in zip(parts, thresholds, strict=True)]
        expected = whole.entries(all_rows(record))[0].to(gathered.device)
        torch.testing.assert_close(torch.stack(counts).sum(dim=0), expected)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_what_was_built_for_one_rank_does_not_write_where_others_would_read(name: str) -> None:
    _, operations = recorded(name, np.ones((2, 50)), torch.float32, 5)
    with pytest.raises(AssertionError, match="built for one rank"):
        operations.strongest(2)
    with pytest.raises(AssertionError, match="built for one rank"):
        operations.thresholds(torch.ones(2, 10))


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_makes_its_row_not_a_number(name: str, dtype: torch.dtype, negative: bool) -> None:
    values = torch.ones(2, 50, dtype=dtype)
    bits, width = (torch.int32, 32) if dtype == torch.float32 else (torch.int16, 16)
    # All ones is a NaN with the sign bit; without that bit it still is one.
    values.view(bits)[1, 7] = -1 if negative else (1 << (width - 1)) - 1
    assert bool(torch.signbit(values[1, 7])) == negative
    record, operations = recorded(name, values, dtype, 5, weights=torch.ones(50))
    sums = operations.row_sums(2)
    assert torch.isfinite(sums[0]).all()
    assert torch.isnan(sums[1]).all()
    _, _, kept = operations.entries(all_rows(record))
    assert torch.isnan(kept).any()


@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_activation_makes_infinite_sums(name: str) -> None:
    values = torch.ones(2, 50)
    values[1, 7] = torch.inf
    _, operations = recorded(name, values, torch.float32, 5, weights=torch.ones(50))
    assert torch.isfinite(operations.row_sums(2)).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(("layers", "width"), [(3, 100), (2, 4103), (1, 16), (5, 1), (4, 33)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_widths_that_no_block_divides(name: str, dtype: torch.dtype, layers: int, width: int) -> None:
    rng = np.random.default_rng(layers * width)
    values = rng.normal(size=(1 if name == "gpu" and INTERPRETED else 3, layers * width))
    for top_k in (1, max(1, layers * width // 50)):
        record, operations = recorded(name, values, dtype, top_k, layers=layers)
        counts, columns, _ = operations.entries(all_rows(record))
        found = np.split(columns.cpu().numpy(), counts.cumsum(0).tolist()[:-1])
        for row, kept in zip(record.float().cpu().numpy(), found, strict=True):
            assert kept.tolist() == sorted(_kept_by_definition(row, top_k))


@pytest.mark.parametrize("name", NAMES)
def test_many_rows_and_stale_buffers(name: str) -> None:
    rng = np.random.default_rng(9)
    num_rows = 8 if name == "gpu" and INTERPRETED else 1024
    values = torch.tensor(rng.normal(size=(num_rows, 64)), dtype=torch.float32)
    weights = torch.tensor(rng.uniform(-1, 1, 64), dtype=torch.float32)
    record, operations = recorded(name, values, torch.float32, 9, weights=weights)
    all_sums = operations.row_sums(num_rows).clone()
    # A smaller step reads the same buffers, which still hold what the larger one left.
    torch.testing.assert_close(operations.row_sums(3), all_sums[:3], rtol=0, atol=0)
    few = operations.entries(torch.tensor([num_rows - 2, 2], device=record.device))
    alone = recorded(name, values[[num_rows - 2, 2]], torch.float32, 9, weights=weights)[1]
    for found, expected in zip(few, alone.entries(torch.tensor([0, 1], device=record.device)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cpu", pytest.param("gpu", marks=SLOW_IF_INTERPRETED)])
def test_the_largest_models(name: str) -> None:
    """80 layers of 28,672 units: 2.3 million neurons, most of them tied in bfloat16."""
    values = torch.randn(2, 80 * 28672, generator=torch.Generator().manual_seed(8)).to(torch.bfloat16)
    weights = torch.rand(80 * 28672, generator=torch.Generator().manual_seed(9)) * 2 - 1
    _, expected = recorded("naive", values, torch.bfloat16, 2000, weights=weights, layers=80)
    record, operations = recorded(name, values, torch.bfloat16, 2000, weights=weights, layers=80)
    torch.testing.assert_close(operations.row_sums(2).cpu(), expected.row_sums(2).cpu(), rtol=2e-6, atol=0)
    counts, columns, _ = operations.entries(all_rows(record))
    assert (counts >= 2000).all()
    torch.testing.assert_close(columns.cpu(), expected.entries(torch.arange(2))[1])


def test_the_choice_depends_on_device_type_and_library_alone() -> None:
    everything = {"has_numba": True, "has_triton": True}
    assert implementation("cpu", torch.bfloat16, **everything) == "cpu"
    assert implementation("cuda", torch.bfloat16, **everything) == "gpu"
    assert implementation("cpu", torch.bfloat16, has_numba=False, has_triton=True) == "naive"
    assert implementation("cuda", torch.float16, has_numba=True, has_triton=False) == "naive"
    assert implementation("cuda", torch.float64, **everything) == "naive"
