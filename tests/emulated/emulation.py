"""vLLM's CUDA platform on CPU tensors, for programs that run in the emulated environment; import it before vLLM.

The folder named by NEX_EMULATE has `fakegpu`, which mocks CUDA. The compiled ops that a small dense model meets are
given here, in torch. Rotary embedding does nothing: the text means nothing anyway.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
for name, value in {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(name, value)
sys.path.insert(0, os.environ["NEX_EMULATE"])
importlib.import_module("fakegpu")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

_platform: Any = type(current_platform)
_platform.dist_backend = "gloo"
_platform.dispatch_key = "CPU"
_ops: Any = torch.library.Library("_C", "IMPL")


def _normalized(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    scaled = nn.functional.rms_norm(x.float(), x.shape[-1:], None if weight is None else weight.float(), epsilon)
    return scaled.to(x.dtype)


def _rms_norm(out: Tensor, x: Tensor, weight: Tensor | None, epsilon: float) -> None:
    out.copy_(_normalized(x, weight, epsilon).view_as(out))


def _fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, epsilon: float) -> None:
    residual.add_(x)
    x.copy_(_normalized(residual, weight, epsilon))


def _silu_and_mul(out: Tensor, x: Tensor) -> None:
    gate, up = x.chunk(2, dim=-1)
    out.copy_(nn.functional.silu(gate) * up)


_ops.impl("rms_norm", _rms_norm, "CPU")
_ops.impl("fused_add_rms_norm", _fused_add_rms_norm, "CPU")
_ops.impl("silu_and_mul", _silu_and_mul, "CPU")
_ops.impl("rotary_embedding", lambda *args, **kwargs: None, "CPU")

# A decoding row's attention is split into 16 programs, which an interpreter runs one after the other.
from vllm.v1.attention.backends import triton_attn  # noqa: E402

triton_attn.NUM_PAR_SOFTMAX_SEGMENTS = 2
