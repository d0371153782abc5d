"""The taps: naive, compiled and in Triton, by themselves and in a compiled graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nex_vllm.kernels import naive
from nex_vllm.kernels.cpu import tap_cpu
from nex_vllm.kernels.gpu_tap import silu_mul_tap_gpu, tap_gpu
from nex_vllm.kernels.groups import groups_per_layer
from nex_vllm.kernels.tap import layer_number, silu_mul_tap, tap
from tests.kernels.operations import DTYPES, device_of

SLOTS = [3, -1, 0, -1, -1, 2, 1, -1, 4, -1, -1]


def _buffers(width: int, layers: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    record = torch.full((7, layers * width), -7.0, dtype=dtype, device=device)
    return record, torch.full((7, layers * groups_per_layer(width)), -7.0, dtype=dtype, device=device)


@pytest.mark.parametrize("width", [24, 100, 1024, 2600])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copy", [tap_cpu, tap_gpu])
def test_taps_copy_what_the_naive_tap_copies(copy: Any, dtype: torch.dtype, width: int) -> None:
    device = device_of("gpu" if copy is tap_gpu else "cpu")
    h = torch.randn(9, width, generator=torch.Generator().manual_seed(5)).to(dtype).to(device)
    h[2, 3], h[5, 4] = torch.nan, torch.inf
    # More slots than rows: the buffer is as long as the largest batch.
    slots = torch.tensor(SLOTS, dtype=torch.int32, device=device)
    found, expected = _buffers(width, 2, dtype, device), _buffers(width, 2, dtype, device)
    copy(h, slots, *found, layer_number(1, device))
    naive.tap(h, slots, *expected, layer_number(1, device))
    # The last row takes what is skipped.
    torch.testing.assert_close(found[0][:-1], expected[0][:-1], rtol=0, atol=0, equal_nan=True)
    assert (found[0][:-1, :width] == -7.0).all(), "the other layer's columns"
    assert (found[0][5] == -7.0).all(), "a row that no slot names"
    if copy is tap_gpu:
        torch.testing.assert_close(found[1][:-1], expected[1][:-1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [24, 1500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fused_tap_computes_the_product_and_copies_it(dtype: torch.dtype, width: int) -> None:
    device = device_of("gpu")
    x = torch.randn(9, 2 * width, generator=torch.Generator().manual_seed(6)).to(dtype).to(device)
    slots = torch.tensor(SLOTS, dtype=torch.int32, device=device)
    record, maxima = _buffers(width, 2, dtype, device)
    h = silu_mul_tap_gpu(x, slots, record, maxima, layer_number(1, device))
    expected = naive.silu_mul_tap(x, slots, *_buffers(width, 2, dtype, device), layer_number(1, device))
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(h, expected, rtol=tolerance, atol=tolerance)
    # What was recorded is what was returned, to the bit.
    again, maxima_again = _buffers(width, 2, dtype, device)
    naive.tap(h, slots, again, maxima_again, layer_number(1, device))
    torch.testing.assert_close(record[:-1], again[:-1], rtol=0, atol=0)
    torch.testing.assert_close(maxima[:-1], maxima_again[:-1], rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_ops_copy_the_marked_rows_and_nothing_else(compiled: bool) -> None:
    """Both taps in turn, four layers into one record, as in a model: with another op between them, in one graph."""
    width, layers = 4, [layer_number(layer, "cpu") for layer in range(4)]

    def model(x: torch.Tensor, slots: torch.Tensor, record: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
        for layer in layers[::2]:
            h = silu_mul_tap(x, slots, record, maxima, layer)
            x = torch.cat([h, h + 1], dim=1)
            h = torch.nn.functional.silu(x[:, :width]) * x[:, width:]
            tap(h, slots, record, maxima, layer + 1)
            x = torch.cat([h, h + 1], dim=1)
        return x

    run = torch.compile(model, fullgraph=True, dynamic=True) if compiled else model
    for tokens in (5, 3):
        x = torch.arange(tokens * 2 * width, dtype=torch.float32).reshape(tokens, 2 * width) / 10
        slots = torch.full((8,), -1, dtype=torch.int32)
        slots[0], slots[2] = 1, 0
        record, maxima = torch.full((3, 4 * width), -7.0), torch.full((3, 4), -7.0)
        addresses = record.data_ptr(), maxima.data_ptr()
        out = run(x, slots, record, maxima)
        assert (record.data_ptr(), maxima.data_ptr()) == addresses
        for layer in range(4):
            h = torch.nn.functional.silu(x[:, :width]) * x[:, width:]
            columns = slice(layer * width, (layer + 1) * width)
            # Written in place, into the buffers that the reduction reads; the last row means nothing.
            torch.testing.assert_close(record[[1, 0], columns], h[[0, 2]])
            if layer % 2 == 0:  # on the CPU the other tap leaves no maxima
                torch.testing.assert_close(maxima[[1, 0], layer], h[[0, 2]].amax(dim=1))
            x = torch.cat([h, h + 1], dim=1)
        torch.testing.assert_close(out, x)


@pytest.mark.parametrize("copy", [tap_gpu, silu_mul_tap_gpu])
def test_taps_refuse_what_would_make_them_write_elsewhere(copy: Any) -> None:
    device = device_of("gpu")
    x, slots = torch.ones(3, 8, device=device), torch.zeros(3, dtype=torch.int32, device=device)
    buffers, layer = _buffers(8, 1, torch.float32, device), layer_number(0, device)
    with pytest.raises(AssertionError, match="2 slots for 3 tokens"):
        copy(x, slots[:2], *buffers, layer)
    with pytest.raises(AssertionError, match="side by side"):
        copy(x.T.contiguous().T, slots, *buffers, layer)


def test_a_tap_without_marked_rows_writes_nothing() -> None:
    record = torch.full((2, 8), -7.0)
    naive.tap(
        torch.ones(3, 4), torch.full((8,), -1, dtype=torch.int32), record, torch.zeros(2, 0), layer_number(0, "cpu")
    )
    assert (record[:-1] == -7.0).all(), "only the last row, which means nothing"
