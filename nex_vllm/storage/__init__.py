"""The file formats (activation cache, weights, candidates, learned selector), and the files that a user gives.

What needs pyarrow is loaded on first use: an engine worker reads weights and no cache.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nex_vllm.storage.atomic import atomic_output, check_writable_output
from nex_vllm.storage.diagnostics import Diagnostics, decode_diagnostics
from nex_vllm.storage.fingerprint import model_fingerprint
from nex_vllm.storage.metadata import CacheMeta, WeightsMeta
from nex_vllm.storage.prompts import (
    GivenResponse,
    Problem,
    Prompt,
    read_problems,
    read_prompts,
    read_responses,
    response_id,
)
from nex_vllm.storage.selector_file import SelectorFile, check_selector_fits, load_selector, save_selector
from nex_vllm.storage.weights import WeightsFile, check_fits, load_weights, save_weights

if TYPE_CHECKING:
    from nex_vllm.storage.cache_reader import CachedResponse, CacheReader
    from nex_vllm.storage.cache_writer import CacheWriter
    from nex_vllm.storage.candidates import CandidateTable, read_candidates, write_candidates

__all__ = [
    "CacheMeta",
    "CacheReader",
    "CacheWriter",
    "CachedResponse",
    "CandidateTable",
    "Diagnostics",
    "GivenResponse",
    "Problem",
    "Prompt",
    "SelectorFile",
    "WeightsFile",
    "WeightsMeta",
    "atomic_output",
    "check_fits",
    "check_selector_fits",
    "check_writable_output",
    "decode_diagnostics",
    "load_selector",
    "load_weights",
    "model_fingerprint",
    "read_candidates",
    "read_problems",
    "read_prompts",
    "read_responses",
    "response_id",
    "save_selector",
    "save_weights",
    "write_candidates",
]

_LATER = {
    "CachedResponse": "cache_reader",
    "CacheReader": "cache_reader",
    "CacheWriter": "cache_writer",
    "CandidateTable": "candidates",
    "read_candidates": "candidates",
    "write_candidates": "candidates",
}


def __getattr__(name: str) -> Any:
    """Load what needs pyarrow when it is first asked for."""
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
