"""Let Triton's interpreter take masks that it made itself; import this in an engine's process.

Triton 3.9 gives `a < b` the type of `a` with truth values inside, widens them where a scalar condition is broadcast,
and then refuses the mask: vLLM's n-gram kernel cannot be interpreted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder

_load, _store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store


def _load_where(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
    mask.data = mask.data.astype(np.bool_)
    return _load(builder, pointers, mask, *rest)


def _store_where(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    mask.data = mask.data.astype(np.bool_)
    return _store(builder, pointers, value, mask, *rest)


InterpreterBuilder.create_masked_load = _load_where
InterpreterBuilder.create_masked_store = _store_where
