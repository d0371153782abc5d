"""Floats as integers: positive ones, read as signed integers, ascend with their value."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""The types that models have, and the integers of their size."""


def as_integers(x: Tensor) -> Tensor:
    """Look at the same memory as integers of the same size."""
    return x.view(INTEGERS[x.dtype])
