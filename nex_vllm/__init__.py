"""Label-free best-of-n inside vLLM, after the NEX paper.

Importing this package pulls in neither torch nor vLLM; what needs them is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nex_vllm.errors import InputError, NexError
from nex_vllm.plugin.sampling_params import use_in_vllm

if TYPE_CHECKING:
    from nex_vllm.choosing.selection import Candidate, Selection
    from nex_vllm.plugin.params import SamplingParams

__version__ = "0.1.0"

use_in_vllm()

__all__ = ["Candidate", "InputError", "NexError", "SamplingParams", "Selection", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the engine-side classes when they are first asked for."""
    if name == "SamplingParams":
        from nex_vllm.plugin.params import SamplingParams

        return SamplingParams
    if name in {"Candidate", "Selection"}:
        from nex_vllm.choosing import selection

        return getattr(selection, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
