"""Copy the activations of the rows that are sampled from out of a running forward pass."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

_library: Any = torch.library.Library("nex", "DEF")  # type: ignore[no-untyped-call]
# An ordinary op that mutates one argument: it may stand anywhere in a compiled graph and never splits one.
_library.define("tap(Tensor h, Tensor slots, Tensor(a!) record, int offset) -> ()")


def tap_naive(h: Tensor, slots: Tensor, record: Tensor, offset: int) -> None:
    """Copy row ``i`` of ``h`` to ``record[slots[i], offset:offset + width]`` for every i with ``slots[i] >= 0``.

    Args:
        h: [tokens, width], one layer's finished product ``act(g) * u``.
        slots: int32 [at least tokens], record row of each batch row, -1 to skip it.
        record: [slots + 1, neurons], dtype of ``h``, written in place; what the last row holds afterwards is nobody's.
        offset: the layer's first column.
    """
    # Every row is written somewhere: shapes depend on no data, so a graph can be captured and nothing waits.
    index = torch.where(slots[: h.shape[0]] < 0, record.shape[0] - 1, slots[: h.shape[0]])
    record[:, offset : offset + h.shape[1]].index_copy_(0, index.long(), h)


def _tap_without_data(h: Tensor, slots: Tensor, record: Tensor, offset: int) -> None:
    """Shape propagation: nothing is returned."""


_library.impl("tap", tap_naive, "CompositeExplicitAutograd")
if importlib.util.find_spec("numba") is not None:
    from nex_vllm.kernels.cpu import tap_cpu

    _library.impl("tap", tap_cpu, "CPU")
torch.library.register_fake("nex::tap", _tap_without_data, lib=_library)

tap = torch.ops.nex.tap.default
